"""Recorded images as image files: a file stays as it is, raw pixels become a PNG that holds their colours."""

import io
from collections.abc import Callable

import numpy as np
from jaxtyping import Shaped, UInt8
from PIL import Image

from data_cache.errors import FrameError
from data_cache.sources.recordings.decoding.messages import ImageMessage

_SUFFIXES = {b"\xff\xd8\xff": ".jpg", b"\x89PNG": ".png"}
_DEPTHS = ("16UC1", "32FC1", "16SC1", "32SC1", "64FC1")
_SIDE_LIMIT_PX = 16384


def is_depth(image: ImageMessage) -> bool:
    """Whether the pixels are depths, or something else that is no picture, by what the message says."""
    return image.encoding in _DEPTHS or "compressedDepth" in image.format


def require_read(image: ImageMessage, where: str) -> None:
    """Check by what an image says of itself that images like it are read.

    Raises:
        FrameError: if the encoding of its pixels is not known, or its file is neither JPEG nor PNG.
    """
    if image.encoding:
        _conversion(image, where)
    elif image.data and not any(word in image.format.lower() for word in ("jpeg", "jpg", "png")):
        _suffix(image, where)


def as_file(image: ImageMessage, where: str) -> tuple[bytes, str]:
    """The bytes and the suffix of the image file.

    Raises:
        FrameError: if the file is neither JPEG nor PNG, the encoding is not known, or data is missing.
    """
    if not image.encoding:
        return image.data, _suffix(image, where)
    stream = io.BytesIO()
    Image.fromarray(_decoded(image, where)).save(stream, "PNG", compress_level=1)
    return stream.getvalue(), ".png"


def _suffix(image: ImageMessage, where: str) -> str:
    for begin, suffix in _SUFFIXES.items():
        if image.data.startswith(begin):
            return suffix
    raise FrameError(f"{where}: expected a JPEG or PNG image, found the format {image.format!r:.80}")


def _conversion(image: ImageMessage, where: str) -> tuple[int, Callable[[np.ndarray], np.ndarray]]:
    """Bytes of a pixel, and what makes colours of rows of them."""
    known = _CONVERSIONS.get(image.encoding.lower())
    if known is None:
        raise FrameError(
            f"{where}: expected one of the encodings {', '.join(sorted(_CONVERSIONS))}, found {image.encoding!r:.80};"
            " record another one, or convert the topic"
        )
    return known


def _decoded(image: ImageMessage, where: str) -> UInt8[np.ndarray, "H W *C"]:
    """Pixels of a raw image: (H, W) grey or (H, W, 3) RGB."""
    channels, convert = _conversion(image, where)
    height, width = image.height, image.width
    if not 1 <= height <= _SIDE_LIMIT_PX or not 1 <= width <= _SIDE_LIMIT_PX:
        raise FrameError(f"{where}: expected sides of 1 to {_SIDE_LIMIT_PX} px, found {width} x {height}")
    if image.step_bytes < width * channels or len(image.data) < (height - 1) * image.step_bytes + width * channels:
        raise FrameError(
            f"{where}: expected {height} rows of {width} x {channels} bytes, found rows of {image.step_bytes} bytes in"
            f" {len(image.data)}"
        )
    rows = np.ndarray((height, width, channels), np.uint8, image.data, 0, (image.step_bytes, channels, 1))
    pixels: np.ndarray = np.ascontiguousarray(convert(rows))
    return pixels


def _yuv422(luma_at: int) -> Callable[[np.ndarray], np.ndarray]:
    """Colours of two bytes a pixel: luma, and for two pixels one blue and one red difference (ITU-R BT.601, studio)."""

    def convert(rows: Shaped[np.ndarray, "H W 2"]) -> np.ndarray:
        if rows.shape[1] % 2:
            raise FrameError(f"expected an even width, found {rows.shape[1]} px in an encoding of pairs")
        luma = (rows[..., luma_at].astype(np.float32) - 16) * (255 / 219)
        other = rows[..., 1 - luma_at].astype(np.float32) - 128
        blue, red = (np.repeat(other[:, first::2], 2, axis=1) * (255 / 224) for first in (0, 1))
        rgb = np.stack([luma + 1.402 * red, luma - 0.344136 * blue - 0.714136 * red, luma + 1.772 * blue], axis=-1)
        colours: np.ndarray = np.clip(np.rint(rgb), 0, 255).astype(np.uint8)
        return colours

    return convert


def _bayer(pattern: str) -> Callable[[np.ndarray], np.ndarray]:
    """Colours of a sensor behind a 2 x 2 mosaic, `rggb` for one, interpolated bilinearly."""

    def convert(rows: Shaped[np.ndarray, "H W 1"]) -> np.ndarray:
        mosaic = rows[..., 0].astype(np.float32)
        rgb = np.empty((*mosaic.shape, 3), np.uint8)
        for c, colour in enumerate("rgb"):
            known = np.zeros(mosaic.shape, np.float32)
            for place, letter in enumerate(pattern):
                if letter == colour:
                    known[place // 2 :: 2, place % 2 :: 2] = 1
            total, weight = _spread(mosaic * known), _spread(known)
            rgb[..., c] = np.rint(np.where(known > 0, mosaic, total / np.maximum(weight, 1e-6)))
        return rgb

    return convert


def _spread(plane: Shaped[np.ndarray, "H W"]) -> Shaped[np.ndarray, "H W"]:
    """Sum of each pixel and its neighbours with the weights 1 2 1, in both directions; zero outside."""
    for axis in (0, 1):
        padded = np.pad(plane, [(1, 1) if axis == a else (0, 0) for a in (0, 1)])
        before, middle, after = (np.take(padded, range(i, i + plane.shape[axis]), axis) for i in range(3))
        plane = before + 2 * middle + after
    return plane


_CONVERSIONS: dict[str, tuple[int, Callable[[np.ndarray], np.ndarray]]] = {
    "rgb8": (3, lambda rows: rows),
    "bgr8": (3, lambda rows: rows[..., ::-1]),
    "rgba8": (4, lambda rows: rows[..., :3]),
    "bgra8": (4, lambda rows: rows[..., 2::-1]),
    "8uc3": (3, lambda rows: rows[..., ::-1]),
    "mono8": (1, lambda rows: rows[..., 0]),
    "8uc1": (1, lambda rows: rows[..., 0]),
    "yuv422": (2, _yuv422(1)),
    "uyvy": (2, _yuv422(1)),
    "yuv422_yuy2": (2, _yuv422(0)),
    "yuyv": (2, _yuv422(0)),
} | {f"bayer_{pattern}8": (1, _bayer(pattern)) for pattern in ("rggb", "bggr", "gbrg", "grbg")}
