"""Scale and shift of a teacher by the road below a camera: what metres without LiDAR and without motion would be."""

import torch
from jaxtyping import Float
from torch import Tensor

from stages.targets.lidar_fit import LidarFit, fit_disparity

ROAD_ROWS = 0.3
"""Share of an image, from below, that is taken for road."""
ROAD_WITHIN_M = (1.0, 20.0)
OFF_ROAD = 0.15
"""Relative error of depth from which a pixel is no road, looked at twice."""


def fit_or(fit: LidarFit, other: LidarFit) -> LidarFit:
    """The fit, and the other one where nothing was fitted."""
    scale, shift = (torch.where(fit.fitted, a, b) for a, b in ((fit.scale, other.scale), (fit.shift, other.shift)))
    return LidarFit(scale, shift, scale > 0)


def fit_to_road(
    disparity: Float[Tensor, "1 V H W"],
    K_px: Float[Tensor, "V 3 3"],
    ego_from_cam: Float[Tensor, "V 4 4"],
    usual: LidarFit,
) -> LidarFit:
    """The fit in which the lowest rows of an image show a flat road, z = 0 in the frame of the vehicle, or `usual`."""
    height, width = disparity.shape[-2:]
    v, u = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    rays = torch.einsum("vij,hwj->vhwi", torch.linalg.inv(K_px), torch.stack([u, v, torch.ones_like(u)], -1))
    down = -torch.einsum("vj,vhwj->vhw", ego_from_cam[:, 2, :3], rays)
    road_m = ego_from_cam[:, 2, 3, None, None] / down.clamp(min=1e-3)
    road = (down > 0) & (road_m > ROAD_WITHIN_M[0]) & (road_m < ROAD_WITHIN_M[1]) & (v > (1 - ROAD_ROWS) * height)
    for _ in range(2):
        fit = fit_disparity(disparity, torch.where(road, road_m, 0.0)[None])
        road = road & ((road_m / fit.depth_m(disparity)[0] - 1).abs() < OFF_ROAD)
    return fit_or(fit_disparity(disparity, torch.where(road, road_m, 0.0)[None]), usual)
