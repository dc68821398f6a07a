"""What a teacher says, in a form that a student can be asked for: bins, where they lie, view relations.

No model is loaded here. Read `bins.py` first.
"""
