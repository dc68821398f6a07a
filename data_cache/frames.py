"""What a rig sees at one moment: cameras, poses, images, LiDAR points, and the geometry between them.

Data sets are read elsewhere (`sources`). Read `rig.py` first.
"""
