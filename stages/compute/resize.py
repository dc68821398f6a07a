"""Stretching of images: one definition for teacher, cache, student, evaluation and pictures."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch.nn.functional import interpolate


def resize_rgb(rgb: UInt8[np.ndarray, "H W 3"], size: tuple[int, int]) -> UInt8[np.ndarray, "h w 3"]:
    """Stretch to (h, w) `size` with an antialiased bicubic filter, as in the training of Depth Anything.

    It is Pillow's filter in torch's vectorised kernel: when shrinking, equal to one grey level, in a third to a sixth
    of the time.
    """
    if rgb.shape[:2] == size:
        return rgb
    pixels = torch.from_numpy(rgb if rgb.flags.writeable else rgb.copy()).permute(2, 0, 1)[None]
    stretched = interpolate(pixels, size=size, mode="bicubic", antialias=True, align_corners=False)
    return np.ascontiguousarray(stretched[0].permute(1, 2, 0).numpy())


def resize_views(
    images: Sequence[UInt8[np.ndarray, "_ _ 3"] | None], size: tuple[int, int]
) -> tuple[UInt8[np.ndarray, "h w 3"] | None, ...]:
    """Stretch the images of a frame to (h, w) `size`; None stays None."""
    return tuple(resize_rgb(rgb, size) if rgb is not None else None for rgb in images)


def resized(values: Float[np.ndarray, "h w"], size: tuple[int, int]) -> Float[np.ndarray, "H W"]:
    """Resize a map bilinearly."""
    if values.shape == size:
        return values
    stretched = interpolate(torch.from_numpy(values)[None, None], size=size, mode="bilinear", align_corners=False)
    return np.asarray(stretched[0, 0].numpy())


def depth_at(depth_m: Float[np.ndarray, "h w"], size: tuple[int, int]) -> Float[np.ndarray, "H W"]:
    """Resize a depth map bilinearly; 0 wherever a pixel without depth (0) contributes."""
    stretched = resized(depth_m, size)
    holes = (depth_m == 0).astype(np.float32)
    if holes.any():
        stretched = np.where(resized(holes, size) > 0, np.float32(0), stretched)
    return stretched
