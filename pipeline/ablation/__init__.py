"""`surround ablate`: trains, measures and compares many students of one recipe.

How one is trained and measured is defined in `runs` and `stages`.
Read `table.py` for what is compared, `student.py` for one student, `ablate.py` for all of them.
"""
