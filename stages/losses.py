"""One function per loss term; weights apart. These are our reconstruction, not the paper's published equations."""

from dataclasses import dataclass, fields

import torch
from jaxtyping import Bool, Float
from torch import Tensor

MIN_POINTS_PER_RIG = 10
RELATION_TEMPERATURE = 0.1


@dataclass(frozen=True, eq=False)
class LossTerms:
    """The terms of one step. Weights live in the recipe, never in here."""

    supervised: Float[Tensor, ""]
    kl: Float[Tensor, ""]
    cross: Float[Tensor, ""]
    relation: Float[Tensor, ""]


@dataclass(frozen=True, kw_only=True)
class LossWeights:
    """One weight per field of LossTerms, same names. A term of weight 0 is not computed."""

    supervised: float = 1.0
    kl: float = 0.3
    cross: float = 0.0
    relation: float = 1.0

    def __post_init__(self) -> None:
        for field in fields(self):
            if not 0 <= getattr(self, field.name) < float("inf"):
                raise ValueError(f"{field.name}: expected a weight >= 0, got {getattr(self, field.name)}")


def weighted_sum(terms: LossTerms, weights: LossWeights) -> Float[Tensor, ""]:
    """Sum of weight * term over all terms of positive weight."""
    parts = [getattr(weights, f.name) * getattr(terms, f.name) for f in fields(terms) if getattr(weights, f.name) > 0]
    return torch.stack(parts).sum() if parts else terms.supervised * 0


def scale_invariant_log(
    depth_m: Float[Tensor, "B V H W"], lidar_depth_m: Float[Tensor, "B V H W"]
) -> Float[Tensor, ""]:
    """SI-log on LiDAR pixels: 10 sqrt(var g + 0.15 mean(g)^2 + 1e-6), g = log depth - log LiDAR.

    Eigen et al. 2014 as written in AdaBins (Bhat et al. 2021). All views of a rig count together; a rig with fewer than
    10 points is left out; zero, with a zero gradient, when none is left.

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
    return torch.where(used, per_rig, 0.0).sum() / used.sum().clamp(min=1)


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
    """SI-log of the depth that the teacher's probabilities and the student's centres make together.

    The teacher has no gradient, so only the centres learn, and only from metres.
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
    """KL between softmax(R / 0.1) of teacher and student, by rows and by columns, mean over valid neighbours.

    Relational distillation in the manner of CIRKD (Yang et al. 2022), on ring neighbours and in both directions.
    """
    per_direction = []
    for dim in (-1, -2):
        teacher_log = (teacher_relation / RELATION_TEMPERATURE).log_softmax(dim)
        student_log = (student_relation / RELATION_TEMPERATURE).log_softmax(dim)
        per_direction.append((teacher_log.exp() * (teacher_log - student_log)).sum(dim).mean(-1))
    return _mean_over_views(torch.stack(per_direction).mean(0), pair_valid)


def _mean_over_views(value: Float[Tensor, "B V"], valid: Bool[Tensor, "B V"]) -> Float[Tensor, ""]:
    return torch.where(valid, value, 0.0).sum() / valid.sum().clamp(min=1)
