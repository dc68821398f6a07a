"""Files of strangers: JSON, pickles, NumPy arrays and point clouds, each read within limits.

No data set is known here. Read `metadata.py` first.
"""
