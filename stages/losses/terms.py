"""One function per loss term, without its weight. These are our reconstruction, not the paper's published equations.

With several processes, the mean over processes of a function's result is the mean over all their frames.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from stages.compute.parallel import mean_count

MIN_POINTS_PER_RIG = 10
RELATION_TEMPERATURE = 0.1
LOGIT_TEMPERATURE = 4.0


@dataclass(frozen=True, eq=False)
class LossTerms:
    """The terms of one step, not weighted; None for a term of weight 0, which is not computed."""

    supervised: Float[Tensor, ""] | None = None
    kl: Float[Tensor, ""] | None = None
    cross: Float[Tensor, ""] | None = None
    relation: Float[Tensor, ""] | None = None
    output: Float[Tensor, ""] | None = None
    logit: Float[Tensor, ""] | None = None
    feature: Float[Tensor, ""] | None = None
    all_relation: Float[Tensor, ""] | None = None
    completion: Float[Tensor, ""] | None = None
    photometric: Float[Tensor, ""] | None = None
    agreement: Float[Tensor, ""] | None = None
    bin_relation: Float[Tensor, ""] | None = None


def scale_invariant_log(
    depth_m: Float[Tensor, "B V H W"], lidar_depth_m: Float[Tensor, "B V H W"]
) -> Float[Tensor, ""]:
    """SI-log on LiDAR pixels: 10 sqrt(var g + 0.15 mean(g)^2 + 1e-6), g = log depth - log LiDAR.

    Eigen et al. 2014 as written in AdaBins (Bhat et al. 2021). All views of a rig are pooled; a rig with fewer than 10
    points is left out. Zero, with a zero gradient, if none is left.

    Args:
        depth_m: predictions in metres, > 0.
        lidar_depth_m: metres, 0 = no return.
    """
    valid = (lidar_depth_m > 0).flatten(start_dim=1)
    # Masked before the logarithm: a NaN times zero is still NaN.
    target = torch.where(valid, lidar_depth_m.flatten(start_dim=1), 1.0)
    g = torch.where(valid, depth_m.flatten(start_dim=1), 1.0).log() - target.log()
    points = valid.sum(1)
    mean = g.sum(1) / points.clamp(min=1)
    var = (torch.where(valid, g - mean[:, None], 0.0) ** 2).sum(1) / points.clamp(min=1)
    per_rig = 10 * (var + 0.15 * mean**2 + 1e-6).sqrt()
    used = points >= MIN_POINTS_PER_RIG
    return torch.where(used, per_rig, 0.0).sum() / mean_count(used.sum())


def bin_kl(
    teacher_prob: Float[Tensor, "B V K h w"],
    student_logit: Float[Tensor, "B V K h w"],
    view_valid: Bool[Tensor, "B V"],
) -> Float[Tensor, ""]:
    """KL(teacher || student) over bins, mean over the pixels of valid views, in nats (Hinton et al. 2015, T = 1)."""
    kl = torch.special.xlogy(teacher_prob, teacher_prob) - teacher_prob * student_logit.log_softmax(dim=2)
    return _mean_over_views(kl.sum(2).mean((-2, -1)), view_valid)


def cross_interaction(
    teacher_prob: Float[Tensor, "B V K h w"],
    centers_m: Float[Tensor, "B V K"],
    lidar_depth_m: Float[Tensor, "B V H W"],
) -> Float[Tensor, ""]:
    """SI-log of the depth given by the teacher's probabilities and the student's centres.

    The teacher has no gradient, so only the centres learn, and only from LiDAR.
    """
    depth_m = torch.einsum("bvkhw,bvk->bvhw", teacher_prob, centers_m)
    size = (int(lidar_depth_m.shape[-2]), int(lidar_depth_m.shape[-1]))
    upsampled = torch.nn.functional.interpolate(depth_m, size=size, mode="bilinear", align_corners=False)
    return scale_invariant_log(upsampled, lidar_depth_m)


def relation_kl(
    teacher_relation: Float[Tensor, "B V P P"],
    student_relation: Float[Tensor, "B V P P"],
    pair_valid: Bool[Tensor, "B V"],
) -> Float[Tensor, ""]:
    """KL between softmax(R / 0.1) of teacher and student, over rows and over columns, mean over valid neighbours.

    Relational distillation in the manner of CIRKD (Yang et al. 2022), between ring neighbours and in both directions.
    """
    per_direction = []
    for dim in (-1, -2):
        teacher_log = (teacher_relation / RELATION_TEMPERATURE).log_softmax(dim)
        student_log = (student_relation / RELATION_TEMPERATURE).log_softmax(dim)
        per_direction.append((teacher_log.exp() * (teacher_log - student_log)).sum(dim).mean(-1))
    return _mean_over_views(torch.stack(per_direction).mean(0), pair_valid)


def output_level(
    depth_m: Float[Tensor, "B V H W"], teacher_depth_m: Float[Tensor, "B V H W"], fitted: Bool[Tensor, "B V"]
) -> Float[Tensor, ""]:
    """L1 of log depth against the teacher's depth, mean over the pixels of fitted views; a baseline."""
    difference = (depth_m.log() - teacher_depth_m.log()).abs()
    return _mean_over_views(difference.mean((-2, -1)), fitted)


def softened_kl(
    teacher_prob: Float[Tensor, "B V K h w"],
    student_logit: Float[Tensor, "B V K h w"],
    view_valid: Bool[Tensor, "B V"],
) -> Float[Tensor, ""]:
    """T^2 KL(softmax(log p / T) || softmax(z / T)), the logit distillation of Hinton et al. 2015; a baseline."""
    softened = (teacher_prob.clamp(min=1e-12).log() / LOGIT_TEMPERATURE).softmax(2)
    return LOGIT_TEMPERATURE**2 * bin_kl(softened, student_logit / LOGIT_TEMPERATURE, view_valid)


def token_distance(
    teacher_tokens: Float[Tensor, "B V P C"], adapted_tokens: Float[Tensor, "B V P C"], view_valid: Bool[Tensor, "B V"]
) -> Float[Tensor, ""]:
    """Squared distance of tokens, mean over the tokens of valid views (FitNets, Romero et al. 2015); a baseline."""
    return _mean_over_views(((teacher_tokens - adapted_tokens) ** 2).sum(-1).mean(-1), view_valid)


def _mean_over_views(value: Float[Tensor, "B V"], valid: Bool[Tensor, "B V"]) -> Float[Tensor, ""]:
    return torch.where(valid, value, 0.0).sum() / mean_count(valid.sum())
