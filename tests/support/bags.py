"""Recordings written from any source: ROS 2 bags by `rosbags`, Foxglove MCAP by its protobuf support."""

import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from foxglove_schemas_protobuf.CameraCalibration_pb2 import CameraCalibration
from foxglove_schemas_protobuf.CompressedImage_pb2 import CompressedImage
from foxglove_schemas_protobuf.FrameTransform_pb2 import FrameTransform
from foxglove_schemas_protobuf.PackedElementField_pb2 import PackedElementField
from foxglove_schemas_protobuf.PointCloud_pb2 import PointCloud
from mcap.writer import CompressionType
from mcap.writer import Writer as McapWriter
from mcap_protobuf.writer import Writer as ProtobufWriter
from PIL import Image
from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore

from data_cache.frames.rig import Frame
from data_cache.sources.base import Source

TYPES = get_typestore(Stores.ROS2_HUMBLE)
LATENCY_NS = 5_000_000
"""How much later than its stamp each message is recorded."""
LIDAR_TOPIC = "/sensing/lidar/points"
FORMATS = ("mcap", "mcap-lz4", "mcap-zstd", "mcap-plain", "sqlite3", "sqlite3-messages", "sqlite3-file", "foxglove")


def ros(message_type: str, /, **values: Any) -> Any:
    """A ROS message: `sensor_msgs/msg/Image` for one, with these values."""
    return TYPES.types[message_type](**values)


