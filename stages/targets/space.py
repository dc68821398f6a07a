"""What the numbers of a teacher mean: disparity, depth, or its logarithm."""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from stages.targets.bins import LOG_CURVATURE

Space = Literal["disparity", "depth", "log_depth", "affine_depth"]
METRIC_SPACES = ("depth", "log_depth")
"""Spaces whose predictions are metres or their logarithm; the others are known up to scale and shift."""


def to_disparity(prediction: Float[Tensor, "*shape"], space: Space) -> Float[Tensor, "*shape"]:
    """A teacher's map as disparity, in 1/m for a metric space; the one place where a depth teacher is inverted."""
    match space:
        case "disparity":
            return prediction
        case "depth":
            return 1 / prediction.clamp(min=1e-3)
        case "log_depth":
            return torch.exp(-prediction)
        case "affine_depth":
            # How far the farthest is compared with the nearest is left open: take what the log map of the bins takes.
            return 1 / (prediction.clamp(0, 1) + 1 / LOG_CURVATURE)
