"""What a step of stage two learns from: one function per loss term, weights apart.

The optimiser step is in `training`. Read `terms.py` first, then `objective.py`, which joins them.
"""
