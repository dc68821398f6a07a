"""DDAD, and any other data set in the DGP layout. Read `source.py` first."""
