"""Depth foundation models behind one interface. Read `base.py` first: it says what every teacher offers."""
