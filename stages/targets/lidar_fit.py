"""Relative disparity in metres: scale and shift of each image, fitted to LiDAR."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

MIN_POINTS_PER_FIT = 10
FARTHEST_M = 1000.0
"""Largest depth of a fit. Beyond it, or behind the camera, is where the fit of a relative teacher puts the sky."""


@dataclass(frozen=True, eq=False)
class LidarFit:
    """A fit 1 / depth = shift + scale x, with x the teacher's relative disparity (`Binning.disparity`).

    Attributes:
        scale, shift: in 1 / m, per image.
        fitted: True for images with at least 10 points and a positive scale; elsewhere scale and shift are meaningless.
    """

    scale: Float[Tensor, "*batch"]
    shift: Float[Tensor, "*batch"]
    fitted: Bool[Tensor, "*batch"]

    def depth_m(self, disparity: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Depth in metres of a relative disparity (batch, then any axes); FARTHEST_M for all beyond."""
        last = [1] * (disparity.dim() - self.scale.dim())
        scale, shift = (value.view(*value.shape, *last) for value in (self.scale, self.shift))
        inverse = shift + scale * disparity
        return torch.where(inverse <= 1 / FARTHEST_M, FARTHEST_M, 1 / inverse.clamp(min=1 / FARTHEST_M))


def fit_disparity(x: Float[Tensor, "*batch H W"], lidar_depth_m: Float[Tensor, "*batch H W"]) -> LidarFit:
    """Least squares of inverse LiDAR depth on relative disparity x, image by image (Ranftl et al. 2020, MiDaS).

    Args:
        x: relative disparity.
        lidar_depth_m: metres, 0 = no return.
    """
    valid = lidar_depth_m > 0
    inverse = torch.where(valid, 1 / torch.where(valid, lidar_depth_m, 1.0), 0.0)
    count = valid.sum((-2, -1))
    mean_x = torch.where(valid, x, 0.0).sum((-2, -1)) / count.clamp(min=1)
    mean_y = inverse.sum((-2, -1)) / count.clamp(min=1)
    centred = torch.where(valid, x - mean_x[..., None, None], 0.0)
    scale = (centred * inverse).sum((-2, -1)) / (centred**2).sum((-2, -1)).clamp(min=1e-6)
    return LidarFit(scale, mean_y - scale * mean_x, (count >= MIN_POINTS_PER_FIT) & (scale > 0))
