"""Bytes of messages as typed values: images, calibrations, clouds, transforms; ROS 2 and Foxglove.

Everything comes from strangers and is checked before it is used. Read `messages.py` first.
"""
