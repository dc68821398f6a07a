"""`surround doctor`: looks for what would stop a recipe before hours are spent on it.

Read `checks.py` first. What is measured is in `stages/checkup`.
"""
