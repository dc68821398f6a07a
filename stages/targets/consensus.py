"""Metres of frames without LiDAR by three that err apart: teacher placed by motion, student, teacher placed by student.

The student learnt from the frames with LiDAR alone: it knows sizes of things, the teacher knows their shape, motion
knows how far the rig went. Their errors are nearly independent, so the mean of their log depths is better than each.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from stages.targets.lidar_fit import LidarFit

ROUNDS = 10
LEAST_RELATIVE_ERROR = 0.02
"""Below it, all pixels have the same weight in a fit."""


def consensus(
    disparity: Float[Tensor, "B V H W"], by_motion: LidarFit, student_m: Float[Tensor, "B V H W"]
) -> tuple[Float[Tensor, "B V H W"], Bool[Tensor, "B V"]]:
    """Mean of log depth, and which images have one, without gradient.

    Args:
        disparity: the teacher's relative disparity, 0 to 1.
        by_motion: fit of the teacher to motion; images that it does not fit take the mean of the other two.
        student_m: metres that a student says.
    """
    with torch.no_grad():
        by_student = fit_to_depth(disparity, student_m)
        weights = torch.stack([by_motion.fitted.float(), by_student.fitted.float(), torch.ones_like(by_motion.scale)])
        logs = torch.stack([by_motion.depth_m(disparity).log(), by_student.depth_m(disparity).log(), student_m.log()])
        mean = (weights[..., None, None] * logs).sum(0) / weights.sum(0)[..., None, None]
        return mean.exp(), by_motion.fitted | by_student.fitted


def fit_to_depth(disparity: Float[Tensor, "B V H W"], depth_m: Float[Tensor, "B V H W"]) -> LidarFit:
    """Scale and shift that bring the teacher's disparity nearest to the inverse of a whole depth map.

    The mean relative error of inverse depth is least, by iteratively reweighted least squares (Holland and Welsch
    1977), so that a car which only one of the two sees far away does not turn the rest.
    """
    x, y, relative = disparity.flatten(2), 1 / depth_m.flatten(2), depth_m.flatten(2)
    weight = relative**2
    scale = shift = torch.zeros_like(x[..., :1])
    for _ in range(ROUNDS):
        share = weight / weight.sum(-1, keepdim=True)
        mean_x, mean_y = (share * x).sum(-1, keepdim=True), (share * y).sum(-1, keepdim=True)
        spread = (share * (x - mean_x) ** 2).sum(-1, keepdim=True)
        scale = (share * (x - mean_x) * (y - mean_y)).sum(-1, keepdim=True) / spread.clamp(min=1e-6)
        shift = mean_y - scale * mean_x
        error = (relative * (shift + scale * x - y)).abs()
        weight = relative**2 / error.clamp(min=LEAST_RELATIVE_ERROR)
    return LidarFit(scale[..., 0], shift[..., 0], scale[..., 0] > 0)
