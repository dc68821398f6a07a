"""Inference: depth of a rig, and point clouds and colours made from it. Read `predict.py` first."""
