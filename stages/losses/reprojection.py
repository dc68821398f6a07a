"""Differentiable reprojection: where the pixels of one camera fall in another, given their depths."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import grid_sample

from data_cache.dataset import CachedViews

MIN_DEPTH_M = 0.1


@dataclass(frozen=True, eq=False)
class Cameras:
    """Cameras of all rigs along one axis (N = B V), with the device and dtype of the predictions.

    Attributes:
        K_px: intrinsics in pixels, pixel centres at half-integers.
        rig_from_cam: poses in the frame of the rig.
        valid: False for missing cameras.
    """

    K_px: Float[Tensor, "N 3 3"]
    rig_from_cam: Float[Tensor, "N 4 4"]
    valid: Bool[Tensor, " N"]


@dataclass(frozen=True, eq=False)
class Landed:
    """Where the pixels of one camera fall in another.

    Attributes:
        grid: place in the other image, with its outer corners at (-1, -1) and (1, 1).
        depth_m: z in the other camera; 1 for a point that is not ahead of it.
        ahead: the point is ahead of the other camera.
        seen: it is ahead and inside the image, and both cameras are valid.
    """

    grid: Float[Tensor, "N H W 2"]
    depth_m: Float[Tensor, "N H W"]
    ahead: Bool[Tensor, "N H W"]
    seen: Bool[Tensor, "N H W"]


def neighbour_steps(view_count: int) -> tuple[int, ...]:
    """Steps along the ring to the neighbours of a view, next first; with two views there is only one."""
    return (1, -1)[: view_count - 1]


def in_a_row(views: CachedViews, like: Tensor, step: int = 0) -> Cameras:
    """Flatten the cameras of all rigs; in each place stands the camera `step` places further along the ring."""
    K_px, rig_from_cam = (t.roll(-step, 1).flatten(0, 1).to(like) for t in (views.intrinsics, views.rig_from_cam))
    return Cameras(K_px, rig_from_cam, views.view_valid.roll(-step, 1).flatten().to(like.device))


def images_in_a_row(views: CachedViews, like: Tensor, step: int = 0) -> Float[Tensor, "N 3 H W"]:
    """The images in the order of `in_a_row`, RGB in [0, 1]."""
    return views.image.roll(-step, 1).flatten(0, 1).to(like) / 255


def reproject(depth_m: Float[Tensor, "N H W"], target: Cameras, source: Cameras) -> Landed:
    """Find where the pixels of the targets fall in the sources.

    Args:
        depth_m: z of the targets' pixels in metres.
        target, source: cameras with images of the same size.
    """
    source_from_target = torch.linalg.solve(source.rig_from_cam, target.rig_from_cam)
    height, width = depth_m.shape[-2:]
    v, u = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    pixels = torch.stack([u, v, torch.ones_like(u)]).flatten(1).to(depth_m)
    rays = source.K_px @ source_from_target[:, :3, :3] @ torch.linalg.inv(target.K_px) @ pixels
    points = rays * depth_m.flatten(1)[:, None] + source.K_px @ source_from_target[:, :3, 3:]
    x, y, z = points.unflatten(-1, (height, width)).unbind(1)
    ahead = z > MIN_DEPTH_M
    z = torch.where(ahead, z, 1.0)
    u, v = x / z, y / z
    inside = ahead & (u >= 0) & (u <= width) & (v >= 0) & (v <= height)
    # -1 and 1 are the outer edges of the border pixels: with half-integer pixel centres these are 0 and W.
    grid = torch.stack([2 * u / width - 1, 2 * v / height - 1], dim=-1)
    return Landed(grid, z, ahead, inside & (target.valid & source.valid)[:, None, None])


def sample(source: Float[Tensor, "N C H W"], grid: Float[Tensor, "N h w 2"]) -> Float[Tensor, "N C h w"]:
    """Sample the sources bilinearly at `grid` (Jaderberg et al. 2015); places outside get the value at the border."""
    return grid_sample(source, grid, padding_mode="border", align_corners=False)
