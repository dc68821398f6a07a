"""The doctor's measurements on a data set: files, calibration, camera ring.

`pipeline/doctor` turns them into findings. Read `readable.py` first.
"""
