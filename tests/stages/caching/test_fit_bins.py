import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.fakes import STUDENT_SIZE, FakeSource, tiny_teacher

from data_cache.errors import SettingError
from stages.caching.fit_bins import (
    IMAGE_POINTS,
    LEAST_IMAGE_POINTS,
    LEAST_SLOPE,
    FitError,
    FittedBins,
    ImagePoints,
    fit_bins,
    fit_knots,
    isotonic,
    load_fitted,
    require_made_with,
    residual,
    sample_points,
    save_fitted,
)
from stages.caching.products import look
from stages.caching.teacher_input import prepare_frame
from stages.compute.preemption import Preempted
from stages.targets.binning import AffineBinning, bend

PROB_SIZE = (8, 16)
RANGE_M = (0.1, 80.0)


def run(source: FakeSource, folder, partials, count: int = 4, **options) -> FittedBins:
    return fit_bins(
        source,
        tiny_teacher(folder),
        source.drives["d"][:count],
        {"teacher": "tiny"},
        partials,
        image_size=STUDENT_SIZE,
        prob_size=PROB_SIZE,
        depth_range_m=RANGE_M,
        batch_images=2,
        **options,
    )


def synthetic_images(bent, count: int = 40, noise: float = 0.0) -> list[ImagePoints]:
    """Images in whose log depth `bent(u)` is linear, each with a scale, a shift, a range and a number of its own."""
    rng = np.random.default_rng(0)
    images = []
    for _ in range(count):
        low = rng.uniform(0.02, 0.5)
        u = rng.uniform(low, rng.uniform(low + 0.3, 0.98), rng.integers(50, 500))
        nearness = rng.uniform(-4, -2) + rng.uniform(1, 4) * bent(u) + rng.normal(0, noise, len(u))
        images.append(ImagePoints(u, nearness))
    return images


def test_isotonic_by_hand():
    """3 and 1 pool to (1 * 3 + 3 * 1) / 4 = 1.5, and that with 2 stays; 9 and 6 pool to 7.5."""
    found = isotonic(np.array([0.0, 3.0, 1.0, 2.0, 9.0, 6.0]), np.array([1.0, 1.0, 3.0, 1.0, 1.0, 1.0]))
    assert found.tolist() == [0, 1.5, 1.5, 2, 7.5, 7.5]


@given(st.lists(st.tuples(st.floats(-5, 5), st.floats(0.1, 3)), min_size=1, max_size=12))
def test_isotonic_never_falls_keeps_the_mean_and_changes_nothing_twice(pairs):
    value, weight = (np.array(column) for column in zip(*pairs, strict=True))
    fitted = isotonic(value, weight)
    assert (np.diff(fitted) >= 0).all()
    assert np.average(fitted, weights=weight) == pytest.approx(np.average(value, weights=weight), abs=1e-9)
    np.testing.assert_allclose(isotonic(fitted, weight), fitted)


@pytest.mark.parametrize("bent", [lambda u: u**2.5, np.sqrt, lambda u: 1 / (1 + np.exp(10 * (0.5 - u)))])
def test_a_bent_teacher_is_straightened_whatever_the_scale_and_shift_of_its_images(bent):
    images = synthetic_images(bent, noise=0.05)
    knots = fit_knots(images)
    assert residual(images, knots) < 0.053 < 0.059 < residual(images, None)
    x = np.linspace(0.1, 0.9, 50)
    straight = bend(torch.from_numpy(x), knots).numpy()
    assert np.corrcoef(straight, bent(x))[0, 1] > 0.99


def test_a_map_rises_from_0_to_1_and_nowhere_too_slowly():
    knots = np.array(fit_knots(synthetic_images(lambda u: np.round(2 * u), noise=0.3)))
    assert (knots[0], knots[-1]) == (0, 1)
    assert np.diff(knots).min() * (len(knots) - 1) >= LEAST_SLOPE - 1e-4


def test_a_straight_teacher_is_left_alone():
    images = synthetic_images(lambda u: u)
    np.testing.assert_allclose(fit_knots(images), np.linspace(0, 1, 33), atol=0.03)
    assert residual(images, None) == pytest.approx(0, abs=1e-9)


def test_where_lidar_says_nothing_the_map_is_the_identity():
    rng = np.random.default_rng(0)
    images = [ImagePoints(rng.uniform(0.4, 0.6, 100), rng.normal(0, 1, 100)) for _ in range(5)]
    knots = np.array(fit_knots(images))
    np.testing.assert_allclose(knots[:10], np.linspace(0, 1, 33)[:10], atol=0.02)
    flat = [ImagePoints(np.full(50, 0.5), rng.normal(0, 1, 50))]
    np.testing.assert_allclose(fit_knots(flat), np.linspace(0, 1, 33), atol=0.02)


def test_an_image_with_many_returns_counts_as_much_as_one_with_few():
    """One image of 5000 returns says square, twenty of 50 say root: the twenty have it."""
    rng = np.random.default_rng(0)
    u = rng.uniform(0.02, 0.98, 5000)
    few = [rng.uniform(0.02, 0.98, 50) for _ in range(20)]
    knots = fit_knots([ImagePoints(u, u**2), *(ImagePoints(x, np.sqrt(x)) for x in few)])
    assert bend(torch.tensor([0.5]), knots).item() > 0.6


