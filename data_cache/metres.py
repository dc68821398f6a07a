"""Files of metres: depth maps of the views of a frame that stand for its LiDAR, written and read by stage two."""

from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import Float, Float32

from data_cache.errors import SurroundError
from data_cache.files import NPZ_ERRORS, replace_atomically


class DamagedMetresError(SurroundError):
    """A file of metres of a frame without LiDAR cannot be read, or holds something else."""


def write_metres(path: Path, depth_m: Float[np.ndarray, "V H W"]) -> None:
    """Write depth in metres (0 = none) as float16, packed, with checksums; whole or not at all. Raises WriteError."""
    replace_atomically(path, partial(_write, depth_m.astype(np.float16)))


def _write(depth_m: Float[np.ndarray, "V H W"], path: Path) -> None:
    with path.open("wb") as file:
        np.savez_compressed(file, depth_m=depth_m)


def read_metres(path: Path, shape: tuple[int, ...], frame_id: str) -> Float32[np.ndarray, "V H W"]:
    """Read the metres of a frame.

    Args:
        path: written by `write_metres`.
        shape: (V, H, W) of the frame's LiDAR.
        frame_id: for messages.

    Raises:
        DamagedMetresError: if the file is missing, damaged, or holds other than depths of that shape.
    """
    remedy = f"({path}, metres of frame {frame_id}); delete the file, the same command makes it again"
    try:
        with np.load(path, allow_pickle=False) as file:
            depth_m = np.asarray(file["depth_m"])
    except (*NPZ_ERRORS, KeyError, TypeError) as error:
        raise DamagedMetresError(f"cannot be read: {error} {remedy}") from error
    if depth_m.shape != shape or depth_m.dtype != np.float16:
        raise DamagedMetresError(
            f"expected float16 of shape {shape}, found {depth_m.dtype} of {depth_m.shape} {remedy}"
        )
    if not (np.isfinite(depth_m).all() and (depth_m >= 0).all()):
        raise DamagedMetresError(f"expected depths of 0 m or more, found others {remedy}")
    return depth_m.astype(np.float32)
