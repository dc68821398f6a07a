from dataclasses import replace

import numpy as np
import pytest
from support.fakes import NATIVE_SIZE, STUDENT_SIZE, FakeSource

from data_cache.frames.geometry import sparse_depth
from data_cache.frames.images import mask_at
from stages.compute.resize import depth_at, resized
from stages.evaluation.protocol_scores import ImagePixels, ProtocolScores, image_pixels, teacher_fitted_to
from stages.evaluation.protocols import FSM, SURROUNDDEPTH, VFDEPTH

RANGE_M = (0.1, 80.0)


def metres(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


def image(
    camera: str, truth_m: np.ndarray, predicted_m: np.ndarray, disparity: np.ndarray | None = None
) -> ImagePixels:
    return ImagePixels(camera, truth_m, predicted_m, disparity, masked=False)


def test_pixels_of_four_frames_are_pooled_per_camera_before_the_mean():
    """Three pixels that are off by half in one frame, one that is off by a tenth in the next: 0.4, not the mean 0.3."""
    frames = [
        [image("front", metres(10, 10, 10), metres(15, 15, 15)), image("back", metres(4), metres(5))],
        [image("front", metres(10), metres(11))],
        [],
        [],
        [image("front", metres(10), metres(10))],
    ]
    pooled, single = (ProtocolScores(protocol, RANGE_M) for protocol in (VFDEPTH, SURROUNDDEPTH))
    for frame in frames:
        pooled.add(frame)
        single.add(frame)
    front = pooled.student().metric.per_camera["front"]
    assert front.abs_rel == pytest.approx(((3 * 0.5 + 0.1) / 4 + 0) / 2)
    assert (front.images, front.pixels) == (3, 5)
    assert pooled.student().metric.mean.abs_rel == pytest.approx((0.2 + 0.25) / 2)
    assert single.student().metric.per_camera["front"].abs_rel == pytest.approx((0.5 + 0.1 + 0) / 3)


def test_the_pooled_median_is_one_scale_per_camera_and_pool():
    """Truths 2 2 2 of one frame and 8 of another, predictions 1 1 1 and 1: one scale of 2, so 8 comes out as 2."""
    table = ProtocolScores(VFDEPTH, RANGE_M)
    table.add([image("front", metres(2, 2, 2), metres(1, 1, 1))])
    table.add([image("front", metres(8), metres(1))])
    assert table.student().median_scaled.mean.abs_rel == pytest.approx((0 + 0 + 0 + 6 / 8) / 4)


def test_the_rig_has_one_scale():
    """Truths 4 4 4 8 9 (median 4) on predictions of 2: a factor 2 for both cameras, 1/2 and 5/9 off in back."""
    table = ProtocolScores(FSM, RANGE_M)
    table.add([image("front", metres(4, 4, 4), metres(2, 2, 2)), image("back", metres(8, 9), metres(2, 2))])
    scaled = table.student().median_scaled
    assert scaled.per_camera["front"].abs_rel == 0
    assert scaled.per_camera["back"].abs_rel == pytest.approx((4 / 8 + 5 / 9) / 2)
    assert table.student().metric.per_camera["front"].abs_rel == 0.5


def test_a_far_prediction_is_clipped_before_or_after_it_is_scaled():
    """1, 2, 160 m on 0.5, 1, 40: a factor 1/2. 160 m becomes 80, or where it was clipped before, 40."""
    results = {}
    for protocol in (SURROUNDDEPTH, VFDEPTH):
        table = ProtocolScores(protocol, RANGE_M)
        table.add([image("front", metres(0.5, 1, 40), metres(1, 2, 160))])
        results[protocol.name] = table.student().median_scaled.mean.abs_rel
    assert results == pytest.approx({"surrounddepth": 1 / 3, "vfdepth": 0})


def test_each_image_of_a_pool_has_a_fit_of_its_own():
    """Disparities of two frames in units of their own: each is fitted exactly, and so is the pool."""
    table = ProtocolScores(VFDEPTH, (0.0, 80.0))
    truths = (metres(2, 4, 5), metres(1, 10, 20))
    for truth_m, scale, shift in ((truths[0], 3.0, 1.0), (truths[1], 70.0, -2.0)):
        table.add([image("front", truth_m, truth_m[::-1].copy(), scale / truth_m + shift)])
    assert table.teacher().affine_invariant.mean.abs_rel == pytest.approx(0, abs=1e-5)
    assert table.student().affine_invariant.mean.abs_rel > 0.1


def test_bands_count_the_images_that_have_a_pixel_there():
    """Of three pooled images one has a pixel beyond 20 m, off by a tenth."""
    table = ProtocolScores(VFDEPTH, RANGE_M)
    for truth_m in (metres(5, 30), metres(6), metres(7)):
        table.add([image("front", truth_m, truth_m * np.float32(1.1))])
    bands = table.student().metric.by_distance_m
    assert {name: (band.images, band.pixels) for name, band in bands.items()} == {"0-20": (3, 3), "20-40": (1, 1)}
    assert bands["20-40"].abs_rel == pytest.approx(0.1)


def test_nothing_added_has_no_scores():
    table = ProtocolScores(FSM, RANGE_M)
    table.add([])
    assert (table.student(), table.teacher(), table.masked_images) == (None, None, 0)


@pytest.mark.parametrize(
    ("protocol", "size"), [(FSM, NATIVE_SIZE), (VFDEPTH, STUDENT_SIZE), (SURROUNDDEPTH, NATIVE_SIZE)]
)
def test_truth_lies_at_the_resolution_of_the_protocol_outside_of_its_mask(protocol, size):
    frame = FakeSource().frame("d/0")
    mask = np.zeros(NATIVE_SIZE, bool)
    mask[:, 40:] = True
    view = replace(frame.views[0], load_unoccluded=lambda: mask)
    truth_m = sparse_depth(view, frame.load_sweep(), size)
    keep = np.ones(size, bool) if protocol is SURROUNDDEPTH else mask_at(mask, size)
    predicted_m = np.tile(np.arange(1, 65, dtype=np.float32), (32, 1))
    found = image_pixels(view, frame.load_sweep(), predicted_m, None, protocol, RANGE_M, STUDENT_SIZE)
    np.testing.assert_array_equal(found.truth_m, truth_m[(truth_m > 0.1) & keep])
    assert found.masked == (protocol is not SURROUNDDEPTH)
    columns = np.nonzero((truth_m > 0.1) & keep)[1]
    np.testing.assert_allclose(found.predicted_m, ((columns + 0.5) * 64 / size[1] + 0.5).clip(1, 64), rtol=1e-5)


def test_an_image_without_a_pixel_that_counts_is_left_out():
    frame = FakeSource().frame("d/0")
    depth_m = np.ones(STUDENT_SIZE, np.float32)
    assert image_pixels(frame.views[0], frame.load_sweep(), depth_m, None, FSM, (70.0, 80.0), STUDENT_SIZE) is None


def test_a_hole_spreads_to_the_pixels_that_it_would_have_a_part_in():
    """Two columns to four: centres at 0, 1/4, 3/4, 1 of the way between them."""
    np.testing.assert_allclose(resized(np.array([[4.0, 8.0]], np.float32), (1, 4)), [[4, 5, 7, 8]])
    np.testing.assert_array_equal(depth_at(np.array([[0.0, 8.0]], np.float32), (1, 4)), [[0, 0, 0, 8]])
    np.testing.assert_allclose(depth_at(np.array([[4.0, 8.0]], np.float32), (1, 4)), [[4, 5, 7, 8]])


def test_the_teacher_is_fitted_to_the_student_by_scale_and_shift_of_disparity():
    """Student 2, 4 and 8 m are 1/2, 1/4 and 1/8; a teacher that says 3 x + 1 of them is the same after the fit."""
    student_m = metres(2, 4, 8, 0).reshape(2, 2)
    disparity = metres(3 / 2 + 1, 3 / 4 + 1, 3 / 8 + 1, 100).reshape(2, 2)
    np.testing.assert_allclose(teacher_fitted_to(student_m, disparity, RANGE_M), student_m, rtol=1e-5)


def test_the_fit_to_the_student_is_least_squares_and_stays_in_range():
    """1/x of 1, 2 and 4 m is 1, .5, .25; disparities 1, 0, 0: scale .625, shift .375, so 1 m and 1 / .375 m twice."""
    fitted_m = teacher_fitted_to(metres(1, 2, 4).reshape(1, 3), metres(1, 0, 0).reshape(1, 3), RANGE_M)
    np.testing.assert_allclose(fitted_m, [[1, 1 / 0.375, 1 / 0.375]], rtol=1e-5)
    assert teacher_fitted_to(metres(500, 400).reshape(1, 2), metres(1, 2).reshape(1, 2), RANGE_M).max() == 80
    clipped_m = teacher_fitted_to(metres(1, 2, 1000).reshape(1, 3), metres(1, 1 / 2, 1 / 80).reshape(1, 3), RANGE_M)
    np.testing.assert_allclose(clipped_m, [[1, 2, 80]], rtol=1e-5)
    assert not teacher_fitted_to(metres(0, 0).reshape(1, 2), metres(1, 2).reshape(1, 2), RANGE_M).any()
