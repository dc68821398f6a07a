"""Inference: depth of a rig, and point clouds and colours made from it.

Nothing is written to disk here (`pipeline/runs/predict.py` does that). Read `predict.py` first.
"""
