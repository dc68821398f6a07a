"""Where and how computation runs: devices, processes, progress, resizing. Nothing here depends on the student.

Read `devices.py` first.
"""
