"""Messages of ROS 2 in CDR, by the definitions that rosbags has: depth, cameras, images, points, transforms."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float32

from data_cache.frames.rig import Camera
from pipeline.viewers.drive_messages import Message, Stamp, Transform, depth_values, intrinsics_px, quaternion_xyzw
from stages.inference.point_cloud import PointCloud

if TYPE_CHECKING:
    from rosbags.typesys.store import Msg, Msgarg

POINT = np.dtype([("x", "<f4"), ("y", "<f4"), ("z", "<f4"), ("bgra", "u1", 4)])
"""A point of a cloud, 16 bytes; rviz reads the last four as one float32 named rgb, whose bytes are blue, green, red."""


class Ros2Messages:
    """Messages of ROS 2; see `Messages`."""

    profile = "ros2"
    message_encoding = "cdr"
    schema_encoding = "ros2msg"

    def __init__(self) -> None:
        from rosbags.typesys import Stores, get_typestore

        self._store = get_typestore(Stores.ROS2_JAZZY)

    def schema(self, type_name: str) -> bytes:
        """The definition of a type and of all types that it holds, as `ros2msg` has it."""
        text, _ = self._store.generate_msgdef(type_name, ros_version=2)
        return text.encode()

    def channel_metadata(self, latched: bool) -> dict[str, str]:
        """How a topic is offered when the file is replayed; a latched one reaches subscribers that come later."""
        from rosbags.interfaces import Qos, QosDurability, QosHistory, QosLiveliness, QosReliability, QosTime
        from rosbags.rosbag2.metadata import dump_qos_v8

        unlimited = QosTime(0, 0)
        qos = Qos(
            QosHistory.KEEP_LAST,
            1 if latched else 10,
            QosReliability.RELIABLE,
            QosDurability.TRANSIENT_LOCAL if latched else QosDurability.VOLATILE,
            unlimited,
            unlimited,
            QosLiveliness.AUTOMATIC,
            unlimited,
            False,
        )
        return {"offered_qos_profiles": dump_qos_v8([qos])}  # rosbag2 of any version reads this one

    def depth(self, stamp: Stamp, depth_m: Float32[np.ndarray, "H W"]) -> Message:
        """`sensor_msgs/Image` 32FC1: z in metres; NaN, where depth is 0, is no depth (REP 118)."""
        height, width = depth_m.shape
        return self._message(
            "sensor_msgs/msg/Image",
            header=self._header(stamp),
            height=height,
            width=width,
            encoding="32FC1",
            is_bigendian=0,
            step=4 * width,
            data=_bytes(depth_values(depth_m)),
        )

    def camera_info(self, stamp: Stamp, camera: Camera) -> Message:
        """`sensor_msgs/CameraInfo` of a pinhole camera without distortion."""
        K_px = intrinsics_px(camera)
        return self._message(
            "sensor_msgs/msg/CameraInfo",
            header=self._header(stamp),
            height=camera.height_px,
            width=camera.width_px,
            distortion_model="plumb_bob",
            d=np.zeros(5),
            k=K_px.ravel(),
            r=np.eye(3).ravel(),
            p=np.hstack([K_px, np.zeros((3, 1))]).ravel(),
            binning_x=0,
            binning_y=0,
            roi=self._make("sensor_msgs/msg/RegionOfInterest", x_offset=0, y_offset=0, height=0, width=0,
                           do_rectify=False),
        )  # fmt: skip

    def image(self, stamp: Stamp, format_name: str, data: bytes) -> Message:
        """`sensor_msgs/CompressedImage` of an encoded image; its format is jpeg or png."""
        return self._message(
            "sensor_msgs/msg/CompressedImage",
            header=self._header(stamp),
            format=format_name,
            data=np.frombuffer(data, np.uint8),
        )

    def points(self, stamp: Stamp, cloud: PointCloud) -> Message:
        """`sensor_msgs/PointCloud2` of fields x, y, z (float32, metres) and rgb, as rviz packs it."""
        count = len(cloud.points_m)
        points = np.zeros(count, POINT)
        for i, axis in enumerate("xyz"):
            points[axis] = cloud.points_m[:, i]
        points["bgra"][:, :3] = cloud.rgb[:, ::-1]
        type_name = "sensor_msgs/msg/PointField"
        fields = [
            self._make(type_name, name=name, offset=4 * i, datatype=7, count=1)  # 7: FLOAT32
            for i, name in enumerate(("x", "y", "z", "rgb"))
        ]
        return self._message(
            "sensor_msgs/msg/PointCloud2",
            header=self._header(stamp),
            height=1,
            width=count,
            fields=fields,
            is_bigendian=False,
            point_step=POINT.itemsize,
            row_step=POINT.itemsize * count,
            data=_bytes(points),
            is_dense=True,
        )

    def transforms(self, transforms: Sequence[Transform]) -> Message:
        """`tf2_msgs/TFMessage`."""
        return self._message("tf2_msgs/msg/TFMessage", transforms=[self._transform(one) for one in transforms])

    def _transform(self, transform: Transform) -> "Msg":
        x, y, z = transform.pose[:3, 3].tolist()
        qx, qy, qz, qw = quaternion_xyzw(transform.pose)
        return self._make(
            "geometry_msgs/msg/TransformStamped",
            header=self._header(transform.stamp),
            child_frame_id=transform.child,
            transform=self._make(
                "geometry_msgs/msg/Transform",
                translation=self._make("geometry_msgs/msg/Vector3", x=x, y=y, z=z),
                rotation=self._make("geometry_msgs/msg/Quaternion", x=qx, y=qy, z=qz, w=qw),
            ),
        )

    def _header(self, stamp: Stamp) -> "Msg":
        seconds, nanoseconds = divmod(stamp.time_ns, 10**9)
        time = self._make("builtin_interfaces/msg/Time", sec=seconds, nanosec=nanoseconds)
        return self._make("std_msgs/msg/Header", stamp=time, frame_id=stamp.frame)

    def _message(self, type_name: str, **values: "Msgarg") -> Message:
        message = self._make(type_name, **values)
        return Message(type_name, bytes(self._store.serialize_cdr(message, type_name, little_endian=True)))

    def _make(self, type_name: str, **values: "Msgarg") -> "Msg":
        return self._store.types[type_name](**values)


def _bytes(values: np.ndarray) -> np.ndarray:
    return np.frombuffer(np.ascontiguousarray(values).data.cast("B"), np.uint8)
