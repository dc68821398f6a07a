import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from data_cache.frames.images import load_rgb
from stages.compute.resize import resize_rgb, resize_views

sides = st.integers(1, 30)


@given(st.tuples(sides, sides), st.tuples(sides, sides), st.tuples(*[st.integers(0, 255)] * 3))
def test_a_plain_colour_survives_any_stretch(size, to_size, colour):
    rgb = np.full((*size, 3), colour, np.uint8)
    stretched = resize_rgb(rgb, to_size)
    assert stretched.shape == (*to_size, 3)
    assert stretched.dtype == np.uint8
    np.testing.assert_array_equal(stretched, np.full((*to_size, 3), colour))


def test_the_same_size_is_the_same_image():
    rgb = np.random.default_rng(0).integers(0, 255, (4, 5, 3), dtype=np.uint8)
    assert resize_rgb(rgb, (4, 5)) is rgb


def test_a_stretch_keeps_left_left_and_top_top():
    rgb = np.zeros((8, 16, 3), np.uint8)
    rgb[:4, 8:] = 255
    np.testing.assert_array_equal(resize_rgb(rgb, (2, 2))[:, :, 0] > 127, [[False, True], [False, False]])


@pytest.mark.parametrize("to_size", [(13, 37), (20, 70), (39, 8)])
def test_it_is_pillows_antialiased_bicubic_to_one_grey_level(to_size):
    rgb = np.random.default_rng(1).integers(0, 256, (40, 80, 3), dtype=np.uint8)
    pillow = np.asarray(Image.fromarray(rgb).resize((to_size[1], to_size[0]), Image.Resampling.BICUBIC))
    assert np.abs(resize_rgb(rgb, to_size).astype(int) - pillow).max() <= 1


def test_images_that_cannot_be_written_to_are_read_all_the_same():
    rgb = np.full((4, 4, 3), 9, np.uint8)
    rgb.flags.writeable = False
    assert (resize_rgb(rgb, (2, 2)) == 9).all()


def test_a_missing_view_stays_missing():
    views = resize_views((np.zeros((4, 6, 3), np.uint8), None), (2, 3))
    assert views[0].shape == (2, 3, 3)
    assert views[1] is None


def test_a_reduced_jpeg_shows_the_same_as_the_stretched_whole_one(tmp_path):
    path = tmp_path / "a.jpg"
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (10, 20, 3), np.uint8)).resize((320, 160)).save(path, quality=95)
    whole, reduced = resize_rgb(load_rgb(path), (60, 120)), resize_rgb(load_rgb(path, None, (60, 120)), (60, 120))
    difference = np.abs(whole.astype(int) - reduced)
    assert difference.mean() < 1.5
    assert difference.mean() < 0.1 * np.abs(whole.astype(int) - np.roll(whole, 2, axis=1)).mean()
