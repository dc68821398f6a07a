"""Deployment of a student as a file: ONNX, int8, other runtimes, and how well they agree.

Read `export.py` first.
"""
