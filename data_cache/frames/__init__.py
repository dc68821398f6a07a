"""What a rig sees at one moment: cameras, poses, images, LiDAR points, and the geometry between them.

Files of data sets are not read here (`sources`). Read `rig.py` first.
"""
