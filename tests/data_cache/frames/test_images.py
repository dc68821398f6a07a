import io

import numpy as np
import pytest
from PIL import Image

from data_cache.errors import FrameError
from data_cache.frames.images import larger, load_rgb


def encoded(array, kind):
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, kind)
    return stream.getvalue()


def test_channels_are_red_green_blue_and_rows_come_first(tmp_path):
    array = np.zeros((2, 3, 3), np.uint8)
    array[1, 2] = (200, 100, 50)
    (tmp_path / "a.png").write_bytes(encoded(array, "PNG"))
    np.testing.assert_array_equal(load_rgb(tmp_path / "a.png", (2, 3)), array)


def test_a_grey_image_becomes_rgb(tmp_path):
    (tmp_path / "a.png").write_bytes(encoded(np.full((2, 3), 7, np.uint8), "PNG"))
    np.testing.assert_array_equal(load_rgb(tmp_path / "a.png"), np.full((2, 3, 3), 7))


def test_another_size_than_calibrated_is_an_error(tmp_path):
    (tmp_path / "a.png").write_bytes(encoded(np.zeros((2, 3), np.uint8), "PNG"))
    with pytest.raises(FrameError, match=r"a\.png: expected 3 x 2 px \(h x w\), found 2 x 3"):
        load_rgb(tmp_path / "a.png", (3, 2))


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("kept", [0.0, 0.02, 0.5, 0.98])
def test_a_truncated_image_is_an_error_that_names_it(tmp_path, kind, kept):
    noise = np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8)
    data = encoded(noise, kind)
    (tmp_path / "a.img").write_bytes(data[: int(kept * len(data))])
    with pytest.raises(FrameError, match=r"a\.img"):
        load_rgb(tmp_path / "a.img")


def test_a_missing_image_a_folder_and_a_text_are_errors(tmp_path):
    (tmp_path / "text.jpg").write_text("404 not found")
    for name in ("none.jpg", "text.jpg", "."):
        with pytest.raises(FrameError):
            load_rgb(tmp_path / name)


def test_an_image_that_would_fill_the_memory_is_refused(tmp_path, monkeypatch):
    (tmp_path / "a.png").write_bytes(encoded(np.zeros((20, 20), np.uint8), "PNG"))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(FrameError, match="cannot be decoded"):
        load_rgb(tmp_path / "a.png")


@pytest.mark.parametrize(
    ("at_least", "expected"),
    [(None, (80, 160)), ((80, 160), (80, 160)), ((41, 10), (80, 160)), ((40, 80), (40, 80)), ((20, 30), (20, 40))],
)
def test_a_jpeg_is_decoded_no_larger_than_needed_and_never_smaller_than_asked(tmp_path, at_least, expected):
    path = tmp_path / "a.jpg"
    Image.linear_gradient("L").resize((160, 80)).convert("RGB").save(path, quality=95)
    assert load_rgb(path, (80, 160), at_least).shape == (*expected, 3)


def test_the_size_that_a_calibration_needs_is_checked_before_reducing(tmp_path):
    path = tmp_path / "a.jpg"
    Image.new("RGB", (160, 80)).save(path)
    with pytest.raises(FrameError, match="expected 40 x 80 px .*, found 80 x 160"):
        load_rgb(path, (40, 80), (40, 80))


def test_an_image_wanted_in_two_sizes_is_decoded_for_the_larger_side_of_each():
    assert larger((392, 700), (384, 720)) == (392, 720)
