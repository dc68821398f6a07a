"""Storage of a cache: files by name in a folder or on object storage, and locks on shards.

What the files mean is defined elsewhere (`shards`). Read `store.py` first.
"""
