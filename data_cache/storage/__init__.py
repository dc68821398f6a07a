"""Where a cache lies: files by name in a folder or on object storage, and locks on them.

What the files mean is not known here (`shards`). Read `store.py` first.
"""
