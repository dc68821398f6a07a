"""What the messages of a drive are made of, whatever their family of schemas."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from jaxtyping import Float, Float32

from data_cache.errors import FrameError
from data_cache.frames.rig import Camera
from stages.inference.point_cloud import PointCloud

PIXEL_CENTER_PX = 0.5
"""ROS and Foxglove put pixel centres at integers, this program at half-integers (REP 104 follows OpenCV)."""
LATEST_NS = 2**31 * 10**9
"""A time stamp of ROS has 32-bit seconds: they end in 2038."""


@dataclass(frozen=True, eq=False)
class Message:
    """A message as it is stored: the name of its type, and its bytes."""

    type_name: str
    data: bytes


@dataclass(frozen=True, eq=False)
class Stamp:
    """When, in nanoseconds, and in which coordinate frame; raises FrameError if ROS has no such time."""

    time_ns: int
    frame: str

    def __post_init__(self) -> None:
        if not 0 <= self.time_ns < LATEST_NS:
            raise FrameError(
                f"{self.frame}: expected a time stamp before 2038, where the 32-bit seconds of ROS end, found"
                f" {self.time_ns} ns"
            )


@dataclass(frozen=True, eq=False)
class Transform:
    """A pose (4, 4) of frame `child` in the frame of `stamp`."""

    stamp: Stamp
    child: str
    pose: Float[np.ndarray, "4 4"]


class Messages(Protocol):
    """Makes the messages of one family of schemas, and says what an MCAP file has to know about them."""

    profile: str
    message_encoding: str
    schema_encoding: str

    def schema(self, type_name: str) -> bytes:
        """The definition of a type and of all types that it holds."""
        ...

    def channel_metadata(self, latched: bool) -> dict[str, str]:
        """What is said of a topic; a latched one reaches subscribers that come later."""
        ...

    def depth(self, stamp: Stamp, depth_m: Float32[np.ndarray, "H W"]) -> Message:
        """A depth map: z in metres; NaN, where depth is 0, is no depth."""
        ...

    def camera_info(self, stamp: Stamp, camera: Camera) -> Message:
        """The calibration of a pinhole camera without distortion."""
        ...

    def image(self, stamp: Stamp, format_name: str, data: bytes) -> Message:
        """An encoded image; its format is jpeg or png."""
        ...

    def points(self, stamp: Stamp, cloud: PointCloud) -> Message:
        """A coloured cloud, in the frame of the stamp."""
        ...

    def transforms(self, transforms: Sequence[Transform]) -> Message:
        """Poses of frames in their parents."""
        ...


def depth_values(depth_m: Float32[np.ndarray, "H W"]) -> Float32[np.ndarray, "H W"]:
    """Depth as a file has it: little-endian, NaN where it is 0."""
    values: np.ndarray = np.where(depth_m > 0, depth_m, np.float32("nan")).astype("<f4")
    return values


def intrinsics_px(camera: Camera) -> Float[np.ndarray, "3 3"]:
    """Intrinsics with pixel centres at integers."""
    K_px: np.ndarray = camera.K_px - np.array([[0, 0, PIXEL_CENTER_PX], [0, 0, PIXEL_CENTER_PX], [0, 0, 0]])
    return K_px


def quaternion_xyzw(pose: Float[np.ndarray, "4 4"]) -> tuple[float, float, float, float]:
    """Unit quaternion (x, y, z, w), w >= 0, of the rotation of a rigid transform.

    It is the eigenvector of the largest eigenvalue of a matrix that is linear in the rotation (Bar-Itzhack 2000), which
    is the nearest rotation where the rows are not quite at right angles.
    """
    (xx, xy, xz), (yx, yy, yz), (zx, zy, zz) = pose[:3, :3].tolist()
    symmetric = np.array([
        [xx - yy - zz, xy + yx, xz + zx, zy - yz],
        [xy + yx, yy - xx - zz, yz + zy, xz - zx],
        [xz + zx, yz + zy, zz - xx - yy, yx - xy],
        [zy - yz, xz - zx, yx - xy, xx + yy + zz],
    ])  # fmt: skip
    vector = np.linalg.eigh(symmetric)[1][:, -1]
    x, y, z, w = (-vector if vector[3] < 0 else vector).tolist()
    return x, y, z, w
