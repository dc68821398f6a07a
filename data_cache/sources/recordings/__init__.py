"""Recordings of robots, ROS 2 bags and Foxglove MCAP, as frames; no ROS, no torch, and never a whole file in memory.

`indexing` goes through a bag once and keeps what is where. `cameras` and `choices` decide what it holds, `pairing` what
makes up a frame, `transforms` gives poses; `settings` overrides decisions, `decisions` prints them. Read `source.py`
first.
"""
