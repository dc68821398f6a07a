"""Files of messages: MCAP and the sqlite3 of ROS 2 bags, as bytes with a topic and a time.

What the bytes mean is not known here. Read `opening.py` first.
"""
