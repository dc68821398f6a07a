"""The fast network: encoder, cross-view attention, metric bins, checkpoints. Read `model.py` first."""
