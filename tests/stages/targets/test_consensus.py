"""Metres that three say who err apart."""

import torch

from stages.targets.consensus import consensus, fit_to_depth
from stages.targets.lidar_fit import LidarFit


def test_a_fit_to_a_depth_map_is_not_turned_by_a_car_that_one_of_both_misses():
    """Inverse depth 0.02 + 0.3 x; a tenth of the pixels is four times as far. Least squares alone is off by 10 %."""
    x = torch.linspace(0, 1, 200).view(1, 1, 10, 20)
    depth_m = 1 / (0.02 + 0.3 * x)
    exact = fit_to_depth(x, depth_m)
    torch.testing.assert_close(torch.stack([exact.scale, exact.shift]).flatten(), torch.tensor([0.3, 0.02]))
    depth_m[..., 17:19] *= 4
    fit = fit_to_depth(x, depth_m)
    assert fit.fitted.all()
    assert abs(fit.scale / 0.3 - 1) < 0.02
    assert abs(fit.shift / 0.02 - 1) < 0.02


def test_the_mean_is_that_of_log_depth_by_hand():
    """Motion says half of what the student says, which is the teacher's own shape: the cube root of 1/2 of it.

    View 1 has no motion: the other two agree. View 2 has neither: a map that falls where the student's rises.
    """
    x = torch.linspace(0.1, 1, 12).expand(1, 3, 3, 12).contiguous()
    student_m = 2 / (0.01 + 0.1 * x)
    student_m[:, 2] = student_m[:, 2].flip(-1)
    motion = LidarFit(
        torch.tensor([[0.1, 0.0, 0.0]]), torch.tensor([[0.01, 0.0, 0.0]]), torch.tensor([[True, False, False]])
    )
    depth_m, told = consensus(x, motion, student_m)
    assert told.tolist() == [[True, True, False]]
    torch.testing.assert_close(depth_m[0, 0], student_m[0, 0] * 0.5 ** (1 / 3))
    torch.testing.assert_close(depth_m[0, 1], student_m[0, 1])
