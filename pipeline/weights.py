"""Pretrained weights: which ones are known, where they come from, how they are converted and checked.

Read `catalog.py` first.
"""
