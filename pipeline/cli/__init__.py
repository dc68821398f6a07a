"""The command `surround`. Each verb parses its options, calls one function and prints its report.

Nothing is computed here. Read `main.py` first.
"""
