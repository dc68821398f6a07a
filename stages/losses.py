"""The losses of stage two: one function per term, without its weight.

The optimiser step is in `training`. Read `terms.py` first, then `objective.py`, which combines the terms.
"""
