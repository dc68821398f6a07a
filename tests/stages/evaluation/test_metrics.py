import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from stages.evaluation.metrics import (
    AffineFit,
    DepthErrors,
    abs_rel,
    affine_depth_m,
    depth_errors,
    fit_affine_disparity,
    mean_errors,
    median_scale,
)

depths = hnp.arrays(np.float32, st.integers(1, 30), elements=st.floats(0.5, 200, width=32))


def metres(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


def test_golden_values():
    """Differences -1, 1, 4, 0 on truths 2, 4, 5, 8; ratios 2, 1.25, 1.8, 1."""
    errors = depth_errors(predicted_m=metres(1, 5, 9, 8), truth_m=metres(2, 4, 5, 8))
    assert errors.abs_rel == pytest.approx((1 / 2 + 1 / 4 + 4 / 5 + 0) / 4)
    assert errors.sq_rel == pytest.approx((1 / 2 + 1 / 4 + 16 / 5 + 0) / 4)
    assert errors.rmse == pytest.approx(math.sqrt((1 + 1 + 16 + 0) / 4))
    logs = [math.log(2), math.log(1.25), math.log(1.8), 0]
    assert errors.rmse_log == pytest.approx(math.sqrt(sum(g * g for g in logs) / 4))
    assert (errors.d1, errors.d2, errors.d3) == (0.25, 0.5, 0.75)
    assert (errors.images, errors.pixels) == (1, 4)


def test_the_thresholds_are_strict():
    """1.25, 1.5625 and 1.953125 are exact in binary: a ratio of the threshold itself is a miss."""
    errors = depth_errors(predicted_m=metres(1.25, 1.5625, 1.953125), truth_m=metres(1, 1, 1))
    assert (errors.d1, errors.d2, errors.d3) == pytest.approx((0, 1 / 3, 2 / 3))
    below = np.nextafter(metres(1.25, 1.5625, 1.953125), np.float32(0))
    errors = depth_errors(predicted_m=below, truth_m=metres(1, 1, 1))
    assert (errors.d1, errors.d2, errors.d3) == pytest.approx((1 / 3, 2 / 3, 1))


@given(depths)
def test_a_perfect_prediction_has_no_error(truth_m):
    errors = depth_errors(predicted_m=truth_m, truth_m=truth_m)
    assert errors == DepthErrors(
        abs_rel=0.0, sq_rel=0.0, rmse=0.0, rmse_log=0.0, d1=1.0, d2=1.0, d3=1.0, images=1, pixels=len(truth_m)
    )


@given(depths, depths)
def test_abs_rel_alone_is_abs_rel_of_the_table(predicted_m, truth_m):
    count = min(len(predicted_m), len(truth_m))
    predicted_m, truth_m = predicted_m[:count], truth_m[:count]
    errors = depth_errors(predicted_m=predicted_m, truth_m=truth_m)
    assert abs_rel(predicted_m=predicted_m, truth_m=truth_m) == pytest.approx(errors.abs_rel)
    assert errors.d1 <= errors.d2 <= errors.d3


def test_abs_rel_by_hand_is_relative_to_the_truth():
    assert abs_rel(predicted_m=metres(1, 5), truth_m=metres(2, 4)) == pytest.approx((1 / 2 + 1 / 4) / 2)


def test_the_mean_counts_every_entry_once_and_adds_up_images_and_pixels():
    first = depth_errors(predicted_m=metres(1, 5, 9, 8), truth_m=metres(2, 4, 5, 8))
    second = replace(depth_errors(predicted_m=metres(3), truth_m=metres(2)), images=3)
    mean = mean_errors(iter([first, second]))
    assert mean.abs_rel == pytest.approx((1.55 / 4 + 0.5) / 2)
    assert mean.rmse == pytest.approx((math.sqrt(4.5) + 1) / 2)
    assert mean.d1 == pytest.approx(0.125)
    assert (mean.images, mean.pixels) == (4, 5)


def test_the_mean_of_nothing_is_an_error():
    with pytest.raises(ValueError, match="no errors to average"):
        mean_errors([])


@given(depths, st.floats(0.01, 100))
def test_median_scaling_removes_the_scale(truth_m, scale):
    predicted_m = truth_m * np.float32(scale)
    scaled = predicted_m * median_scale(predicted_m=predicted_m, truth_m=truth_m)
    np.testing.assert_allclose(scaled, truth_m, rtol=1e-4)


def test_median_scaling_by_hand():
    """Medians 2 and 6: times 3, whatever the outliers say."""
    assert median_scale(predicted_m=metres(1, 2, 100), truth_m=metres(5, 6, 7)) == 3


@given(
    hnp.arrays(np.float64, st.integers(2, 30), elements=st.integers(0, 100).map(float), unique=True),
    st.floats(0.001, 0.01),
    st.floats(0.01, 0.1),
)
def test_the_fit_recovers_a_planted_scale_and_shift(disparity, scale, shift):
    fit = fit_affine_disparity(disparity=disparity, truth_m=1 / (scale * disparity + shift))
    assert (fit.scale, fit.shift) == pytest.approx((scale, shift), rel=1e-6)


def test_the_fit_by_hand():
    """Disparities 0, 1, 2 against 1/m 0.5, 0.5, 1: slope 1 / 4, mean 2 / 3 at 1."""
    fit = fit_affine_disparity(disparity=metres(0, 1, 2), truth_m=metres(2, 2, 1))
    assert (fit.scale, fit.shift) == pytest.approx((1 / 4, 5 / 12))


@given(st.floats(1e-3, 1e3), st.integers(1, 40), st.sampled_from([np.float32, np.float64]))
def test_a_constant_disparity_gets_the_mean_of_the_truth(value, count, dtype):
    truth_m = np.linspace(2, 50, count)
    fit = fit_affine_disparity(disparity=np.full(count, value, dtype), truth_m=truth_m)
    assert fit.scale == 0
    assert fit.shift == pytest.approx(np.mean(1 / truth_m))


def test_a_disparity_that_varies_by_rounding_only_is_constant():
    disparity = metres(3, np.nextafter(np.float32(3), np.float32(4)), 3)
    fit = fit_affine_disparity(disparity=disparity, truth_m=metres(2, 2, 1))
    assert (fit.scale, fit.shift) == pytest.approx((0, 2 / 3))


def test_fitted_depth_by_hand_is_clipped_to_the_range():
    """1/m: 0.25 -> 4 m, 1 -> 1 m, 4 -> nearer than 0.5 m, 0.001 -> beyond 80 m, negative -> the far end."""
    depth_m = affine_depth_m(np.array([[0.0, 1.5], [7.5, -0.498], [-3.0, -0.5]]), AffineFit(0.5, 0.25), (0.5, 80.0))
    np.testing.assert_allclose(depth_m, [[4, 1], [0.5, 80], [80, 80]])
