"""The synthetic worlds: built from a seed and ray-cast when a frame is asked for; nothing is on disk.

Read `source.py` first, then `world.py`, then `street.py` and `town.py`.
"""
