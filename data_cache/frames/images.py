"""Decoding of images: one definition for teacher, cache, student and evaluation."""

from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader, BytesIO
from pathlib import Path

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image, UnidentifiedImageError

from data_cache.errors import FrameError, SurroundError
from data_cache.files import open_regular

DEFINITION = (
    "JPEG decoded at the smallest of 1, 1/2, 1/4, 1/8 that is no smaller than asked; stretched bicubic antialiased"
)
"""Part of the cache identity: a change to the definitions below must change this text."""

# Pillow's other formats are rare on a vehicle, and some of them (EPS) start other programs on an untrusted file.
FORMATS = ("JPEG", "PNG", "BMP", "PPM", "TIFF", "WEBP")
BYTE_LIMIT = 512 * 2**20
"""Largest image file: the size without compression of the largest image that Pillow decodes."""


def larger(one: tuple[int, int], other: tuple[int, int]) -> tuple[int, int]:
    """The smallest (H, W) that covers both sizes: what to decode when an image is needed at both."""
    return max(one[0], other[0]), max(one[1], other[1])


def load_rgb(
    path: Path, size: tuple[int, int] | None = None, at_least: tuple[int, int] | None = None
) -> UInt8[np.ndarray, "H W 3"]:
    """Decode an image file to RGB.

    Args:
        path: a file in one of FORMATS.
        size: (H, W) of the calibration; an image of another size is refused before it is decoded.
        at_least: (H, W) that is enough; a JPEG is then decoded at 1/2, 1/4 or 1/8 if that is no smaller, which is much
            faster and averages the pixels that it skips. None for native size.

    Raises:
        FrameError: if the file is missing, not a regular file, truncated, not an image, or not of `size`.
    """
    with open_regular(path, BYTE_LIMIT, "image") as stream:
        return decode_rgb(stream, str(path), size, at_least)


def decode_rgb(
    stream: BufferedReader | BytesIO,
    where: str,
    size: tuple[int, int] | None = None,
    at_least: tuple[int, int] | None = None,
) -> UInt8[np.ndarray, "H W 3"]:
    """Decode an image as `load_rgb` does, from an open file or from memory; errors name `where`."""
    with _image(stream, where) as image:
        found = (image.height, image.width)
        if size is not None and found != size:
            raise FrameError(f"{where}: expected {size[0]} x {size[1]} px (h x w), found {found[0]} x {found[1]}")
        if at_least is not None:
            image.draft("RGB", (at_least[1], at_least[0]))
        rgb = np.array(image.convert("RGB"))
    return rgb


def image_size(stream: BufferedReader | BytesIO, where: str) -> tuple[int, int]:
    """(H, W) that the header of an image declares; no pixel is decoded. Raises FrameError naming `where`."""
    with _image(stream, where) as image:
        return image.height, image.width


@contextmanager
def opened(file: Path | BytesIO) -> Iterator[Image.Image]:
    """Open an image file in one of FORMATS; only its header is read, pixels are decoded inside the context on demand.

    Args:
        file: its path, or its bytes.

    Raises:
        FrameError: if the file is missing, not a regular file, not an image, or damaged, including while decoding.
    """
    if isinstance(file, BytesIO):
        with _image(file, "an image of a recording") as image:
            yield image
    else:
        with open_regular(file, BYTE_LIMIT, "image") as stream, _image(stream, str(file)) as image:
            yield image


@contextmanager
def _image(stream: BufferedReader | BytesIO, where: str) -> Iterator[Image.Image]:
    try:
        with Image.open(stream, formats=FORMATS) as image:
            yield image
    except (SurroundError, MemoryError):
        raise
    except UnidentifiedImageError as error:
        raise FrameError(
            f"image cannot be decoded: {where}: expected {', '.join(FORMATS)}, found none of them; write it again"
        ) from error
    except Exception as error:  # a damaged image can fail in any way, from OSError to ZeroDivisionError
        raise FrameError(f"image cannot be decoded: {where}: {error}") from error


def load_mask(path: Path, size: tuple[int, int]) -> Bool[np.ndarray, "H W"]:
    """Decode a mask of (H, W) `size`; True where its grey value is 255.

    Raises:
        FrameError: if the file is missing, damaged or not of `size`.
    """
    grey: Bool[np.ndarray, "H W"] = (load_rgb(path, size) == 255).all(axis=-1)
    return grey


def mask_at(mask: Bool[np.ndarray, "h w"], size: tuple[int, int]) -> Bool[np.ndarray, "H W"]:
    """A mask resized (Lanczos): True where the result is not zero, as in VFDepth."""
    if mask.shape == size:
        return mask
    grey = Image.fromarray(mask.astype(np.uint8) * 255).resize((size[1], size[0]), Image.Resampling.LANCZOS)
    return np.asarray(grey) > 0
