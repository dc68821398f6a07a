"""Depth foundation models behind one interface.

Their output becomes targets elsewhere (`targets`, `caching`). Read `base.py` first: it says what every teacher offers.
"""
