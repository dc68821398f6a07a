"""Deployment of a student as a file: ONNX, int8, other runtimes, and how well they agree.

The student itself is elsewhere (`student`). Read `export.py` first.
"""
