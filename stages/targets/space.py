"""The space of a teacher's predictions: disparity, depth, or log depth."""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from stages.targets.bins import LOG_CURVATURE

Space = Literal["disparity", "depth", "log_depth", "affine_depth"]
METRIC_SPACES = ("depth", "log_depth")
"""Spaces of predictions in metres or their logarithm; the others are known up to scale and shift."""


def to_disparity(prediction: Float[Tensor, "*shape"], space: Space) -> Float[Tensor, "*shape"]:
    """Convert a teacher's prediction to disparity, in 1/m for a metric space; the only place that inverts depth."""
    match space:
        case "disparity":
            return prediction
        case "depth":
            return 1 / prediction.clamp(min=1e-3)
        case "log_depth":
            return torch.exp(-prediction)
        case "affine_depth":
            # The ratio of farthest to nearest depth is unknown: take the one that the log map of the bins implies.
            return 1 / (prediction.clamp(0, 1) + 1 / LOG_CURVATURE)
