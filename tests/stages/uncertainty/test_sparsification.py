import math
import tracemalloc

import numpy as np
import pytest

from stages.uncertainty.coverage import LAPLACE_95, SurenessTable
from stages.uncertainty.sparsification import BINS, LARGEST, SMALLEST, bins_of, quantile, sparsification, summed

STEP = (LARGEST / SMALLEST) ** (1 / BINS)
"""Ratio of the ends of a bin: what a key may be off by."""


def areas(error: np.ndarray, key: np.ndarray, *, root: bool = False):
    """`sparsification` of pixels with these errors, in the order of `key`."""
    by_key, own = bins_of(key), bins_of(error)
    value = error**2 if root else error
    return sparsification(summed(by_key), summed(by_key, value), summed(own), summed(own, value), root=root)


def by_hand(error: np.ndarray, key: np.ndarray) -> float:
    """AUSE by sorting all pixels."""

    def curve(order: np.ndarray) -> np.ndarray:
        left = error[np.argsort(order)]
        return np.array([left[: len(left) * (100 - i) // 100].mean() for i in range(100)])

    return float(np.mean(curve(key) - curve(error)) / error.mean())


def test_areas_by_hand():
    """25 pixels each of errors 0.1, 0.2, 0.3, 0.6. Sigma removes 0.6, 0.1, 0.2, 0.3; the oracle 0.6, 0.3, 0.2, 0.1."""
    error = np.repeat([0.1, 0.2, 0.3, 0.6], 25)
    sigma = np.repeat([3.0, 2.0, 1.0, 4.0], 25)
    total, mean = 30.0, 0.3
    wrong = right = 0.0
    for r in range(100):
        left = 100 - r
        taken = [min(max(r - 25 * i, 0), 25) for i in range(4)]
        wrong += (total - np.dot(taken, [0.6, 0.1, 0.2, 0.3])) / left / 100
        right += (total - np.dot(taken, [0.6, 0.3, 0.2, 0.1])) / left / 100
    found = areas(error, sigma)
    assert found.ause == pytest.approx((wrong - right) / mean, rel=1e-9)
    assert found.aurg == pytest.approx((mean - wrong) / mean, rel=1e-9)
    assert found.of_random == pytest.approx((wrong - right) / (mean - right), rel=1e-9)


def test_the_error_itself_is_a_perfect_order_and_chance_is_a_random_one():
    rng = np.random.default_rng(0)
    error = rng.lognormal(-3, 1, 40_000)
    perfect = areas(error, error)
    assert (perfect.ause, perfect.of_random) == (0, 0)
    assert perfect.aurg > 0.4
    # A random order of 40,000 pixels is off by a few standard errors of a mean: (e - 1) ** 0.5 / 200 = 0.7 %.
    assert areas(error, rng.random(40_000)).of_random == pytest.approx(1, abs=0.05)
    assert areas(error, 1 / error).of_random > 1.5
    assert areas(error, error, root=True).of_random == 0


def test_bins_stand_for_a_sort_of_all_pixels():
    """Pixels of a bin have keys within 0.9 %: the oracle is off by that at most, and the order of sigma by chance."""
    rng = np.random.default_rng(1)
    error = rng.lognormal(-3, 1, 50_000)
    key = error * rng.lognormal(0, 1, 50_000)
    assert areas(error, key).ause == pytest.approx(by_hand(error, key), abs=0.005)


def test_a_quantile_is_right_to_half_a_bin_and_nothing_has_none():
    values = np.random.default_rng(2).lognormal(0, 0.5, 100_000)
    assert quantile(summed(bins_of(values)), 0.68) == pytest.approx(np.quantile(values, 0.68), rel=STEP - 1)
    assert math.isnan(quantile(np.zeros(BINS), 0.5))
    assert math.isnan(areas(np.zeros(0), np.zeros(0)).ause)


def test_coverage_by_hand():
    """Four pixels of one camera and one of another; ratios of |log p / t| to sigma: 0.5, 1.5, 2.2, 3; and 0."""
    truth = np.array([10.0, 10.0, 50.0, 50.0])
    sigma = np.array([0.1, 0.2, 0.1, 0.05])
    table = SurenessTable((0, 20, 80))
    table.add("front", truth * np.exp(sigma * [0.5, -1.5, 2.2, 3.0]), truth, sigma)
    table.add("left", np.array([90.0]), np.array([90.0]), np.array([0.4]))
    found = table.scores()
    front = found.per_camera["front"]
    assert (front.pixels, front.inside_68, front.inside_95, front.inside_95_gauss) == (4, 0.25, 0.75, 0.5)
    assert (found.all.pixels, found.all.inside_68) == (5, 0.4)
    assert {name: cell.pixels for name, cell in found.by_distance_m.items()} == {"0-20": 2, "20-80": 2}
    assert found.by_distance_m["20-80"].inside_95 == 0.5
    assert set(found.per_camera) == {"front", "left"}
    assert SurenessTable((0, 20)).scores() is None


@pytest.mark.parametrize(("noise", "column"), [("laplace", "inside_95"), ("normal", "inside_95_gauss")])
def test_the_scale_makes_68_percent_lie_inside_and_each_law_has_its_95(noise, column):
    """Standard errors of shares of 200,000 pixels are 0.1 %; the scale is right to half a bin, 0.45 %."""
    rng = np.random.default_rng(3)
    truth, sigma = rng.uniform(2, 80, 200_000), rng.uniform(0.02, 0.3, 200_000)
    error = getattr(rng, noise)(0, 1, 200_000) * sigma

    def measured(scale: float):
        table = SurenessTable((0, 80))
        table.add("front", truth * np.exp(error), truth, sigma * scale)
        return table.scores().all

    calibrated = measured(measured(0.2).scale_68 * 0.2)
    assert calibrated.inside_68 == pytest.approx(0.68, abs=0.005)
    assert getattr(calibrated, column) == pytest.approx(0.95, abs=0.005)
    assert pytest.approx(2.629, abs=1e-3) == LAPLACE_95


def test_memory_does_not_grow_with_the_number_of_pixels():
    table, rng = SurenessTable((0, 20, 40, 80)), np.random.default_rng(4)

    def add() -> int:
        for camera in ("front", "left"):
            values = rng.uniform(1, 79, 1000)
            table.add(camera, values * 1.1, values, np.full(1000, 0.1))
        return tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    try:
        first = add()
        assert [add() for _ in range(20)][-1] < first + 10_000
    finally:
        tracemalloc.stop()
