import io

import numpy as np
import pytest
from PIL import Image

from data_cache.errors import FrameError
from data_cache.sources.recordings.decoding.messages import ImageMessage
from data_cache.sources.recordings.decoding.pixels import as_file, is_depth

RGB = np.random.default_rng(3).integers(0, 256, (4, 6, 3), dtype=np.uint8)


def raw(encoding, rows, padding=0) -> ImageMessage:
    rows = rows.reshape(*rows.shape[:2], -1)
    data = b"".join(row.tobytes() + b"\x33" * padding for row in rows)
    step = rows.shape[1] * rows.shape[2] + padding
    return ImageMessage(5, "cam", encoding, "", rows.shape[0], rows.shape[1], step, False, data)


def decoded(message) -> np.ndarray:
    data, suffix = as_file(message, "here")
    assert suffix == ".png"
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


@pytest.mark.parametrize(
    ("encoding", "rows"),
    [
        ("rgb8", RGB),
        ("bgr8", RGB[..., ::-1]),
        ("rgba8", np.dstack([RGB, RGB[..., :1]])),
        ("bgra8", np.dstack([RGB[..., ::-1], RGB[..., :1]])),
    ],
)
@pytest.mark.parametrize("padding", [0, 3])
def test_colours_are_exact_in_any_order_of_channels(encoding, rows, padding):
    np.testing.assert_array_equal(decoded(raw(encoding, rows, padding)), RGB)


def test_grey_stays_grey():
    np.testing.assert_array_equal(decoded(raw("mono8", RGB[..., 0])), RGB[..., :1].repeat(3, axis=-1))


@pytest.mark.parametrize(("encoding", "luma_at"), [("yuv422", 1), ("uyvy", 1), ("yuv422_yuy2", 0), ("yuyv", 0)])
def test_luma_and_colour_differences_by_hand(encoding, luma_at):
    """BT.601: (81, 90, 240) is pure red, (235, 128, 128) white, (16, 128, 128) black."""
    luma, other = np.array([[81, 81, 235, 16]]), np.array([[90, 240, 128, 128]])
    rows = np.stack([luma, other] if luma_at == 0 else [other, luma], axis=-1).astype(np.uint8)
    found = decoded(raw(encoding, rows)).astype(int)
    assert abs(found - [[[255, 0, 0], [255, 0, 0], [255, 255, 255], [0, 0, 0]]]).max() <= 1


@pytest.mark.parametrize("pattern", ["rggb", "bggr", "gbrg", "grbg"])
def test_a_mosaic_of_a_linear_image_gives_the_image_back_inside(pattern):
    """Bilinear interpolation is exact where colours change linearly; each pixel keeps the colour that it measured."""
    y, x = np.mgrid[0:8, 0:10]
    rgb = np.stack([10 + 4 * x + 2 * y, 60 + 2 * x + 6 * y, 200 - 8 * x - 4 * y], axis=-1)
    measured = np.zeros((8, 10), np.uint8)
    for place, letter in enumerate(pattern):
        rows, columns = slice(place // 2, None, 2), slice(place % 2, None, 2)
        measured[rows, columns] = rgb[rows, columns, "rgb".index(letter)]
    found = decoded(raw(f"bayer_{pattern}8", measured)).astype(int)
    assert abs(found - rgb)[1:-1, 1:-1].max() <= 1
    assert (found.max(axis=-1) >= measured).all()


def test_files_are_not_touched():
    for kind, suffix in (("JPEG", ".jpg"), ("PNG", ".png")):
        stream = io.BytesIO()
        Image.fromarray(RGB).save(stream, kind)
        message = ImageMessage(5, "cam", "", "whatever", 0, 0, 0, False, stream.getvalue())
        assert as_file(message, "here") == (stream.getvalue(), suffix)


@pytest.mark.parametrize(
    ("message", "text"),
    [
        (raw("mono16", np.zeros((4, 6, 2), np.uint8)), "expected one of the encodings .*, found 'mono16'"),
        (raw("bayer_rggb16", np.zeros((4, 6, 2), np.uint8)), "found 'bayer_rggb16'"),
        (ImageMessage(5, "cam", "rgb8", "", 4, 6, 17, False, bytes(99)), "4 rows of 6 x 3 bytes, found rows of 17"),
        (ImageMessage(5, "cam", "rgb8", "", 4, 6, 18, False, bytes(71)), "found rows of 18 bytes in 71"),
        (ImageMessage(5, "cam", "rgb8", "", 2**31, 2**31, 2**32 - 1, False, b""), "expected sides of 1 to 16384 px"),
        (ImageMessage(5, "cam", "", "h264", 0, 0, 0, False, b"\0\0\0\1"), "expected a JPEG or PNG .* format 'h264'"),
        (raw("yuv422", np.zeros((4, 5, 2), np.uint8)), "expected an even width, found 5 px"),
    ],
)  # fmt: skip
def test_what_cannot_be_converted_is_named(message, text):
    with pytest.raises(FrameError, match=text):
        as_file(message, "here")


def test_depth_is_no_picture():
    assert is_depth(raw("32FC1", np.zeros((4, 6, 4), np.uint8)))
    assert is_depth(ImageMessage(5, "cam", "", "16UC1; compressedDepth png", 0, 0, 0, False, b""))
    assert not is_depth(ImageMessage(5, "cam", "", "rgb8; jpeg compressed bgr8", 0, 0, 0, False, b""))
