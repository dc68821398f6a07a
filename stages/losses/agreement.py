"""Geometric consistency: neighbouring cameras give the same depth to a surface that both see."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from data_cache.dataset import CachedRigs
from data_cache.frames.geometry import OCCLUSION_RATIO
from stages.compute.parallel import mean_count
from stages.losses.reprojection import in_a_row, neighbour_steps, reproject, sample


def agreement_loss(depth_m: Float[Tensor, "B V H W"], rigs: CachedRigs) -> Float[Tensor, ""]:
    """|log z - log D| with z a pixel's depth as its ring neighbour would see it and D what the neighbour says there.

    Mean over all pixels that fall into a neighbour, both directions. Truncated at log OCCLUSION_RATIO: beyond it they
    are taken for two surfaces, one hiding the other, and nothing is learnt, as the metric compares none of them
    (stages/evaluation/consistency.py). The depth consistency of Bian et al. 2019, there between moments, here between
    the cameras of a rig and in logarithms. Both depths learn. Zero, with a zero gradient, if no camera sees what
    another one does.

    Args:
        depth_m: predictions in metres, > 0.
        rigs: on any device; cameras are used.
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
