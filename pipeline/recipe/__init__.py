"""What a run is: its recipe, its folder and its provenance.

Nothing runs here. Read `config.py` first.
"""
