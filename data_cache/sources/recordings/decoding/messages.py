"""Messages of ROS 2 and Foxglove as typed values: images, calibrations, point clouds, transforms, odometry.

Decoding checks what is needed to use a value safely; what it means for a frame is decided elsewhere.
"""

import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from jaxtyping import Float

from data_cache.errors import FrameError
from data_cache.frames.rig import pose_from_quaternion
from data_cache.sources.recordings.containers.packed import Channel, missing_extra

IMAGE, CALIBRATION, CLOUD, TRANSFORMS, ODOMETRY = "image", "calibration", "cloud", "transforms", "odometry"
KINDS = {
    "sensor_msgs/msg/Image": IMAGE,
    "sensor_msgs/msg/CompressedImage": IMAGE,
    "sensor_msgs/msg/CameraInfo": CALIBRATION,
    "sensor_msgs/msg/PointCloud2": CLOUD,
    "tf2_msgs/msg/TFMessage": TRANSFORMS,
    "nav_msgs/msg/Odometry": ODOMETRY,
    "foxglove.RawImage": IMAGE,
    "foxglove.CompressedImage": IMAGE,
    "foxglove.CameraCalibration": CALIBRATION,
    "foxglove.PointCloud": CLOUD,
    "foxglove.FrameTransform": TRANSFORMS,
    "foxglove.FrameTransforms": TRANSFORMS,
}
"""What the types of messages are that are read."""
_ENCODINGS = {"sensor_msgs": "cdr", "tf2_msgs": "cdr", "nav_msgs": "cdr", "foxglove": "protobuf"}
# sensor_msgs/PointField and foxglove.PackedElementField number their types differently.
_ROS_CODES = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 8: "f8"}
_FOXGLOVE_CODES = {1: "u1", 2: "i1", 3: "u2", 4: "i2", 5: "u4", 6: "i4", 7: "f4", 8: "f8"}


@dataclass(frozen=True, eq=False)
class ImageMessage:
    """An image: a file (`encoding` is empty), or rows of pixels.

    Attributes:
        stamp_ns: when it was taken.
        frame_id: the camera's coordinate frame.
        encoding: of raw pixels, as in ROS: rgb8, bayer_rggb8, yuv422, ...; empty for a file.
        format: what the message says of its file, as "jpeg"; empty for raw pixels.
        height, width, step_bytes, big_endian: of raw pixels.
        data: the file, or the rows.
    """

    stamp_ns: int
    frame_id: str
    encoding: str
    format: str
    height: int
    width: int
    step_bytes: int
    big_endian: bool
    data: bytes


@dataclass(frozen=True)
class CalibrationMessage:
    """The calibration of a camera, as in `sensor_msgs/CameraInfo`; pixel centres lie at integers.

    Attributes:
        frame_id: the camera's coordinate frame.
        width, height: of the images, pixels.
        model: name of the distortion model.
        D, K, P: coefficients, (9,) intrinsics and (12,) projection of the rectified image, by rows.
        is_cropped: whether binning or a region of interest is set.
    """

    frame_id: str
    width: int
    height: int
    model: str
    D: tuple[float, ...]
    K: tuple[float, ...]
    P: tuple[float, ...]
    is_cropped: bool


@dataclass(frozen=True, eq=False)
class CloudMessage:
    """A point cloud as it was recorded; `clouds.points` checks and decodes it.

    Attributes:
        stamp_ns, frame_id: when and in which coordinate frame it was measured.
        width, height: points a row, rows.
        fields: name, offset in bytes and numpy type (no byte order) of each.
        point_bytes, row_bytes: from one point to the next, from one row to the next.
        big_endian: byte order of the numbers.
        data: the points.
        frame_from_points: (4, 4) pose of the points in their frame; None if they are in it.
    """

    stamp_ns: int
    frame_id: str
    width: int
    height: int
    fields: tuple[tuple[str, int, str], ...]
    point_bytes: int
    row_bytes: int
    big_endian: bool
    data: bytes
    frame_from_points: Float[np.ndarray, "4 4"] | None = None


@dataclass(frozen=True)
class TransformMessage:
    """Where a coordinate frame (`child`) is in another: parent_from_child, as quaternion and translation in metres."""

    stamp_ns: int
    parent: str
    child: str
    wxyz: tuple[float, float, float, float]
    xyz_m: tuple[float, float, float]


