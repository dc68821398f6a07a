"""Data sets as frames. A new data set is a module here and a line in `registry.py`.

What a frame is, is defined elsewhere (`frames`). Read `base.py` first: it says what every data set offers.
"""
