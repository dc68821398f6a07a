"""Data sets as frames. A new one is a module here and a line in `registry.py`.

Read `base.py` first: what every data set offers.
"""
