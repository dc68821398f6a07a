"""The teacher's bins in metres: its relative disparity is fitted to LiDAR, image by image."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import interpolate

from stages.targets.binning import Binning
from stages.targets.bins import expected_position, positions

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

    scale: Float[Tensor, "B V"]
    shift: Float[Tensor, "B V"]
    fitted: Bool[Tensor, "B V"]

    def depth_m(self, disparity: Float[Tensor, "B V *shape"]) -> Float[Tensor, "B V *shape"]:
        """Depth in metres of a relative disparity, at most FARTHEST_M."""
        last = [1] * (disparity.dim() - 2)
        scale, shift = (value.view(*value.shape, *last) for value in (self.scale, self.shift))
        return 1 / (shift + scale * disparity).clamp(min=1 / FARTHEST_M)


def fit_to_lidar(
    teacher_prob: Float[Tensor, "B V K h w"], lidar_depth_m: Float[Tensor, "B V H W"], binning: Binning
) -> LidarFit:
    """Least squares of inverse LiDAR depth on the teacher's disparity (Ranftl et al. 2020, MiDaS), without gradient.

    Args:
        teacher_prob: bin probabilities, whose expected position is the teacher's u.
        lidar_depth_m: metres, 0 = no return.
        binning: how u was made.
    """
    with torch.no_grad():
        x = teacher_disparity(teacher_prob, lidar_depth_m, binning)
        valid = lidar_depth_m > 0
        inverse = torch.where(valid, 1 / torch.where(valid, lidar_depth_m, 1.0), 0.0)
        count = valid.sum((-2, -1))
        mean_x = torch.where(valid, x, 0.0).sum((-2, -1)) / count.clamp(min=1)
        mean_y = inverse.sum((-2, -1)) / count.clamp(min=1)
        centred = torch.where(valid, x - mean_x[..., None, None], 0.0)
        scale = (centred * inverse).sum((-2, -1)) / (centred**2).sum((-2, -1)).clamp(min=1e-6)
        return LidarFit(scale, mean_y - scale * mean_x, (count >= MIN_POINTS_PER_FIT) & (scale > 0))


def teacher_disparity(
    teacher_prob: Float[Tensor, "B V K h w"], like: Float[Tensor, "B V H W"], binning: Binning
) -> Float[Tensor, "B V H W"]:
    """The teacher's relative disparity at the size of `like`."""
    size = (int(like.shape[-2]), int(like.shape[-1]))
    return interpolate(
        binning.disparity(expected_position(teacher_prob)), size=size, mode="bilinear", align_corners=False
    )


def lidar_frame(fit: LidarFit, centers_m: Float[Tensor, "B V K"], binning: Binning) -> Float[Tensor, "B V K"]:
    """Positions of the teacher's bins among the student's centres by a fit to LiDAR, for `move_bins`; without gradient.

    Bin position b_k has the relative disparity x(b_k), which the fit puts at m_k metres. Scale and shift come from
    LiDAR, so the sky goes to the farthest bin although no return reaches it.
    """
    with torch.no_grad():
        disparity = binning.disparity(positions(centers_m.shape[-1], centers_m)).expand_as(centers_m)
        return position_among(fit.depth_m(disparity), centers_m)


def position_among(depth_m: Float[Tensor, "B V N"], centers_m: Float[Tensor, "B V K"]) -> Float[Tensor, "B V N"]:
    """Bin position of each depth: linear in log depth between two centres, constant beyond the outermost centres.

    Args:
        depth_m: depths in metres, in any order.
        centers_m: centres in metres, strictly decreasing.
    """
    count = centers_m.shape[-1]
    rising, wanted = -centers_m.log(), -depth_m.log()
    right = torch.searchsorted(rising.contiguous(), wanted.contiguous()).clamp(1, count - 1)
    low, high = rising.gather(-1, right - 1), rising.gather(-1, right)
    return (right - 0.5 + ((wanted - low) / (high - low)).clamp(0, 1)) / count
