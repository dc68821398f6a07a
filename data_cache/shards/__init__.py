"""The Zarr cache: its identity, arrays and receipts, its writer and its reader.

FORMAT.md describes the format. Where files lie is defined elsewhere (`storage`).
Read `identity.py` first, then `schema.py`.
"""
