"""What a run is: its recipe, its folder, its provenance, and how it is stopped.

Nothing runs here. Read `config.py` first.
"""
