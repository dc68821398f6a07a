"""A vehicle of one's own: `rig.json`, `frames.jsonl`, images and LiDAR, read and written.

The layout in prose is RIG_FOLDER.md. Read `source.py` first.
"""
