"""Messages of ROS 2, value by value."""

import importlib.util

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_cache.errors import FrameError
from data_cache.frames.rig import pose_from_quaternion
from pipeline.viewers.drive_messages import Stamp, quaternion_xyzw
from pipeline.viewers.ros2_messages import Ros2Messages
from stages.inference.point_cloud import PointCloud

needs_rosbags = pytest.mark.skipif(
    importlib.util.find_spec("rosbags") is None, reason="ROS messages: pip install 'surround-distill[bags]'"
)


@given(st.tuples(*[st.floats(-1, 1)] * 4).filter(lambda q: np.linalg.norm(q) > 0.1))
def test_a_quaternion_gives_its_rotation_back(wxyz):
    pose = pose_from_quaternion(wxyz, (0.0, 0.0, 0.0))
    x, y, z, w = quaternion_xyzw(pose)
    assert w >= 0
    np.testing.assert_allclose(pose_from_quaternion((w, x, y, z), (0.0, 0.0, 0.0)), pose, atol=1e-12)


def test_a_quarter_turn_to_the_left_by_hand():
    pose = np.array([[0.0, -1, 0, 7], [1, 0, 0, 8], [0, 0, 1, 9], [0, 0, 0, 1]])
    np.testing.assert_allclose(quaternion_xyzw(pose), (0, 0, np.sqrt(0.5), np.sqrt(0.5)), atol=1e-15)


@needs_rosbags
def test_bytes_of_a_point_and_of_a_pixel_without_depth():
    """CDR by hand: the header takes 4 + 8 bytes and the name; then the values stand in little-endian order."""
    messages = Ros2Messages()
    cloud = PointCloud(np.array([[1.5, -2, 0.25]], np.float32), np.array([[10, 20, 30]], np.uint8))
    point = np.array([1.5, -2, 0.25], "<f4").tobytes() + bytes([30, 20, 10, 0])
    data = messages.points(Stamp(3_000_000_004, "base_link"), cloud).data
    assert data[:16] == bytes([0, 1, 0, 0, 3, 0, 0, 0, 4, 0, 0, 0, 10, 0, 0, 0])
    assert point in data
    depth = messages.depth(Stamp(0, "front"), np.array([[0, 2.5]], np.float32))
    assert np.isnan(np.frombuffer(depth.data[-8:], "<f4")[0])
    assert depth.data[-4:] == np.float32(2.5).tobytes()


@pytest.mark.parametrize("time_ns", [-1, 2**31 * 10**9])
def test_a_time_that_ros_does_not_have_is_refused(time_ns):
    with pytest.raises(FrameError, match="front: expected a time stamp before 2038"):
        Stamp(time_ns, "front")
    Stamp(2**31 * 10**9 - 1, "front")