Message = ImageMessage | CalibrationMessage | CloudMessage | tuple[TransformMessage, ...]


def kind_of(channel: Channel) -> str | None:
    """What a topic holds, one of the values of KINDS; None if its type or encoding is not read."""
    kind = KINDS.get(channel.type)
    return kind if kind and channel.encoding == _ENCODINGS[channel.type.replace("/", ".").split(".")[0]] else None


def stamp_ns(channel: Channel, data: memoryview) -> int:
    """The time in the header of an image, a calibration, a cloud or an odometry message. Raises FrameError."""
    if channel.encoding == "protobuf":
        with _decoding(channel):
            return _time_ns(_foxglove_type(channel).FromString(bytes(data)).timestamp)
    if len(data) < 12:
        raise FrameError(f"{channel.topic}: expected a message of {channel.type}, found {len(data)} bytes")
    # CDR: byte 1 is 1 if little endian; after 4 bytes the header begins, with seconds and nanoseconds.
    seconds, nanoseconds = struct.unpack_from("<iI" if data[1] & 1 else ">iI", data, 4)
    return int(seconds) * 10**9 + int(nanoseconds)


def decode(channel: Channel, data: memoryview) -> Message:
    """A message as a typed value.

    Raises:
        FrameError: if it is damaged, or of a type that is not read.
        SettingError: if the extra `bags` is missing.
    """
    if kind_of(channel) is None:
        raise FrameError(f"{channel.topic}: messages of {channel.type} ({channel.encoding}) are not read")
    with _decoding(channel):
        if channel.encoding == "protobuf":
            return _FOXGLOVE[channel.type](_foxglove_type(channel).FromString(bytes(data)))
        return _ROS[channel.type](_ros_types().deserialize_cdr(data, channel.type))


@contextmanager
def _decoding(channel: Channel) -> Iterator[None]:
    """Turn whatever a decoder raises on damaged bytes into a FrameError that names the topic."""
    try:
        yield
    except ImportError as error:
        raise missing_extra(error) from error
    except MemoryError:
        raise
    except Exception as error:  # struct.error, IndexError, UnicodeDecodeError, DecodeError, ...
        raise FrameError(
            f"{channel.topic}: expected a message of {channel.type}, found damage: {error!r:.200}"
        ) from error


@lru_cache(maxsize=1)
def _ros_types() -> Any:
    from rosbags.typesys import Stores, get_typestore

    return get_typestore(Stores.ROS2_HUMBLE)  # the types that are read are the same in every release


@lru_cache(maxsize=64)
def _foxglove_type(channel: Channel) -> Any:
    from google.protobuf.descriptor_pb2 import FileDescriptorSet
    from google.protobuf.descriptor_pool import DescriptorPool
    from google.protobuf.message_factory import GetMessageClass

    pool, waiting = DescriptorPool(), {file.name: file for file in FileDescriptorSet.FromString(channel.schema).file}

    def add(name: str) -> None:
        file = waiting.pop(name, None)
        if file is not None:
            for needed in file.dependency:
                add(needed)
            pool.Add(file)

    while waiting:
        add(next(iter(waiting)))
    return GetMessageClass(pool.FindMessageTypeByName(channel.type))


def _time_ns(time: Any) -> int:
    return int(time.seconds) * 10**9 + int(time.nanos)


def _ros_ns(header: Any) -> int:
    return int(header.stamp.sec) * 10**9 + int(header.stamp.nanosec)


def _ros_image(one: Any) -> ImageMessage:
    return ImageMessage(
        _ros_ns(one.header), one.header.frame_id, one.encoding, "", one.height, one.width, one.step,
        bool(one.is_bigendian), one.data.tobytes(),
    )  # fmt: skip


def _ros_file(one: Any) -> ImageMessage:
    return ImageMessage(_ros_ns(one.header), one.header.frame_id, "", one.format, 0, 0, 0, False, one.data.tobytes())


def _ros_calibration(one: Any) -> CalibrationMessage:
    roi = one.roi
    whole = (roi.x_offset, roi.y_offset) == (0, 0) and roi.width in (0, one.width) and roi.height in (0, one.height)
    return CalibrationMessage(
        one.header.frame_id, one.width, one.height, one.distortion_model, tuple(one.d.tolist()), tuple(one.k.tolist()),
        tuple(one.p.tolist()), not whole or one.binning_x > 1 or one.binning_y > 1,
    )  # fmt: skip


