"""A student at work: depth of a rig, and point clouds and colours made of it. Read `predict.py` first."""
