"""The fast network: encoder, cross-view attention, metric bins, checkpoints.

It is trained elsewhere (`losses`, `training`). Read `model.py` first.
"""
