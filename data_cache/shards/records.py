"""One frame as a cache stores it."""

from collections.abc import Mapping
from dataclasses import dataclass, fields

import numpy as np
from jaxtyping import Bool, Float16, Float32, Float64, UInt8, UInt16

from data_cache.shards.encodings import ENCODINGS, StoredBins

DEPTH_UNIT_PER_M = 256
"""Stored LiDAR depth is uint16 in 1/256 m, the unit of the KITTI depth PNGs; 0 is no return."""


@dataclass(frozen=True, eq=False)
class FrameCameras:
    """Intrinsics and poses of the cameras of one frame. Axes: V views in ring order.

    Attributes:
        view_valid: False where the frame lacks the camera; its other entries are then 0 and its pose is the identity.
        intrinsics: pixels of the stored image, pixel centres at half-integers.
        world_from_cam: pose at the camera's own time stamp, metres.
    """

    view_valid: Bool[np.ndarray, " V"]
    intrinsics: Float32[np.ndarray, "V 3 3"]
    world_from_cam: Float64[np.ndarray, "V 4 4"]


@dataclass(frozen=True, eq=False)
class FrameRecord(FrameCameras):
    """One frame as stored. Axes: V views in ring order, H W image, h w bin probabilities, P tokens.

    Attributes:
        image: RGB at the student's input size.
        lidar_depth: z in 1/256 m, 0 = no return; `pack_depth` and `unpack_depth_m` convert.
        bins: the teacher's bin probabilities at (V, h, w), in the encoding of the cache.
        relation: [i] relates tokens of view i (rows) to those of view i + 1 mod V (columns).
        tokens: the teacher's pooled features; None in a cache that does not store them.
    """

    image: UInt8[np.ndarray, "V H W 3"]
    lidar_depth: UInt16[np.ndarray, "V H W"]
    bins: StoredBins[np.ndarray]
    relation: Float16[np.ndarray, "V P P"]
    tokens: Float16[np.ndarray, "V P C"] | None = None

    @property
    def lidar_depth_m(self) -> Float32[np.ndarray, "V H W"]:
        """Depth (z) in metres, 0 = no return."""
        return unpack_depth_m(self.lidar_depth)


def record_arrays(record: FrameRecord) -> dict[str, np.ndarray]:
    """The arrays of a record by the names under which they are stored."""
    return {k: v for k, v in vars(record).items() if k != "bins" and v is not None} | vars(record.bins)


def record_from_arrays(encoding: str, arrays: Mapping[str, np.ndarray]) -> FrameRecord:
    """The inverse of `record_arrays`."""
    kind = ENCODINGS[encoding]
    names = [f.name for f in fields(kind)]
    others = {k: v for k, v in arrays.items() if k not in names}
    return FrameRecord(bins=kind(*(arrays[name] for name in names)), **others)


def pack_depth(depth_m: Float32[np.ndarray, "*shape"]) -> UInt16[np.ndarray, "*shape"]:
    """Metres to stored units, rounded; depths beyond 255.99 m become 0, no return."""
    units = np.rint(depth_m * DEPTH_UNIT_PER_M)
    return np.where(units <= np.iinfo(np.uint16).max, units, 0).astype(np.uint16)


def unpack_depth_m(stored: UInt16[np.ndarray, "*shape"]) -> Float32[np.ndarray, "*shape"]:
    """Stored units to metres, 0 = no return."""
    return stored.astype(np.float32) / np.float32(DEPTH_UNIT_PER_M)
