"""What a run is: its recipe, its folder, its provenance, how it is stopped.

Nothing runs here. Read `config.py` first.
"""
