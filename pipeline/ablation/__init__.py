"""`surround ablate`: many students of one recipe, trained, measured, compared.

Read `table.py` for what is compared, `student.py` for one of them, `ablate.py` for all.
"""
