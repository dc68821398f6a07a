from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.bags import TYPES, cloud, image_file, odometry
from support.small_recording import at, jpeg, points, recording, world_from_ego

from data_cache.errors import FrameError
from data_cache.sources.recordings.containers.packed import Channel
from data_cache.sources.recordings.decoding.messages import decode, kind_of, stamp_ns

SAID = {one.type: one for one in [*recording(["front"]), odometry(at(0), "odom", "base_link", world_from_ego(1))]}
BYTES = {name: bytes(TYPES.serialize_cdr(one.ros, name)) for name, one in SAID.items()}
OURS = sorted(set(SAID) - {"tf2_msgs/msg/TFMessage"})


@pytest.mark.parametrize("name", OURS)
def test_the_stamp_is_read_without_decoding_in_either_byte_order(name):
    channel = Channel("/t", name, "cdr")
    little = stamp_ns(channel, memoryview(BYTES[name]))
    assert little == at(
        1.91 if name != "sensor_msgs/msg/PointCloud2" and "nav" not in name else (0 if "nav" in name else 1.9)
    )
    big = bytes(TYPES.serialize_cdr(SAID[name].ros, name, little_endian=False))
    assert stamp_ns(channel, memoryview(big)) == little


def test_an_image_and_a_cloud_say_in_both_families_the_same():
    for one in (image_file(at(0), "/i", "cam", jpeg(3)), cloud(at(0), "/c", "lidar", points(2))):
        ros = decode(Channel("/t", one.type, "cdr"), memoryview(bytes(TYPES.serialize_cdr(one.ros, one.type))))
        kind = type(one.foxglove).DESCRIPTOR
        schema = _schema(kind)
        protobuf = decode(
            Channel("/t", kind.full_name, "protobuf", schema), memoryview(one.foxglove.SerializeToString())
        )
        for name in ("stamp_ns", "frame_id", "data", "width", "height"):
            assert getattr(ros, name) == getattr(protobuf, name)


def test_a_type_or_an_encoding_that_is_not_read_is_named():
    assert kind_of(Channel("/t", "sensor_msgs/msg/Image", "json")) is None
    with pytest.raises(FrameError, match=r"/t: messages of foxglove.Grid \(protobuf\) are not read"):
        decode(Channel("/t", "foxglove.Grid", "protobuf"), memoryview(b""))


@pytest.mark.parametrize("name", sorted(SAID))
@settings(max_examples=40)
@given(st.data())
def test_damaged_messages_are_decoded_or_refused(name, data):
    start = BYTES[name]
    cut = data.draw(st.integers(0, len(start)))
    changed = bytearray(start[:cut])
    for _ in range(data.draw(st.integers(0, 4))):
        if changed:
            changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    channel = Channel("/t", name, "cdr")
    with suppress(FrameError):
        stamp_ns(channel, memoryview(bytes(changed)))
        decode(channel, memoryview(bytes(changed)))


def test_a_turned_pose_comes_through():
    (one,) = decode(Channel("/odom", "nav_msgs/msg/Odometry", "cdr"), memoryview(BYTES["nav_msgs/msg/Odometry"]))
    assert (one.parent, one.child) == ("odom", "base_link")
    np.testing.assert_allclose(one.wxyz, [np.cos(0.1), 0, 0, np.sin(0.1)], atol=1e-12)
    assert one.xyz_m == (10.0, 0.0, 0.0)


def _schema(descriptor) -> bytes:
    from google.protobuf.descriptor_pb2 import FileDescriptorSet

    files, found = [descriptor.file], {}
    while files:
        file = files.pop()
        found[file.name] = file
        files += [one for one in file.dependencies if one.name not in found]
    out = FileDescriptorSet()
    for file in found.values():
        file.CopyToProto(out.file.add())
    return out.SerializeToString()
