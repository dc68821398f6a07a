"""Relations of bin probabilities: what two cameras of a ring say of a surface that the teacher finds in both."""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from data_cache.dataset import CachedRigs
from stages.compute.parallel import mean_count
from stages.losses.reprojection import in_a_row, neighbour_steps, reproject, sample
from stages.targets.lidar_fit import FARTHEST_M

SURE_WITHIN = math.log(1.1)
"""Difference of the teacher's two log depths of a surface at which its word counts exp(-1/2) of what it counts at 0."""


def bin_relation_loss(
    depth_m: Float[Tensor, "B V H W"],
    teacher_m: Float[Tensor, "B V H W"],
    fitted: Bool[Tensor, "B V"],
    rigs: CachedRigs,
) -> Float[Tensor, ""]:
    """Weighted mean of |log z - log D|: z is the depth of a pixel in its ring neighbour, D what the neighbour says.

    Both are expectations under the student's bin probabilities: z is linear in depth, so moving the bins of a pixel
    into the neighbour's camera moves their expectation alike. Unlike `agreement_loss`, which looks at the place where
    the student's own depth puts the pixel, D is taken where the teacher's depth, fitted to metres, puts it. So pixels
    that the student tears apart are pulled together, too, and nothing is truncated. A pixel counts
    exp(-(r / SURE_WITHIN)^2 / 2), with r the difference of the teacher's two log depths of the surface: little where
    one surface hides the other, or the teacher itself is not sure; and nothing where the student puts it behind the
    neighbour, which has no logarithm. Both directions; the gradient flows to both depths.
    Ours. Zero, with a zero gradient, if no fitted cameras overlap.

    Args:
        depth_m: predictions in metres, > 0.
        teacher_m: the teacher's depth in metres, > 0; FARTHEST_M is sky, not a surface.
        fitted: views whose `teacher_m` means something.
        rigs: rigs on any device; only their cameras are used.
    """
    depths_m, target = depth_m.flatten(0, 1), in_a_row(rigs, depth_m)
    usable = fitted & rigs.view_valid.to(fitted.device)
    errors, weights = [depth_m.sum() * 0], [torch.zeros((), device=depth_m.device)]
    for step in neighbour_steps(depth_m.shape[1]):
        source = in_a_row(rigs, depth_m, step)
        own = reproject(depths_m, target, source)
        with torch.no_grad():
            found = reproject(teacher_m.flatten(0, 1), target, source)
            there_m = sample(teacher_m.roll(-step, 1).flatten(0, 1)[:, None], found.grid)[:, 0]
            unsure = (found.depth_m.log() - there_m.log()) / SURE_WITHIN
            both = (usable & usable.roll(-step, 1)).flatten()[:, None, None]
            counts = found.seen & own.ahead & both & (teacher_m.flatten(0, 1) < FARTHEST_M)
            weight = torch.where(counts, torch.exp(-(unsure**2) / 2), 0.0)
        other_m = sample(depth_m.roll(-step, 1).flatten(0, 1)[:, None], found.grid)[:, 0]
        errors.append((weight * (own.depth_m.log() - other_m.log()).abs()).sum())
        weights.append(weight.sum())
    return torch.stack(errors).sum() / mean_count(torch.stack(weights).sum())