def _ros_cloud(one: Any) -> CloudMessage:
    fields = tuple(
        (field.name, int(field.offset), _ROS_CODES.get(int(field.datatype), f"unknown type {field.datatype}"))
        for field in one.fields
    )
    return CloudMessage(
        _ros_ns(one.header), one.header.frame_id, one.width, one.height, fields, one.point_step, one.row_step,
        bool(one.is_bigendian), one.data.tobytes(),
    )  # fmt: skip


def _ros_transforms(one: Any) -> tuple[TransformMessage, ...]:
    return tuple(
        TransformMessage(
            _ros_ns(each.header), each.header.frame_id.lstrip("/"), each.child_frame_id.lstrip("/"),
            *_turn_and_place(each.transform.rotation, each.transform.translation),
        )
        for each in one.transforms
    )  # fmt: skip


def _ros_odometry(one: Any) -> tuple[TransformMessage, ...]:
    pose = one.pose.pose
    return (
        TransformMessage(
            _ros_ns(one.header), one.header.frame_id.lstrip("/"), one.child_frame_id.lstrip("/"),
            *_turn_and_place(pose.orientation, pose.position),
        ),
    )  # fmt: skip


def _foxglove_image(one: Any) -> ImageMessage:
    return ImageMessage(
        _time_ns(one.timestamp), one.frame_id, one.encoding, "", one.height, one.width, one.step, False, one.data
    )


def _foxglove_file(one: Any) -> ImageMessage:
    return ImageMessage(_time_ns(one.timestamp), one.frame_id, "", one.format, 0, 0, 0, False, one.data)


def _foxglove_calibration(one: Any) -> CalibrationMessage:
    return CalibrationMessage(
        one.frame_id, one.width, one.height, one.distortion_model, tuple(one.D), tuple(one.K), tuple(one.P), False
    )


def _foxglove_cloud(one: Any) -> CloudMessage:
    fields = tuple(
        (field.name, field.offset, _FOXGLOVE_CODES.get(field.type, f"unknown type {field.type}"))
        for field in one.fields
    )
    pose = None
    if one.HasField("pose"):
        pose = pose_from_quaternion(*_turn_and_place(one.pose.orientation, one.pose.position))
    count = len(one.data) // max(one.point_stride, 1)
    return CloudMessage(
        _time_ns(one.timestamp), one.frame_id, count, 1, fields, one.point_stride, len(one.data), False, one.data, pose
    )


def _foxglove_transform(one: Any) -> tuple[TransformMessage, ...]:
    turn_and_place = _turn_and_place(one.rotation, one.translation)
    parent, child = one.parent_frame_id, one.child_frame_id
    return (TransformMessage(_time_ns(one.timestamp), parent, child, *turn_and_place),)


def _foxglove_transforms(one: Any) -> tuple[TransformMessage, ...]:
    return tuple(found for each in one.transforms for found in _foxglove_transform(each))


def _turn_and_place(rotation: Any, place: Any) -> tuple[tuple[float, float, float, float], tuple[float, float, float]]:
    return (rotation.w, rotation.x, rotation.y, rotation.z), (place.x, place.y, place.z)


_ROS: dict[str, Callable[[Any], Message]] = {
    "sensor_msgs/msg/Image": _ros_image,
    "sensor_msgs/msg/CompressedImage": _ros_file,
    "sensor_msgs/msg/CameraInfo": _ros_calibration,
    "sensor_msgs/msg/PointCloud2": _ros_cloud,
    "tf2_msgs/msg/TFMessage": _ros_transforms,
    "nav_msgs/msg/Odometry": _ros_odometry,
}
_FOXGLOVE: dict[str, Callable[[Any], Message]] = {
    "foxglove.RawImage": _foxglove_image,
    "foxglove.CompressedImage": _foxglove_file,
    "foxglove.CameraCalibration": _foxglove_calibration,
    "foxglove.PointCloud": _foxglove_cloud,
    "foxglove.FrameTransform": _foxglove_transform,
    "foxglove.FrameTransforms": _foxglove_transforms,
}
