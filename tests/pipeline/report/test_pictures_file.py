import base64
import json
import zlib
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from support.reports import CAMERAS, PROVENANCE, REPORT, pictures

from data_cache.errors import SourceError
from pipeline.report.one_run import rewrite_html, write_report
from pipeline.report.pictures_file import (
    GRID_WIDTH_PX,
    NEAREST_M,
    Grid,
    encode_depth,
    grid_size,
    read_frames,
    shown_frame,
    write_frames,
)
from stages.evaluation.results import Evaluation


def decoded(grid: Grid) -> np.ndarray:
    """The other direction, written from the docstring of `Grid` alone."""
    planes = np.frombuffer(zlib.decompress(base64.b64decode(grid.data)), np.uint8).astype(int)
    low, high = planes.reshape(2, grid.height, grid.width)
    zigzag = low + 256 * high
    change = np.where(zigzag % 2, -(zigzag + 1) // 2, zigzag // 2)
    change[:, 0] = np.cumsum(change[:, 0])
    codes = np.cumsum(change, axis=1) % 65536
    return np.where(codes, NEAREST_M * np.exp((codes - 1) * 0.002), 0)


@given(
    arrays.arrays(
        np.float32,
        arrays.array_shapes(min_dims=2, max_dims=2, max_side=6),
        elements=st.just(0) | st.floats(0.0625, 250, width=32),
    )
)
def test_depth_is_kept_to_a_thousandth_and_no_depth_stays_none(depth_m):
    grid = encode_depth(depth_m)
    assert (grid.height, grid.width) == depth_m.shape
    np.testing.assert_allclose(decoded(grid), depth_m, rtol=0.00101)


def test_by_hand_one_metre_and_its_neighbour():
    """log(1 / 0.05) / 0.002 is 1497.9, so code 1499; twice as far is 346.6 steps on; none is 0."""
    grid = encode_depth(np.array([[1.0, 2.0, 0.0]]))
    planes = zlib.decompress(base64.b64decode(grid.data))
    zigzags = [2 * 1499, 2 * 346, 2 * 1845 - 1]
    assert planes == bytes(z % 256 for z in zigzags) + bytes(z // 256 for z in zigzags)


def test_depths_outside_all_ranges_do_no_harm():
    np.testing.assert_allclose(decoded(encode_depth(np.array([[1e-9, 1e30]])))[0, 0], NEAREST_M)


def test_a_large_frame_is_sampled_and_a_small_one_kept():
    small = shown_frame(pictures())
    assert [view.camera for view in small.views] == ["left", "front", CAMERAS[1], "back"]
    back = small.views[3]
    assert (back.student.height, back.student.width) == (48, 80)
    np.testing.assert_allclose(decoded(back.student), 4, rtol=0.001)
    np.testing.assert_allclose(decoded(back.teacher), 60, rtol=0.001)
    lidar_m = decoded(back.lidar)
    assert (lidar_m > 0).sum() == 1
    assert lidar_m[10, 20] == pytest.approx(8, rel=0.001)
    assert grid_size((352, 640)) == (176, GRID_WIDTH_PX)
    assert grid_size((384, 640)) == (192, GRID_WIDTH_PX)
    assert grid_size((96, 160)) == (96, 160)


def test_a_frame_reads_back_equal(tmp_path):
    frames = tuple(map(shown_frame, (pictures(view_valid=(True, False, True, True)), pictures(teacher_depth_m=None))))
    write_frames(tmp_path, frames)
    assert read_frames(tmp_path) == frames


def test_a_report_is_made_again_from_what_is_left(tmp_path):
    html = write_report(tmp_path / "eval", Evaluation(REPORT, (pictures(), pictures("drive/08"))), PROVENANCE)
    before = html.read_bytes()
    html.unlink()
    assert rewrite_html(tmp_path / "eval") == html
    assert html.read_bytes() == before
    elsewhere = rewrite_html(tmp_path / "eval", tmp_path / "page.html")
    assert elsewhere.read_bytes() == before
    (tmp_path / "eval/pictures.json").unlink()  # as a version that kept no pictures has left it
    assert b"drive/08" not in rewrite_html(tmp_path / "eval").read_bytes()


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[:-9],
        lambda text: text.replace("surround-pictures/1", "surround-pictures/2"),
        lambda text: text.replace("data:image/webp;base64,", "https://example.org/"),
        lambda text: text.replace('"rank"', '"tank"'),
        lambda _: "[]",
        lambda _: json.dumps({"format": "surround-pictures/1", "frames": [{"views": 3}]}),
    ],
)
def test_damaged_pictures_are_an_error_that_names_the_file(tmp_path, damage):
    path = write_frames(tmp_path, [shown_frame(replace(pictures()))])
    path.write_text(damage(path.read_text()))
    with pytest.raises(SourceError, match=r"pictures.json: expected pictures of `surround eval`.* run eval again"):
        read_frames(tmp_path)
