"""Metres of a teacher from motion alone: a street whose geometry is known in closed form."""

import math
from dataclasses import replace

import pytest
import torch

from data_cache.dataset import CachedViews
from stages.targets.lidar_fit import LidarFit
from stages.targets.motion_fit import fit_to_motion, usual_nearest

H, W, F = 96, 160, 120.0
HEIGHT_M, WALL_M = 1.5, 14.0
"""A camera this high over a road looks at a wall this far away."""


def street(x_m: float, z_m: float) -> tuple[torch.Tensor, torch.Tensor]:
    """RGB bytes (3 H W) and depth (H W) of a camera at (x, z) that looks along z; the texture is fixed to the world."""
    v, u = torch.meshgrid(torch.arange(H) + 0.5, torch.arange(W) + 0.5, indexing="ij")
    right, down = (u - W / 2) / F, (v - H / 2) / F
    depth_m = torch.minimum(HEIGHT_M / down.clamp(min=1e-6), torch.full_like(u, WALL_M - z_m))
    point = torch.stack([x_m + right * depth_m, down * depth_m, z_m + depth_m], -1)
    generator = torch.Generator().manual_seed(1)
    waves = torch.randn(3, 24, generator=generator) * 3
    phase = torch.rand(24, generator=generator) * 2 * math.pi
    grey = torch.sin(point @ waves + phase).mean(-1)
    return (128 + 300 * grey).clamp(0, 255).to(torch.uint8).expand(3, H, W), depth_m


def moment(x_m: float, z_m: float) -> CachedViews:
    pose = torch.eye(4)
    pose[0, 3], pose[2, 3] = x_m, z_m
    intrinsics = torch.tensor([[F, 0, W / 2], [0, F, H / 2], [0, 0, 1]])
    return CachedViews(street(x_m, z_m)[0][None], intrinsics[None], pose[None], torch.ones(1, dtype=torch.bool))


@pytest.fixture(scope="module")
def disparity() -> torch.Tensor:
    """What a perfect relative teacher says: inverse depth from 0 to 1."""
    inverse = 1 / street(0, 0)[1]
    return ((inverse - inverse.min()) / (inverse.max() - inverse.min()))[None]


def nearest(off: float = 0.0) -> torch.Tensor:
    return ((1 / street(0, 0)[1].min()).log() + off)[None]


@pytest.mark.parametrize("off", [0.0, 0.4, -0.8])
def test_motion_says_the_metres_that_the_teacher_lacks(disparity, off):
    """Also where the usual nearest depth is far off. The grid of the second round has steps of 4 % of the nearest
    depth and of 0.004 / m, which is 5 % of the wall's distance: half of both is what is left.
    """
    fit = fit_to_motion(disparity, [moment(0, 0), moment(0.2, 1.5), moment(-0.1, -1.5)], nearest(off))
    found = LidarFit(*fit[None].unbind(-1), torch.ones(1, 1, dtype=torch.bool)).depth_m(disparity[None])[0, 0]
    assert (found / street(0, 0)[1]).log().abs().max() < 0.05


def test_poses_of_twice_the_size_make_a_world_of_twice_the_size(disparity):
    """The metres come from the poses: a camera that moved 3 m instead of 1.5 sees everything twice as far away."""
    moments = [moment(0, 0), moment(0.2, 1.5), moment(-0.1, -1.5)]
    doubled = [replace(views, rig_from_cam=views.rig_from_cam * torch.tensor([1.0, 1, 1, 2])) for views in moments]
    fit = fit_to_motion(disparity, doubled, nearest(-math.log(2)))
    found = LidarFit(*fit[None].unbind(-1), torch.ones(1, 1, dtype=torch.bool)).depth_m(disparity[None])[0, 0]
    assert (found / (2 * street(0, 0)[1])).log().abs().max() < 0.05


def test_a_view_that_nothing_else_sees_has_no_metres(disparity):
    assert fit_to_motion(disparity, [moment(0, 0)], nearest()).tolist() == [[0, 0]]
    missing = replace(moment(0, 0), view_valid=torch.zeros(1, dtype=torch.bool))
    assert fit_to_motion(disparity, [missing, moment(0, 1.5)], nearest()).tolist() == [[0, 0]]
    assert fit_to_motion(disparity, [moment(0, 0), moment(0, 1.5)], nearest(math.nan)).tolist() == [[0, 0]]


def test_the_usual_nearest_depth_by_hand():
    """Scale + shift of 0.3 and 0.5 / m and one that was not fitted: the lower median, ln 0.3."""
    scale, shift = torch.tensor([[0.2], [0.4], [9.0]]), torch.tensor([[0.1], [0.1], [9.0]])
    fitted = torch.tensor([[True], [True], [False]])
    usual = usual_nearest([LidarFit(scale[i : i + 1], shift[i : i + 1], fitted[i : i + 1]) for i in range(3)])
    assert usual.tolist() == pytest.approx([math.log(0.3)])