def test_residual_by_hand():
    """Line through (0, 0), (0.5, 1), (1, 0) is level at 1/3: squares 1/9, 4/9, 1/9."""
    image = ImagePoints(np.array([0.0, 0.5, 1.0]), np.array([0.0, 1.0, 0.0]))
    assert residual([image], None) == pytest.approx(math.sqrt(2 / 9))
    assert residual([image, ImagePoints(np.array([0.0, 1.0]), np.array([3.0, 5.0]))], None) == pytest.approx(1 / 3)


def test_points_are_the_teachers_u_at_the_lidar_pixels(teacher_folder):
    source, teacher = FakeSource(2, missing={"d/1": (1,)}), tiny_teacher(teacher_folder)
    points = sample_points(source, teacher, "d/1", STUDENT_SIZE, PROB_SIZE, (2.0, 15.0), 2)
    assert len(points) == 2
    frame = prepare_frame(source, "d/1", teacher.input_size, STUDENT_SIZE)
    u = look(teacher, frame.teacher_images, PROB_SIZE, AffineBinning())[1].u
    depth_m = frame.lidar_depth[2] / 256
    row, column = np.argwhere((depth_m > 2) & (depth_m < 15))[0]
    # u lives at a quarter of the size: pixel centre (x + 1/2) / 4 - 1/2, bilinear, borders held.
    y, x = (min(max((at + 0.5) / 4 - 0.5, 0), side - 1) for at, side in zip((row, column), PROB_SIZE, strict=True))
    y0, x0 = int(y), int(x)
    y1, x1 = min(y0 + 1, 7), min(x0 + 1, 15)
    top = u[y0, x0] * (1 - (x - x0)) + u[y0, x1] * (x - x0)
    bottom = u[y1, x0] * (1 - (x - x0)) + u[y1, x1] * (x - x0)
    expected = (top * (1 - (y - y0)) + bottom * (y - y0)).item()
    inside = 0 < expected < 1
    assert inside
    assert points[1].u[0] == pytest.approx(expected, abs=1e-5)
    assert points[1].nearness[0] == pytest.approx(-math.log(depth_m[row, column]))
    for image in points:
        assert LEAST_IMAGE_POINTS <= len(image.u) <= IMAGE_POINTS
        assert ((image.nearness > -math.log(15)) & (image.nearness < -math.log(2))).all()
        assert ((image.u > 0) & (image.u < 1)).all()


def test_a_killed_fit_looks_only_at_frames_that_are_missing_and_ends_the_same(tmp_path, teacher_folder):
    asked: list[str] = []
    answers = iter([False, False, True])
    with pytest.raises(Preempted, match="stopped after 2 of 4 frames; they are kept"):
        run(FakeSource(on_frame=asked.append), teacher_folder, tmp_path / "a", should_stop=lambda: next(answers))
    fitted = run(FakeSource(on_frame=asked.append), teacher_folder, tmp_path / "a")
    assert asked == ["d/0", "d/1", "d/2", "d/3"]
    assert fitted == run(FakeSource(), teacher_folder, tmp_path / "b")
    assert fitted.frames == ("d/0", "d/1", "d/2", "d/3")
    assert fitted.images == 12
    # Random depth in front of a random teacher: there is nothing to learn, and what would be learnt is not taken.
    assert fitted.residual_after <= fitted.residual_before


def test_frames_that_cannot_be_read_are_left_out_and_listed(tmp_path, teacher_folder):
    source = FakeSource(broken={"d/1": "image cannot be decoded"}, no_lidar=("d/2",))
    for _ in range(2):
        fitted = run(source, teacher_folder, tmp_path)
        assert fitted.skipped == {"d/1": "image cannot be decoded"}
        assert fitted.images == 6


def test_frames_without_lidar_give_nothing_to_fit_to(tmp_path, teacher_folder):
    with pytest.raises(FitError, match=r"none of the 2 frames has an image with 32 LiDAR returns within 0.1 to 80 m"):
        run(FakeSource(no_lidar=("d/0", "d/1")), teacher_folder, tmp_path, count=2)


def test_what_was_fitted_comes_back_equal_and_belongs_to_its_teacher(tmp_path, teacher_folder):
    fitted = run(FakeSource(), teacher_folder, tmp_path / "partials")
    path = tmp_path / "bins.json"
    with pytest.raises(SettingError, match=r"bins.json is not there; run `surround fit-bins`"):
        load_fitted(path)
    save_fitted(path, fitted)
    assert load_fitted(path) == fitted
    require_made_with(path, fitted, {"teacher": "tiny"})
    with pytest.raises(FitError, match="teacher: bins.json has 'tiny', recipe says 'huge'"):
        require_made_with(path, fitted, {"teacher": "huge"})
    for damaged in ("{", "[]", json.dumps({**dataclasses.asdict(fitted), "knots": None})):
        path.write_text(damaged)
        with pytest.raises(FitError, match="cannot be read"):
            load_fitted(path)
