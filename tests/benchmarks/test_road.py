"""Scale and shift by the road below a camera."""

import torch
from support.road import fit_to_road

from stages.targets.lidar_fit import LidarFit

USUAL = LidarFit(torch.tensor([[0.7, 0.7]]), torch.tensor([[0.1, 0.1]]), torch.tensor([[True, True]]))


def test_a_flat_road_gives_scale_and_shift_and_another_camera_keeps_the_usual_ones():
    """1.5 m above the road, level, fy = 40 px: row v sees the road at 60 / (v - 31.5) m; x = (1 / z - .01) / .5.

    The second camera looks up, so it sees no road.
    """
    down = torch.arange(64) - 31.5
    inverse = (down / (1.5 * 40)).clamp(min=0).view(1, 1, 64, 1).expand(1, 2, 64, 32)
    x = ((inverse - 0.01) / 0.5).clamp(min=0)
    K_px = torch.tensor([[40.0, 0, 16], [0, 40, 32], [0, 0, 1]]).expand(2, 3, 3)
    ahead = torch.tensor([[0.0, 0, 1, 0], [-1, 0, 0, 0], [0, -1, 0, 1.5], [0, 0, 0, 1]])
    up = torch.tensor([[0.0, 1, 0, 0], [-1, 0, 0, 0], [0, 0, 1, 1.5], [0, 0, 0, 1]])
    fit = fit_to_road(x, K_px, torch.stack([ahead, up]), USUAL)
    torch.testing.assert_close(fit.scale, torch.tensor([[0.5, 0.7]]), rtol=1e-4, atol=0)
    torch.testing.assert_close(fit.shift, torch.tensor([[0.01, 0.1]]), rtol=1e-3, atol=1e-5)
