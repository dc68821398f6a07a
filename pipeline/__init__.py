"""The command line around the stages: recipes, weights, runs and reports.

Depth is computed and measured elsewhere (`stages`). Read `cli/main.py` first; `api.py` is the Python API.
"""
