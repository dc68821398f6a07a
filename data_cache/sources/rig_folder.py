"""The rig folder, a layout for your own vehicle: `rig.json`, `frames.jsonl`, images and LiDAR, read and written.

RIG_FOLDER.md describes the layout. Read `source.py` first.
"""
