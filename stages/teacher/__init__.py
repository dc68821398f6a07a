"""Depth foundation models behind one protocol. Read `base.py` first: what every teacher offers."""
