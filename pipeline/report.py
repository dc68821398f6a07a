"""Shows numbers and pictures of a run as JSON, Markdown and HTML. Nothing is measured here.

Read `one_run.py` first.
"""
