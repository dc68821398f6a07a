"""One module per verb that runs something: it takes a recipe and a run folder, and writes files.

Read `teacher_cache.py` first.
"""
