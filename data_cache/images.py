"""Decoding and stretching of images; one definition for teacher, cache, student and evaluation."""

from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from data_cache.errors import FrameError


def load_rgb(path: Path, size: tuple[int, int] | None = None) -> UInt8[np.ndarray, "H W 3"]:
    """Decode an image file to RGB.

    Args:
        path: any format that Pillow reads.
        size: (H, W) that the calibration was made for; another size is an error.

    Raises:
        FrameError: if the file is missing, truncated, not an image, or not of `size`.
    """
    try:
        with Image.open(path) as image:
            rgb = np.asarray(image.convert("RGB"))
    except FileNotFoundError as error:
        raise FrameError(f"image missing: {path}") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise FrameError(f"image cannot be decoded: {path}: {error}") from error
    if size is not None and rgb.shape[:2] != size:
        raise FrameError(f"{path}: expected {size[0]} x {size[1]} px (h x w), found {rgb.shape[0]} x {rgb.shape[1]}")
    return rgb


def resize_rgb(rgb: UInt8[np.ndarray, "H W 3"], size: tuple[int, int]) -> UInt8[np.ndarray, "h w 3"]:
    """Stretch to (h, w) `size` with an antialiased bicubic filter, the one Depth Anything was trained with."""
    if rgb.shape[:2] == size:
        return rgb
    image = Image.fromarray(rgb).resize((size[1], size[0]), Image.Resampling.BICUBIC, reducing_gap=2.0)
    return np.asarray(image)
