"""`surround doctor`: finds what would stop a recipe before hours are spent on it.

Read `checks.py` first. The measurements are in `stages/checkup`.
"""
