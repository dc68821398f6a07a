"""Where and how computation runs: devices, processes, progress, stop requests, resizing.

Nothing here depends on the student. Read `devices.py` first.
"""
