import math

import pytest
import torch

from stages.targets.binning import AffineBinning, FittedBinning, MetricBinning
from stages.targets.bins import closed_form_prob, expected_position, map_disparity, move_bins, positions
from stages.targets.lidar_fit import LidarFit, fit_disparity
from stages.targets.lidar_frame import lidar_frame, position_among, teacher_disparity
from stages.targets.spec import BinSpec

FINE = BinSpec(count=256, sigma=0.5)
AFFINE = AffineBinning()


def fitted(prob: torch.Tensor, lidar_depth_m: torch.Tensor) -> LidarFit:
    return fit_disparity(teacher_disparity(prob, lidar_depth_m, AFFINE), lidar_depth_m)


def log_map(x: torch.Tensor) -> torch.Tensor:
    return torch.log1p(100 * x) / math.log(101)


def test_the_teacher_is_fitted_to_lidar_by_hand():
    """Disparity of 0.05, 1/2, 0.95; LiDAR says 1/depth = 0.02 + 0.18 x at two of three columns: 34, 9.1 and 5.2 m."""
    x = torch.tensor([0.05, 0.5, 0.95]).repeat(1, 1, 6, 1)
    expected = 1 / (0.02 + 0.18 * x)
    lidar = expected.clone()
    lidar[..., 1] = 0
    prob = closed_form_prob(log_map(x), FINE)
    fit = fitted(prob, lidar)
    assert fit.fitted.tolist() == [[True]]
    assert fit.scale.item() == pytest.approx(0.18, rel=0.02)
    assert fit.shift.item() == pytest.approx(0.02, rel=0.05)
    depth_m = fit.depth_m(teacher_disparity(prob, lidar, AFFINE))
    torch.testing.assert_close(depth_m[0, 0, 0], expected[0, 0, 0], rtol=0.02, atol=0)
    torch.testing.assert_close(map_disparity(log_map(x)), x)


def test_a_teacher_against_the_lidar_or_with_nine_points_is_not_fitted():
    prob = closed_form_prob(torch.linspace(0.1, 0.9, 4).repeat(1, 1, 5, 1), BinSpec())
    grows = torch.tensor([2.0, 4.0, 8.0, 16.0]).repeat(1, 1, 5, 1)  # far where the teacher says near
    assert fitted(prob, grows).fitted.tolist() == [[False]]
    right = grows.flip(-1)
    assert fitted(prob, right).fitted.tolist() == [[True]]
    nine = torch.where(torch.arange(20).view(1, 1, 5, 4) < 9, right, 0.0)
    fit = fitted(prob, nine)
    assert fit.fitted.tolist() == [[False]]
    assert fit.depth_m(teacher_disparity(prob, nine, AFFINE)).isfinite().all()


def test_what_lies_behind_the_fit_is_a_kilometre_away():
    """The sky: 1/depth = -0.01 + 0.2 x is negative at x = 0."""
    fit = LidarFit(torch.tensor([[0.2]]), torch.tensor([[-0.01]]), torch.tensor([[True]]))
    torch.testing.assert_close(fit.depth_m(torch.tensor([[[0.0, 0.3]]])), torch.tensor([[[1000.0, 20.0]]]))


def test_positions_among_centres_by_hand():
    """Centres at 64, 16, 4, 1 m lie at 1/8, 3/8, 5/8, 7/8. 8 m is halfway from 16 to 4 in log depth."""
    centers_m = torch.tensor([[[64.0, 16.0, 4.0, 1.0]]])
    found = position_among(torch.tensor([[[64.0, 8.0, 1.0, 500.0, 0.1, 4 * 2**0.5]]]), centers_m)
    torch.testing.assert_close(found, torch.tensor([[[0.125, 0.5, 0.875, 0.125, 0.875, 0.5625]]]))


def test_the_position_of_a_centre_is_its_own():
    centers_m = torch.tensor([[[90.0, 31.0, 30.0, 2.0, 0.7]]])
    torch.testing.assert_close(position_among(centers_m, centers_m)[0, 0], positions(5, centers_m))


def test_the_teacher_in_the_lidar_frame_says_the_metres_of_the_fit():
    """Whatever the student's centres are: their depth at the moved teacher's position is that of the fit."""
    x = torch.linspace(0.02, 0.98, 40).view(1, 1, 5, 8)
    prob = closed_form_prob(log_map(x), FINE)
    fit = LidarFit(torch.tensor([[0.18]]), torch.tensor([[0.015]]), torch.tensor([[True]]))
    for far_m, near_m in ((100.0, 1.0), (80.0, 3.0)):
        centers_m = torch.logspace(math.log10(far_m), math.log10(near_m), 256).view(1, 1, -1)
        moved = expected_position(move_bins(prob, lidar_frame(fit, centers_m, AFFINE)))
        wanted = position_among(fit.depth_m(x).flatten(2), centers_m).view_as(x)
        torch.testing.assert_close(moved, wanted, rtol=0, atol=0.004)


def test_the_lidar_frame_does_not_depend_on_scale_and_shift_of_the_teacher():
    lidar = 1 / torch.linspace(0.02, 0.4, 60).view(1, 1, 6, 10)
    centers_m = torch.logspace(2, 0, 256).view(1, 1, -1)
    moved = []
    for scale, shift in ((2.0, 0.1), (1.2, 0.4)):
        prob = closed_form_prob(log_map(scale / lidar + shift).clamp(0, 1), FINE)
        moved.append(expected_position(move_bins(prob, lidar_frame(fitted(prob, lidar), centers_m, AFFINE))))
    torch.testing.assert_close(moved[0], moved[1], rtol=0, atol=0.01)


def test_no_gradient_flows_into_centres_or_teacher():
    centers_m = torch.logspace(2, 0, 64).view(1, 1, -1).requires_grad_()
    prob = closed_form_prob(torch.rand(1, 1, 6, 10, generator=torch.Generator().manual_seed(0)), BinSpec())
    fit = fitted(prob, torch.full((1, 1, 6, 10), 5.0))
    assert not lidar_frame(fit, centers_m, AFFINE).requires_grad


@pytest.mark.parametrize(
    "binning", [AFFINE, FittedBinning((0.0, 0.1, 0.4, 1.0)), MetricBinning(0.5, 120.0)], ids=lambda b: type(b).__name__
)
def test_a_perfect_teacher_is_fitted_perfectly_however_its_bins_were_cut(binning):
    depth_m = torch.logspace(math.log10(2), math.log10(80), 240).view(1, 12, 20)
    prob = closed_form_prob(binning(1 / depth_m, (12, 20)), FINE)[None]
    fit = fit_disparity(teacher_disparity(prob, depth_m[None], binning), depth_m[None])
    found_m = fit.depth_m(teacher_disparity(prob, depth_m[None], binning))[0]
    inner = (depth_m > 2.5) & (depth_m < 60)  # the closed form clips one pixel in a hundred at both ends
    torch.testing.assert_close(found_m[inner], depth_m[inner], rtol=0.04, atol=0)
