"""One module per verb that runs something: a recipe and a run folder in, files out.

Read `teacher_cache.py` first.
"""
