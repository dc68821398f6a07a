import pytest
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from stages.targets import bins
from stages.targets.lidar_fit import fit_disparity
from stages.targets.local_fit import GRID_COLUMNS, SUPPORT, Corrected, LocalBinning, correct_by_lidar, spread

SIZE = (24, 40)
HALF = (12, 20)


def distorted_scene() -> tuple[Tensor, Tensor]:
    """A road and a wall, metres; and the disparity of a teacher whose scale drifts by 60 % from left to right."""
    row, column = torch.meshgrid(torch.linspace(0, 1, SIZE[0]), torch.linspace(0, 1, SIZE[1]), indexing="ij")
    depth_m = torch.where(column < 0.6, 4 / (0.1 + row), 9.0)
    return depth_m, (1.6 - 0.6 * column) / depth_m


def abs_rel(u: Tensor, depth_m: Tensor, fitted_to: Tensor, on: Tensor) -> float:
    """Of a map, fitted by scale and shift to some returns, on other pixels."""
    x = bins.map_disparity(interpolate(u[None, None], size=SIZE, mode="bilinear")[0, 0])
    found_m = fit_disparity(x, torch.where(fitted_to, depth_m, 0.0)).depth_m(x)
    return float(((found_m - depth_m).abs() / depth_m)[on].mean())


def corrected_by(depth_m: Tensor, disparity: Tensor, returns: Tensor) -> tuple[Tensor, Corrected]:
    u = bins.affine_invariant_map(disparity, HALF)
    return u, correct_by_lidar(u[None], torch.where(returns, depth_m, 0.0)[None])


@pytest.mark.parametrize("regions", [False, True], ids=["points", "regions"])
def test_a_smooth_distortion_of_the_teacher_is_removed_where_no_return_was_used(regions):
    """Held out: every other pixel, or every other block of 4 x 8 pixels, farther than a cell of the finest grids."""
    depth_m, disparity = distorted_scene()
    row, column = torch.meshgrid(torch.arange(SIZE[0]), torch.arange(SIZE[1]), indexing="ij")
    held_out = (row // 4 + column // 8) % 2 == 1 if regions else (row + column) % 2 == 1
    u, found = corrected_by(depth_m, disparity, ~held_out)
    before, after = (abs_rel(map_, depth_m, ~held_out, held_out) for map_ in (u, found.u[0]))
    assert found.corrected.tolist() == [True]
    assert before > 0.1
    assert after < before / 2


def test_a_teacher_that_is_right_is_left_alone():
    depth_m, _ = distorted_scene()
    u, found = corrected_by(depth_m, 3 / depth_m + 7, torch.ones(SIZE, dtype=torch.bool))
    assert (found.u[0] - u).abs().mean() < 0.02


def test_one_return_moves_the_pixel_on_it_by_hand():
    """At a node of every grid a return has weight 1, so each grid takes 1 / 1.3 of what the coarser ones have left."""
    at = torch.tensor([[0.0, 0.0, 0.5]])
    left = 0.26
    moved = 0.0
    for _ in GRID_COLUMNS:
        step = left / (1 + SUPPORT)
        moved, left = moved + step, left - step
    assert spread(at, torch.tensor([0.26]), at, 0.6).item() == pytest.approx(moved, rel=1e-5)
    # Far away in the image and at another u, the coarsest grid's nodes are shared only along its one row and column;
    # a whole cell of u lies between them, so nothing reaches it.
    assert spread(at, torch.tensor([0.26]), torch.tensor([[0.0, 0.0, 0.7]]), 0.6).item() == 0
    # Half a cell of the coarsest grid away (one row, one column): only that grid reaches it, with half the weight.
    far = spread(at, torch.tensor([0.26]), torch.tensor([[0.5, 0.0, 0.5]]), 0.6).item()
    coarsest = 0.5 * 0.26 / (0.5 + SUPPORT)
    # The grid of two columns has one row, too: half a cell again, of what the first has left.
    second = 0.5 * (0.26 - 0.26 / (1 + SUPPORT)) / (0.5 + SUPPORT)
    assert far == pytest.approx(coarsest + second, rel=1e-5)


def test_views_and_frames_without_lidar_keep_the_affine_map():
    depth_m, disparity = distorted_scene()
    u = bins.affine_invariant_map(torch.stack([disparity, disparity.flip(1)]), HALF)
    lidar_m = torch.stack([depth_m, torch.zeros(SIZE)])
    binning = LocalBinning((0.1, 80.0), frozenset(["d/1"]))
    used, unused = binning.correct("d/1", u, lidar_m), binning.correct("d/0", u, lidar_m)
    assert used.corrected.tolist() == [True, False]
    assert not torch.equal(used.u[0], u[0])
    assert torch.equal(used.u[1], u[1])
    assert unused.corrected.tolist() == [False, False]
    assert torch.equal(unused.u, u)
    nothing_in_range = LocalBinning((90.0, 100.0)).correct("d/0", u, lidar_m)
    assert torch.equal(nothing_in_range.u, u)


def test_the_sky_stays_the_farthest():
    """What the fit puts behind infinity stays there, whatever the returns beside it say."""
    depth_m, disparity = distorted_scene()
    disparity[:6] = -0.05
    returns = torch.ones(SIZE, dtype=torch.bool)
    returns[:6] = False
    _, found = corrected_by(depth_m, disparity, returns)
    assert found.u.min() >= 0
    assert found.u.max() <= 1
    assert (found.u[0, :3] == 0).all()
