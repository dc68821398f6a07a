"""The embedded street: built from a seed, ray-cast when a frame is asked for, nothing on disk.

Read `source.py` first, then `street.py`.
"""
