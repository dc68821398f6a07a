"""How sure a student is, and whether it is right about that: coverage, and sparsification.

A wing of its own: the folder of stage three is full, and this is one subject. Read `coverage.py` first.
"""