def stamp(time_ns: int) -> Any:
    return ros("builtin_interfaces/msg/Time", sec=time_ns // 10**9, nanosec=time_ns % 10**9)


def header(time_ns: int, frame_id: str) -> Any:
    return ros("std_msgs/msg/Header", stamp=stamp(time_ns), frame_id=frame_id)


def quaternion(pose: np.ndarray) -> tuple[float, float, float, float]:
    """w, x, y, z of a rotation: the eigenvector of the largest eigenvalue (Bar-Itzhack 2000)."""
    R = pose[:3, :3]
    K = np.array(
        [
            [R[0, 0] - R[1, 1] - R[2, 2], 0, 0, 0],
            [R[0, 1] + R[1, 0], R[1, 1] - R[0, 0] - R[2, 2], 0, 0],
            [R[0, 2] + R[2, 0], R[1, 2] + R[2, 1], R[2, 2] - R[0, 0] - R[1, 1], 0],
            [R[2, 1] - R[1, 2], R[0, 2] - R[2, 0], R[1, 0] - R[0, 1], R[0, 0] + R[1, 1] + R[2, 2]],
        ]
    )
    x, y, z, w = np.linalg.eigh(K)[1][:, -1]
    return w, x, y, z


@dataclass(frozen=True, eq=False)
class Said:
    """A message before it is written: what it is, on which topic, when recorded, in both families of schemas."""

    topic: str
    log_ns: int
    type: str
    ros: Any
    foxglove: Any = None


def transform(time_ns: int, parent: str, child: str, pose: np.ndarray, topic: str = "/tf") -> Said:
    w, x, y, z = quaternion(pose)
    a, b, c = pose[:3, 3].tolist()
    stamped = ros(
        "geometry_msgs/msg/TransformStamped",
        header=header(time_ns, parent),
        child_frame_id=child,
        transform=ros(
            "geometry_msgs/msg/Transform",
            translation=ros("geometry_msgs/msg/Vector3", x=a, y=b, z=c),
            rotation=ros("geometry_msgs/msg/Quaternion", x=x, y=y, z=z, w=w),
        ),
    )
    protobuf = FrameTransform(parent_frame_id=parent, child_frame_id=child)
    protobuf.timestamp.FromNanoseconds(time_ns)
    protobuf.translation.x, protobuf.translation.y, protobuf.translation.z = a, b, c
    protobuf.rotation.w, protobuf.rotation.x, protobuf.rotation.y, protobuf.rotation.z = w, x, y, z
    message = ros("tf2_msgs/msg/TFMessage", transforms=[stamped])
    return Said(topic, time_ns + LATENCY_NS, "tf2_msgs/msg/TFMessage", message, protobuf)


def odometry(time_ns: int, parent: str, child: str, pose: np.ndarray, topic: str = "/odom") -> Said:
    w, x, y, z = quaternion(pose)
    a, b, c = pose[:3, 3].tolist()
    zero = ros("geometry_msgs/msg/Vector3", x=0.0, y=0.0, z=0.0)
    message = ros(
        "nav_msgs/msg/Odometry",
        header=header(time_ns, parent),
        child_frame_id=child,
        pose=ros(
            "geometry_msgs/msg/PoseWithCovariance",
            pose=ros(
                "geometry_msgs/msg/Pose",
                position=ros("geometry_msgs/msg/Point", x=a, y=b, z=c),
                orientation=ros("geometry_msgs/msg/Quaternion", x=x, y=y, z=z, w=w),
            ),
            covariance=np.zeros(36),
        ),
        twist=ros(
            "geometry_msgs/msg/TwistWithCovariance",
            twist=ros("geometry_msgs/msg/Twist", linear=zero, angular=zero),
            covariance=np.zeros(36),
        ),
    )
    return Said(topic, time_ns + LATENCY_NS, "nav_msgs/msg/Odometry", message)


def calibration(
    time_ns: int,
    topic: str,
    frame: str,
    size: tuple[int, int],
    K: np.ndarray,
    model: str = "plumb_bob",
    D: Iterable[float] = (),
    P: np.ndarray | None = None,
    **more: Any,
) -> Said:
    """The calibration of a camera of (W, H) pixels; K has its pixel centres at integers."""
    K = np.asarray(K, np.float64)
    P = np.hstack([K, np.zeros((3, 1))]) if P is None else P
    roi = ros("sensor_msgs/msg/RegionOfInterest", x_offset=0, y_offset=0, height=0, width=0, do_rectify=False)
    values = {"binning_x": 0, "binning_y": 0, "roi": roi} | more
    message = ros(
        "sensor_msgs/msg/CameraInfo", header=header(time_ns, frame), width=size[0], height=size[1],
        distortion_model=model, d=np.array(list(D), np.float64), k=K.ravel(), r=np.eye(3).ravel(), p=P.ravel(),
        **values,
    )  # fmt: skip
    protobuf = CameraCalibration(
        frame_id=frame, width=size[0], height=size[1], distortion_model=model, D=list(D), K=K.ravel(),
        R=np.eye(3).ravel(), P=P.ravel(),
    )  # fmt: skip
    protobuf.timestamp.FromNanoseconds(time_ns)
    return Said(topic, time_ns + LATENCY_NS, "sensor_msgs/msg/CameraInfo", message, protobuf)


def image_file(time_ns: int, topic: str, frame: str, data: bytes, kind: str = "jpeg") -> Said:
    message = ros(
        "sensor_msgs/msg/CompressedImage",
        header=header(time_ns, frame), format=kind, data=np.frombuffer(data, np.uint8),
    )  # fmt: skip
    protobuf = CompressedImage(frame_id=frame, format=kind, data=data)
    protobuf.timestamp.FromNanoseconds(time_ns)
    return Said(topic, time_ns + LATENCY_NS, "sensor_msgs/msg/CompressedImage", message, protobuf)


def raw_image(time_ns: int, topic: str, frame: str, rows: np.ndarray, encoding: str) -> Said:
    """Rows of pixels (H, W, channels), uint8."""
    height, width = rows.shape[:2]
    message = ros(
        "sensor_msgs/msg/Image", header=header(time_ns, frame), height=height, width=width, encoding=encoding,
        is_bigendian=0, step=rows.size // height, data=np.ascontiguousarray(rows).reshape(-1),
    )  # fmt: skip
    return Said(topic, time_ns + LATENCY_NS, "sensor_msgs/msg/Image", message)


def cloud(time_ns: int, topic: str, frame: str, points: np.ndarray, *, big_endian: bool = False) -> Said:
    """A cloud of the fields x, y, z that points (N, 3), float32 or float64, fill."""
    code, size = {"f4": (7, 4), "f8": (8, 8)}[points.dtype.str[1:]], points.dtype.itemsize
    fields = [
        ros("sensor_msgs/msg/PointField", name=name, offset=i * size, datatype=code[0], count=1)
        for i, name in enumerate("xyz")
    ]
    data = points.astype(points.dtype.newbyteorder(">" if big_endian else "<")).tobytes()
    message = cloud_message(time_ns, frame, len(points), fields, 3 * size, data, big_endian=big_endian)
    protobuf = PointCloud(frame_id=frame, point_stride=3 * size, data=data)
    protobuf.timestamp.FromNanoseconds(time_ns)
    protobuf.pose.orientation.w = 1.0
    for i, name in enumerate("xyz"):
        kind = PackedElementField.FLOAT32 if size == 4 else PackedElementField.FLOAT64
        protobuf.fields.add(name=name, offset=i * size, type=kind)
    return Said(topic, time_ns + LATENCY_NS, "sensor_msgs/msg/PointCloud2", message, protobuf)


def cloud_message(
    time_ns: int, frame: str, count: int, fields: list[Any], step: int, data: bytes, *, big_endian: bool = False
) -> Any:
    return ros(
        "sensor_msgs/msg/PointCloud2", header=header(time_ns, frame), height=1, width=count, fields=fields,
        is_bigendian=big_endian, point_step=step, row_step=step * count, is_dense=True,
        data=np.frombuffer(data, np.uint8),
    )  # fmt: skip


def write_bag(path: Path, messages: Iterable[Said], kind: str = "mcap", chunk_bytes: int = 2**20) -> Path:
    """Write messages in the order of recording; `kind` is one of FORMATS. Returns a folder, or an MCAP file."""
    assert kind in FORMATS, kind
    if kind == "foxglove":
        with path.with_suffix(".mcap").open("wb") as stream, ProtobufWriter(stream, chunk_size=chunk_bytes) as writer:
            for one in messages:
                assert one.foxglove is not None, one.topic
                writer.write_message(one.topic, one.foxglove, log_time=one.log_ns, publish_time=one.log_ns)
        return path.with_suffix(".mcap")
    if kind.startswith("mcap-"):
        return _write_mcap(path.with_suffix(".mcap"), messages, kind.removeprefix("mcap-"), chunk_bytes)
    plugin = StoragePlugin.MCAP if kind == "mcap" else StoragePlugin.SQLITE3
    bag = Writer(path, version=9, storage_plugin=plugin)
    if kind.startswith("sqlite3-"):
        mode = CompressionMode.MESSAGE if kind == "sqlite3-messages" else CompressionMode.FILE
        bag.set_compression(mode, CompressionFormat.ZSTD)
    with bag:
        topics: dict[str, Any] = {}
        for one in messages:
            if one.topic not in topics:
                topics[one.topic] = bag.add_connection(one.topic, one.type, typestore=TYPES)
            bag.write(topics[one.topic], one.log_ns, serialized(one))
    return path


def serialized(one: Said) -> bytes:
    """The bytes of a ROS message; a damaged one is bytes already."""
    return one.ros if isinstance(one.ros, bytes) else bytes(TYPES.serialize_cdr(one.ros, one.type))


def _write_mcap(path: Path, messages: Iterable[Said], compression: str, chunk_bytes: int) -> Path:
    kinds = {"lz4": CompressionType.LZ4, "zstd": CompressionType.ZSTD, "plain": CompressionType.NONE}
    with path.open("wb") as stream:
        writer = McapWriter(
            stream, chunk_size=chunk_bytes, compression=kinds[compression], use_chunking=compression != "plain"
        )
        writer.start(profile="ros2")
        channels: dict[str, int] = {}
        for one in messages:
            if one.topic not in channels:
                text, _ = TYPES.generate_msgdef(one.type, ros_version=2)
                schema = writer.register_schema(one.type, "ros2msg", text.encode())
                channels[one.topic] = writer.register_channel(one.topic, "cdr", schema)
            data = serialized(one)
            writer.add_message(channels[one.topic], one.log_ns, data, one.log_ns)
        writer.finish()
    return path


@dataclass
class Mounts:
    """ego_from_sensor of a source's sensors, as its first frame that has them says."""

    by_name: dict[str, np.ndarray] = field(default_factory=dict)

    def ego_from(self, name: str, world_from_sensor: np.ndarray, world_from_ego: np.ndarray) -> np.ndarray:
        return self.by_name.setdefault(name, np.linalg.inv(world_from_ego) @ world_from_sensor)


def lidar_time_ns(frame: Frame) -> int:
    """A time stamp for a sweep: in the middle of those of the cameras, and none of theirs."""
    times = [view.time_ns for view in frame.views if view is not None]
    middle = (min(times) + max(times)) // 2 + 1
    while middle in times:
        middle += 1
    return middle


def sweep_of(frame: Frame) -> tuple[np.ndarray, np.ndarray]:
    """Points as float32 in the frame of the LiDAR, and its pose; points of the world are put into the vehicle."""
    sweep = frame.load_sweep()
    pose = sweep.world_from_lidar
    if np.array_equal(pose, np.eye(4)):
        pose = frame.world_from_ego
        points = (sweep.points_m - pose[:3, 3]) @ pose[:3, :3]
        return points.astype(np.float32), pose
    return sweep.points_m.astype(np.float32), pose


def messages_of(source: Source, frame_ids: Iterable[str], *, raw: str = "") -> list[Said]:
    """A recording of frames: images, calibrations, clouds, and the vehicle's pose at every stamp, sorted by time.

    Images are the files of the source; rendered ones become PNG, or raw pixels of the encoding `raw`.
    """
    return sorted(_messages(source, frame_ids, raw), key=lambda one: one.log_ns)


def _messages(source: Source, frame_ids: Iterable[str], raw: str) -> Iterator[Said]:
    mounts, known = Mounts(), set()
    for frame_id in frame_ids:
        frame = source.frame(frame_id)
        first_ns = min(view.time_ns for view in frame.views if view is not None)
        for view in frame.views:
            if view is None:
                continue
            camera, name = view.camera, view.camera.name
            mount = mounts.ego_from(name, view.world_from_cam, frame.world_from_ego)
            optical = f"{name}_optical"
            if name not in known:
                known.add(name)
                yield transform(first_ns, "base_link", optical, mount, "/tf_static")
            K = camera.K_px - np.array([[0, 0, 0.5], [0, 0, 0.5], [0, 0, 0]])
            size = (camera.width_px, camera.height_px)
            yield calibration(view.time_ns, f"/sensing/{name}/camera_info", optical, size, K)
            yield transform(view.time_ns, "map", "base_link", view.world_from_cam @ np.linalg.inv(mount))
            if view.image_file is not None:
                data = view.image_file.read_bytes()
                kind = "png" if data.startswith(b"\x89PNG") else "jpeg"
                yield image_file(view.time_ns, f"/sensing/{name}/image/compressed", optical, data, kind)
            elif raw:
                rows = view.load_image()[..., ::-1] if raw == "bgr8" else view.load_image()
                yield raw_image(view.time_ns, f"/sensing/{name}/image", optical, rows, raw)
            else:
                stream = io.BytesIO()
                Image.fromarray(view.load_image()).save(stream, "PNG", compress_level=1)
                yield image_file(view.time_ns, f"/sensing/{name}/image/compressed", optical, stream.getvalue(), "png")
        if frame.load_sweep is not None:
            points, pose = sweep_of(frame)
            mount = mounts.ego_from("lidar", pose, frame.world_from_ego)
            time_ns = lidar_time_ns(frame)
            if "lidar" not in known:
                known.add("lidar")
                yield transform(first_ns, "base_link", "lidar", mount, "/tf_static")
            yield transform(time_ns, "map", "base_link", pose @ np.linalg.inv(mount))
            yield cloud(time_ns, LIDAR_TOPIC, "lidar", points)
