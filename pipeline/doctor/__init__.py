"""`surround doctor`: finds what would stop a recipe before a long run.

Read `checks.py` first. The measurements are in `stages/checkup`.
"""
