"""Messages of Foxglove in protobuf, by the definitions that its package has; importing this needs the extra `bags`."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from foxglove_schemas_protobuf.CameraCalibration_pb2 import CameraCalibration
from foxglove_schemas_protobuf.CompressedImage_pb2 import CompressedImage
from foxglove_schemas_protobuf.FrameTransform_pb2 import FrameTransform
from foxglove_schemas_protobuf.FrameTransforms_pb2 import FrameTransforms
from foxglove_schemas_protobuf.PackedElementField_pb2 import PackedElementField
from foxglove_schemas_protobuf.PointCloud_pb2 import PointCloud as FoxgloveCloud
from foxglove_schemas_protobuf.Pose_pb2 import Pose
from foxglove_schemas_protobuf.Quaternion_pb2 import Quaternion
from foxglove_schemas_protobuf.RawImage_pb2 import RawImage
from foxglove_schemas_protobuf.Vector3_pb2 import Vector3
from google.protobuf.timestamp_pb2 import Timestamp
from jaxtyping import Float32
from mcap_protobuf.schema import build_file_descriptor_set

from data_cache.frames.rig import Camera
from pipeline.viewers.drive_messages import Message, Stamp, Transform, depth_values, intrinsics_px, quaternion_xyzw
from stages.inference.point_cloud import PointCloud

TYPES = {
    one.DESCRIPTOR.full_name: one
    for one in (RawImage, CameraCalibration, CompressedImage, FoxgloveCloud, FrameTransforms)
}
POINT = np.dtype([("xyz", "<f4", 3), ("rgba", "u1", 4)])
"""A point of a cloud, 16 bytes."""
FIELDS = [
    *(PackedElementField(name=axis, offset=4 * i, type=PackedElementField.FLOAT32) for i, axis in enumerate("xyz")),
    *(
        PackedElementField(name=colour, offset=12 + i, type=PackedElementField.UINT8)
        for i, colour in enumerate(("red", "green", "blue", "alpha"))
    ),
]
OPAQUE = 255


class FoxgloveMessages:
    """Messages of Foxglove's own schemas; see `Messages`."""

    profile = ""
    message_encoding = "protobuf"
    schema_encoding = "protobuf"

    def schema(self, type_name: str) -> bytes:
        """The `FileDescriptorSet` of a type and of all types that it holds."""
        data: bytes = build_file_descriptor_set(TYPES[type_name]).SerializeToString()
        return data

    def channel_metadata(self, latched: bool) -> dict[str, str]:
        """Nothing: viewers that read these schemas look for the last message of each topic themselves."""
        return {}

    def depth(self, stamp: Stamp, depth_m: Float32[np.ndarray, "H W"]) -> Message:
        """`foxglove.RawImage` 32FC1: z in metres; NaN, where depth is 0, is no depth."""
        height, width = depth_m.shape
        data = depth_values(depth_m).tobytes()
        return _message(
            RawImage(**_head(stamp), height=height, width=width, encoding="32FC1", step=4 * width, data=data)
        )

    def camera_info(self, stamp: Stamp, camera: Camera) -> Message:
        """`foxglove.CameraCalibration` of a pinhole camera without distortion."""
        K_px = intrinsics_px(camera)
        return _message(
            CameraCalibration(
                **_head(stamp),
                height=camera.height_px,
                width=camera.width_px,
                distortion_model="plumb_bob",
                D=[0.0] * 5,
                K=K_px.ravel().tolist(),
                R=np.eye(3).ravel().tolist(),
                P=np.hstack([K_px, np.zeros((3, 1))]).ravel().tolist(),
            )
        )

    def image(self, stamp: Stamp, format_name: str, data: bytes) -> Message:
        """`foxglove.CompressedImage` of an encoded image; its format is jpeg or png."""
        return _message(CompressedImage(**_head(stamp), format=format_name, data=data))

    def points(self, stamp: Stamp, cloud: PointCloud) -> Message:
        """`foxglove.PointCloud` of fields x, y, z (float32, metres) and red, green, blue, alpha (uint8)."""
        points = np.empty(len(cloud.points_m), POINT)
        points["xyz"] = cloud.points_m
        points["rgba"][:, :3] = cloud.rgb
        points["rgba"][:, 3] = OPAQUE
        # Without a pose, viewers take a quaternion of zeros.
        origin = Pose(position=Vector3(), orientation=Quaternion(w=1.0))
        return _message(
            FoxgloveCloud(
                **_head(stamp), pose=origin, point_stride=POINT.itemsize, fields=FIELDS, data=points.tobytes()
            )
        )

    def transforms(self, transforms: Sequence[Transform]) -> Message:
        """`foxglove.FrameTransforms`."""
        return _message(FrameTransforms(transforms=[_transform(one) for one in transforms]))


def _transform(transform: Transform) -> FrameTransform:
    x, y, z = transform.pose[:3, 3].tolist()
    qx, qy, qz, qw = quaternion_xyzw(transform.pose)
    return FrameTransform(
        timestamp=_time(transform.stamp),
        parent_frame_id=transform.stamp.frame,
        child_frame_id=transform.child,
        translation=Vector3(x=x, y=y, z=z),
        rotation=Quaternion(x=qx, y=qy, z=qz, w=qw),
    )


def _head(stamp: Stamp) -> dict[str, Any]:
    return {"timestamp": _time(stamp), "frame_id": stamp.frame}


def _time(stamp: Stamp) -> Timestamp:
    seconds, nanoseconds = divmod(stamp.time_ns, 10**9)
    return Timestamp(seconds=seconds, nanos=nanoseconds)


def _message(message: Any) -> Message:
    return Message(message.DESCRIPTOR.full_name, message.SerializeToString())
