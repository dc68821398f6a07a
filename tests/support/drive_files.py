"""MCAP files of drives, read back by libraries that share no line with what writes them but the message definitions."""

from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from data_cache.frames.rig import pose_from_quaternion


@dataclass
class Bag:
    """Messages of a file by topic, with the times at which they were logged."""

    messages: dict[str, list] = field(default_factory=dict)
    logged_ns: dict[str, list[int]] = field(default_factory=dict)
    latched: set[str] = field(default_factory=set)

    def add(self, topic: str, logged_ns: int, message: object) -> None:
        self.messages.setdefault(topic, []).append(message)
        self.logged_ns.setdefault(topic, []).append(logged_ns)


def read_ros2(path: Path) -> Bag:
    """By `rosbags`."""
    from rosbags.interfaces import QosDurability
    from rosbags.rosbag2 import Reader
    from rosbags.typesys import Stores, get_types_from_msg, get_typestore

    bag = Bag()
    with Reader(path) as reader:
        store = get_typestore(Stores.EMPTY)  # so that the definitions are those in the file
        for connection in reader.connections:
            store.register(get_types_from_msg(connection.msgdef.data, connection.msgtype))
            (qos,) = connection.ext.offered_qos_profiles
            if qos.durability == QosDurability.TRANSIENT_LOCAL:
                bag.latched.add(connection.topic)
        for connection, logged_ns, data in reader.messages():
            message = store.deserialize_cdr(data, connection.msgtype)
            if connection.msgtype == "sensor_msgs/msg/PointCloud2":
                message = _ros2_cloud(message)
            bag.add(connection.topic, logged_ns, message)
    return bag


def _ros2_cloud(message) -> SimpleNamespace:
    """Points and their colours, as a reader of PointCloud2 finds them by name and offset."""
    fields = [(one.name, one.datatype, one.count) for one in message.fields]
    assert fields == [(name, 7, 1) for name in ("x", "y", "z", "rgb")]
    assert (message.height, message.row_step) == (1, message.point_step * message.width)
    rows = message.data.reshape(message.width, message.point_step)
    columns = [rows[:, one.offset : one.offset + 4].copy().view("<f4")[:, 0] for one in message.fields]
    packed = columns[3].copy().view("<u4")
    rgb = np.stack([packed >> 16 & 255, packed >> 8 & 255, packed & 255], 1)
    return SimpleNamespace(header=message.header, points_m=np.stack(columns[:3], 1), rgb=rgb)


def read_foxglove(path: Path) -> Bag:
    """By Foxglove's `mcap`, with the definitions in the file; values get the names that ROS 2 gives them."""
    from mcap.reader import make_reader
    from mcap_protobuf.decoder import DecoderFactory

    bag = Bag()
    with path.open("rb") as stream:
        reader = make_reader(stream, decoder_factories=[DecoderFactory()])
        assert reader.get_header().profile == ""
        for schema, channel, logged, message in reader.iter_decoded_messages():
            assert (schema.encoding, channel.message_encoding) == ("protobuf", "protobuf")
            assert logged.publish_time == logged.log_time
            bag.add(channel.topic, logged.log_time, _NAMED[schema.name](message))
    return bag


def _header(message, frame: str) -> SimpleNamespace:
    time = SimpleNamespace(sec=message.timestamp.seconds, nanosec=message.timestamp.nanos)
    return SimpleNamespace(stamp=time, frame_id=frame)


def _image(one) -> SimpleNamespace:
    return SimpleNamespace(
        header=_header(one, one.frame_id), encoding=one.encoding, height=one.height, width=one.width, step=one.step,
        is_bigendian=0, data=np.frombuffer(one.data, np.uint8),
    )  # fmt: skip


def _calibration(one) -> SimpleNamespace:
    D, K, R, P = (np.array(values) for values in (one.D, one.K, one.R, one.P))
    return SimpleNamespace(
        header=_header(one, one.frame_id), height=one.height, width=one.width, distortion_model=one.distortion_model,
        d=D, k=K, r=R, p=P,
    )  # fmt: skip


def _file(one) -> SimpleNamespace:
    data = np.frombuffer(one.data, np.uint8)
    return SimpleNamespace(header=_header(one, one.frame_id), format=one.format, data=data)


def _foxglove_cloud(one) -> SimpleNamespace:
    """Points and their colours as the schema has them: little-endian fields, types 7 (float32) and 1 (uint8)."""
    wanted = [*zip("xyz", (7, 7, 7), strict=True), *((name, 1) for name in ("red", "green", "blue", "alpha"))]
    assert [(field.name, field.type) for field in one.fields] == wanted
    rows = np.frombuffer(one.data, np.uint8).reshape(-1, one.point_stride)
    axes = [rows[:, field.offset : field.offset + 4].copy().view("<f4")[:, 0] for field in one.fields[:3]]
    red, green, blue, alpha = (rows[:, field.offset] for field in one.fields[3:])
    place, turn = one.pose.position, one.pose.orientation
    assert (place.x, place.y, place.z, turn.x, turn.y, turn.z, turn.w) == (0, 0, 0, 0, 0, 0, 1)
    assert (alpha == 255).all()
    rgb = np.stack([red, green, blue], 1)
    return SimpleNamespace(header=_header(one, one.frame_id), points_m=np.stack(axes, 1), rgb=rgb)


def _transforms(one) -> SimpleNamespace:
    return SimpleNamespace(transforms=[
        SimpleNamespace(
            header=_header(each, each.parent_frame_id),
            child_frame_id=each.child_frame_id,
            transform=SimpleNamespace(translation=each.translation, rotation=each.rotation),
        )
        for each in one.transforms
    ])  # fmt: skip


_NAMED = {
    "foxglove.RawImage": _image,
    "foxglove.CameraCalibration": _calibration,
    "foxglove.CompressedImage": _file,
    "foxglove.PointCloud": _foxglove_cloud,
    "foxglove.FrameTransforms": _transforms,
}


def stamp_ns(header) -> int:
    return header.stamp.sec * 10**9 + header.stamp.nanosec


def depth_of(message) -> np.ndarray:
    assert (message.encoding, message.step, message.is_bigendian) == ("32FC1", 4 * message.width, 0)
    return message.data.view("<f4").reshape(message.height, message.width)


class Frames:
    """What a tf buffer knows: the pose of each frame in its parent by time; static ones at any time."""

    def __init__(self, bag: Bag) -> None:
        self.parent: dict[str, str] = {}
        self.static: dict[str, np.ndarray] = {}
        self.moving: dict[tuple[str, int], np.ndarray] = {}
        for topic in ("/tf", "/tf_static"):
            for one in (one for message in bag.messages[topic] for one in message.transforms):
                q, t = one.transform.rotation, one.transform.translation
                matrix = pose_from_quaternion((q.w, q.x, q.y, q.z), (t.x, t.y, t.z))
                assert self.parent.setdefault(one.child_frame_id, one.header.frame_id) == one.header.frame_id
                if topic == "/tf":
                    self.moving[one.child_frame_id, stamp_ns(one.header)] = matrix
                else:
                    self.static[one.child_frame_id] = matrix

    def map_from(self, frame: str, at_ns: int) -> np.ndarray:
        if frame == "map":
            return np.eye(4)
        own = self.static[frame] if frame in self.static else self.moving[frame, at_ns]
        return self.map_from(self.parent[frame], at_ns) @ own
