import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import interpolate

from stages.losses.completion import GUIDE_SIGMA, MIN_SUPPORT, densify


def sparse(height: int, width: int, returns: dict[tuple[int, int], float]) -> torch.Tensor:
    """One image (1, H, W) with these depths at (row, column)."""
    depth_m = torch.zeros(1, height, width)
    for (row, column), value_m in returns.items():
        depth_m[0, row, column] = value_m
    return depth_m


def random_scene(seed: int, count: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns in a quarter of the pixels, and a guide of half the size."""
    generator = torch.Generator().manual_seed(seed)
    depth_m = 1 + 50 * torch.rand(count, 12, 18, generator=generator)
    there = torch.rand(count, 12, 18, generator=generator) < 0.25
    return torch.where(there, depth_m, 0.0), 0.05 * torch.rand(count, 6, 9, generator=generator)


def test_one_return_by_hand():
    """Radius 3, one image plane: a return reaches as far as exp(-2 d^2 / 9) > 0.5, that is d^2 <= 3."""
    filled = densify(sparse(7, 9, {(2, 5): 8.0}), torch.full((1, 7, 9), 0.4), 3)
    expected = torch.zeros(1, 7, 9)
    expected[0, 1:4, 4:7] = 8.0
    torch.testing.assert_close(filled, expected)


def test_two_returns_mix_by_distance_in_log_depth_by_hand():
    """4 m one pixel to the left, 16 m two pixels to the right: weights exp(-2/9) and exp(-8/9)."""
    filled = densify(sparse(1, 8, {(0, 2): 4.0, (0, 5): 16.0}), torch.full((1, 1, 8), 0.4), 3)
    left, right = math.exp(-2 / 9), math.exp(-8 / 9)
    expected = math.exp((left * math.log(4) + right * math.log(16)) / (left + right))
    assert filled[0, 0, 3].item() == pytest.approx(expected, rel=1e-5)
    assert filled[0, 0, 4].item() == pytest.approx(64 / expected, rel=1e-5)
    assert filled[0, 0, [2, 5]].tolist() == [4, 16]


def test_the_guide_weighs_by_hand():
    """A hundredth of u between a pixel and a return makes exp(-1/2) of its weight."""
    guide = torch.tensor([[[0.40, 0.40, 0.41]]])
    filled = densify(sparse(1, 3, {(0, 0): 4.0, (0, 2): 16.0}), guide, 3)
    expected = math.exp((math.log(4) + math.exp(-0.5) * math.log(16)) / (1 + math.exp(-0.5)))
    assert GUIDE_SIGMA == 0.01
    assert filled[0, 0, 1].item() == pytest.approx(expected, rel=1e-4)


def test_depth_does_not_leak_over_an_edge_of_the_guide():
    """A near post before a far wall: each pixel takes the depth of its own side, though the other has more returns."""
    guide = torch.full((1, 8, 12), 0.2)
    guide[..., 5:7] = 0.7
    returns = {(row, column): 30.0 for row in range(8) for column in (3, 4, 7, 8)} | {(3, 5): 6.0, (4, 6): 6.0}
    filled = densify(sparse(8, 12, returns), guide, 3)
    assert (filled[0, 2:6, 5:7] - 6).abs().max() < 1e-4
    outside = torch.cat([filled[..., 1:5], filled[..., 7:11]], -1)
    assert (outside - 30).abs().max() < 1e-4


def test_the_sky_stays_empty():
    """Roofs up to the skyline have returns; above it the teacher sees the farthest there is."""
    guide = torch.zeros(1, 6, 12)
    guide[:, 3:] = 0.3
    depth_m = torch.zeros(1, 6, 12)
    depth_m[:, 3:, ::2] = 20.0
    filled = densify(depth_m, guide, 5)
    assert (filled[:, :3] == 0).all()
    assert (filled[:, 3:] > 0).all()


@given(st.integers(0, 1000), st.integers(1, 5))
def test_returns_are_kept_and_others_lie_between_those_in_reach(seed, radius_px):
    lidar_depth_m, guide = random_scene(seed)
    filled = densify(lidar_depth_m, guide, radius_px)
    there = lidar_depth_m > 0
    assert torch.equal(filled[there], lidar_depth_m[there])
    for n, row, column in ((filled > 0) & ~there).nonzero().tolist():
        rows = slice(max(row - radius_px, 0), row + radius_px + 1)
        columns = slice(max(column - radius_px, 0), column + radius_px + 1)
        near_m = lidar_depth_m[n, rows, columns]
        near_m = near_m[near_m > 0]
        assert near_m.min() * 0.9999 < filled[n, row, column] < near_m.max() * 1.0001


@pytest.mark.parametrize("radius_px", [1, 2, 5])
def test_it_is_the_formula_written_as_loops(radius_px):
    lidar_depth_m, guide = random_scene(radius_px)
    filled = densify(lidar_depth_m, guide, radius_px)
    u = interpolate(guide[:, None], size=(12, 18), mode="bilinear", align_corners=False)[:, 0].tolist()
    returns = [(*index, lidar_depth_m[tuple(index)].item()) for index in (lidar_depth_m > 0).nonzero().tolist()]
    for n, row, column in (lidar_depth_m == 0).nonzero().tolist():
        support = total = 0.0
        for m, r, c, depth_m in returns:
            squared = (r - row) ** 2 + (c - column) ** 2
            if m == n and squared <= radius_px**2:
                weight = math.exp(-squared / (2 * (radius_px / 2) ** 2))
                weight *= math.exp(-((u[n][row][column] - u[m][r][c]) ** 2) / (2 * GUIDE_SIGMA**2))
                support, total = support + weight, total + weight * math.log(depth_m)
        if abs(support - MIN_SUPPORT) > 1e-3:
            expected_m = math.exp(total / support) if support > MIN_SUPPORT else 0.0
            assert filled[n, row, column].item() == pytest.approx(expected_m, rel=1e-3)


def test_it_turns_with_a_mirror():
    lidar_depth_m, guide = random_scene(3)
    turned = densify(lidar_depth_m.flip(-1), guide.flip(-1), 3)
    torch.testing.assert_close(turned, densify(lidar_depth_m, guide, 3).flip(-1))


def test_without_returns_there_is_nothing():
    lidar_depth_m, guide = random_scene(0)
    lidar_depth_m[1] = 0
    filled = densify(lidar_depth_m, guide, 3)
    assert (filled[0] > 0).any()
    assert (filled[1] == 0).all()
    assert (densify(torch.zeros_like(lidar_depth_m), guide, 3) == 0).all()
