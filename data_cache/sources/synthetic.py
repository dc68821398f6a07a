"""The synthetic street: built from a seed and ray-cast when a frame is asked for; nothing is on disk.

Read `source.py` first, then `street.py`.
"""
