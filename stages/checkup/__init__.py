"""What the doctor measures of a data set: files, calibration, camera ring.

What it says about them is in `pipeline/doctor`. Read `files.py` first.
"""
