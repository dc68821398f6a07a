"""The Zarr cache: its identity, arrays and receipts, who writes it and who reads it.

The format in prose is FORMAT.md. Read `identity.py` first, then `schema.py`.
"""
