from dataclasses import replace

import numpy as np
import pytest

from data_cache.errors import FrameError
from data_cache.sources.recordings.decoding.clouds import points
from data_cache.sources.recordings.decoding.messages import CloudMessage

XYZ = np.array([[1.5, -2.0, 0.25], [0.0, 0.0, 0.0], [4.0, np.nan, 6.0], [-7.0, 8.0, 9.5]], np.float32)


def message(fields, dtype, *, big_endian=False, height=1, row_padding=0) -> CloudMessage:
    """The points XYZ in a layout of numpy's."""
    table = np.zeros(len(XYZ), dtype)
    for i, axis in enumerate("xyz"):
        table[axis] = XYZ[:, i]
    width = len(XYZ) // height
    rows = [table[i * width : (i + 1) * width].tobytes() + b"\x55" * row_padding for i in range(height)]
    step = table.dtype.itemsize
    return CloudMessage(
        7, "lidar", width, height, fields, step, width * step + row_padding, big_endian, b"".join(rows)
    )  # fmt: skip


PLAIN = message((("x", 0, "f4"), ("y", 4, "f4"), ("z", 8, "f4")), [("x", "<f4"), ("y", "<f4"), ("z", "<f4")])
RETURNED = XYZ[[0, 2, 3]]


@pytest.mark.parametrize(
    "cloud",
    [
        PLAIN,
        message(
            (("intensity", 0, "u1"), ("z", 1, "f8"), ("t", 9, "u4"), ("x", 13, "f4"), ("y", 17, "f8")),
            [("intensity", "u1"), ("z", "<f8"), ("t", "<u4"), ("x", "<f4"), ("y", "<f8")],
        ),
        message(
            (("x", 0, "f4"), ("y", 4, "f4"), ("z", 8, "f4")),
            [("x", ">f4"), ("y", ">f4"), ("z", ">f4")],
            big_endian=True,
        ),
        message(
            (("x", 0, "f8"), ("y", 8, "f8"), ("z", 16, "f8")),
            [("x", "<f8"), ("y", "<f8"), ("z", "<f8")],
            height=2,
            row_padding=5,
        ),
    ],
    ids=["plain", "any order and types", "big endian", "organized with padding"],
)
def test_points_of_any_layout_are_exact_without_those_that_did_not_return(cloud):
    found = points(cloud, "here")
    np.testing.assert_array_equal(found.astype(np.float32), RETURNED)
    assert found.dtype == np.result_type(*{code for name, _, code in cloud.fields if name in "xyz"})


def test_a_pose_within_the_message_is_applied():
    ahead = np.eye(4)
    ahead[0, 3] = 10
    np.testing.assert_allclose(points(replace(PLAIN, frame_from_points=ahead), "here")[0], [11.5, -2, 0.25])


def test_an_empty_cloud_has_no_points():
    assert points(replace(PLAIN, width=0, row_bytes=0, data=b""), "here").shape == (0, 3)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (
            {"fields": (("x", 0, "f4"), ("y", 4, "f4"), ("z", 9, "f4"))},
            "field z: expected 4 bytes within a point of 12",
        ),
        ({"fields": (("x", 0, "f4"), ("y", 4, "f4"), ("z", -4, "f4"))}, "found the offset -4"),
        ({"fields": (("x", 0, "f4"), ("y", 4, "f4"))}, "expected the fields x, y and z, found 'x, y'"),
        (
            {"fields": (("x", 0, "i2"), ("y", 4, "f4"), ("z", 8, "f4"))},
            "field x: expected float32 or float64, found i2",
        ),
        ({"width": 400}, "expected rows of at least 400 x 12 bytes, found 48"),
        ({"width": 2**31}, "expected at most 10000000 points"),
        ({"row_bytes": 2**31, "height": 1}, "expected at most 10000000 points in"),
        ({"height": 3}, "expected 144 bytes of points, found 48: truncated"),
        ({"data": PLAIN.data[:-1]}, "expected 48 bytes of points, found 47"),
    ],
)
def test_a_layout_that_lies_is_named(change, text):
    with pytest.raises(FrameError, match=f"^here: .*{text}"):
        points(replace(PLAIN, **change), "here")
