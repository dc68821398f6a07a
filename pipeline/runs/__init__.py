"""One module per verb that runs something: it takes a recipe and a run folder, and writes files.

Three are parts of verbs: `splits.py` (the data set and its frames), `stage_one.py` and `cluster.py` (workers). What is
computed is defined elsewhere (`stages`). Read `teacher_cache.py` first.
"""
