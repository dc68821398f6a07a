"""A student as a file for a vehicle: ONNX, int8, other runtimes, and how far they agree.

Read `export.py` first.
"""
