"""Training targets made from a teacher's output: bins, their places, and view relations.

No model is loaded here. Read `bins.py` first.
"""
