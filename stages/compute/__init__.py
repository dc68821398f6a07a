"""Where and how computation runs: devices, processes, progress, resizing. Nothing here knows what a student is.

Read `devices.py` first.
"""
