"""The command `surround`. Each verb parses its options, calls one function and prints its report.

Read `main.py` first.
"""
