"""The teacher's bins in metres: its relative disparity is fitted to LiDAR, image by image."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import interpolate

from stages.targets.binning import Binning
from stages.targets.bins import expected_position, positions
from stages.targets.lidar_fit import LidarFit


def teacher_disparity(
    teacher_prob: Float[Tensor, "B V K h w"], like: Float[Tensor, "B V H W"], binning: Binning
) -> Float[Tensor, "B V H W"]:
    """The teacher's relative disparity at the size of `like`, for `fit_disparity` and `LidarFit.depth_m`.

    Args:
        teacher_prob: bin probabilities, whose expected position is the teacher's u.
        like: gives the size.
        binning: how u was made.
    """
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
