"""The three stages as functions of typed inputs: teacher cache, student training, evaluation.

No recipe, command line or run folder is known here. Read `teacher_cache.py` first; the wings hold parts of the stages.
"""
