"""Untrusted files: JSON, pickles, NumPy arrays and point clouds, each read within limits.

Nothing here knows a data set. Read `metadata.py` first.
"""
