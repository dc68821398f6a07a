import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.inference.colours import NO_DEPTH_RGB, colour_depth, depth_scale, error_colours


def test_near_is_yellow_far_is_blue_and_no_depth_is_grey():
    scale = depth_scale((0.1, 80.0))
    depth_m = np.array([[1.0, 80.0, 0.2, 500.0, 0.0, -1.0, np.nan, np.inf]])
    near, far, nearer, farther, *unknown = colour_depth(depth_m, scale)[0].astype(int)
    assert near[0] > 150 > 50 > near[2]
    assert far[2] > 100 > 70 > far[0]
    np.testing.assert_array_equal(nearer, near)
    np.testing.assert_array_equal(farther, far)
    np.testing.assert_array_equal(unknown, [NO_DEPTH_RGB] * 4)


def test_lightness_falls_with_depth():
    """So that the scale reads without colour vision, and in print."""
    rgb = colour_depth(np.geomspace(1, 80, 64)[None], depth_scale((0.1, 80.0)))[0]
    lightness = rgb.astype(float) @ (0.2126, 0.7152, 0.0722)
    assert (np.diff(lightness) < 1).all()
    assert lightness[0] - lightness[-1] > 150


def test_errors_are_dark_where_there_is_none_and_apart_where_near_and_far():
    near, *_, right, far = error_colours(257)[[0, 128, 256]].astype(int)
    assert right.max() < 100
    assert near[0] - near[2] > 80
    assert far[2] - far[0] > 80


def test_no_depth_has_a_colour_the_scale_never_has():
    scale = depth_scale((0.1, 200.0))
    colours = colour_depth(np.geomspace(0.1, 200, 2000)[None], scale)[0].astype(int)
    assert np.abs(colours - NO_DEPTH_RGB).max(axis=1).min() > 40


@given(st.floats(1.0, 40.0))
def test_twice_as_far_is_always_the_same_step(depth_m):
    scale = depth_scale((0.1, 80.0))
    near, far = scale.fraction(np.array([depth_m, 2 * depth_m]))
    assert far - near == pytest.approx(np.log(2) / np.log(80))
