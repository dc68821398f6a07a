"""Data at rest: rigs and frames, the data sets they come from, and the Zarr cache of the teacher's targets.

Nothing is learnt or measured here, and only `dataset.py` imports torch. Read `frames/rig.py` first.
"""
