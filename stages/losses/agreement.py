"""Geometric consistency: neighbouring cameras should give the same depth to a surface that both see."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from data_cache.dataset import CachedRigs
from data_cache.frames.geometry import OCCLUSION_RATIO
from stages.compute.parallel import mean_count
from stages.losses.reprojection import in_a_row, neighbour_steps, reproject, sample


def agreement_loss(depth_m: Float[Tensor, "B V H W"], rigs: CachedRigs) -> Float[Tensor, ""]:
    """Mean of |log z - log D|, with z the depth of a pixel in its ring neighbour and D the neighbour's own depth there.

    The mean is over all pixels that fall into a neighbour, both directions. Truncated at log OCCLUSION_RATIO: beyond it
    the depths belong to two surfaces, one hiding the other, and have no gradient; the metric `overlap` excludes such
    pixels as well (stages/evaluation/consistency.py). It is the depth consistency of Bian et al. 2019, here between the
    cameras of a rig instead of moments in time, and in logarithms. The gradient flows to both depths. Zero, with a zero
    gradient, if no cameras overlap.

    Args:
        depth_m: predictions in metres, > 0.
        rigs: rigs on any device; only their cameras are used.
    """
    depths_m, target = depth_m.flatten(0, 1), in_a_row(rigs, depth_m)
    errors, pixels = [depth_m.sum() * 0], [torch.zeros((), dtype=torch.long, device=depth_m.device)]
    for step in neighbour_steps(depth_m.shape[1]):
        landed = reproject(depths_m, target, in_a_row(rigs, depth_m, step))
        other_m = sample(depth_m.roll(-step, 1).flatten(0, 1)[:, None], landed.grid)[:, 0]
        error = (landed.depth_m.log() - other_m.log()).abs().clamp(max=math.log(OCCLUSION_RATIO))
        errors.append(torch.where(landed.seen, error, 0.0).sum())
        pixels.append(landed.seen.sum())
    return torch.stack(errors).sum() / mean_count(torch.stack(pixels).sum())
