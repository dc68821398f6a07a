"""Pretrained weights: which ones are known, where they come from, how they are converted and checked.

Models are built from them elsewhere (`stages/teacher`, `stages/student`). Read `catalog.py` first.
"""
