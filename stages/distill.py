"""What a step of stage two learns from: the student's forward pass and every loss term that has a weight."""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import interpolate

from data_cache.dataset import CachedRigs
from data_cache.schema import map_arrays
from stages import losses
from stages.bins import align_frame, decode, expected_position, map_disparity
from stages.completion import densify
from stages.devices import autocast
from stages.losses import LossSpec, LossTerms
from stages.photometric import photometric_loss
from stages.relations import all_relations, neighbours_valid, pairs_valid, ring_relations
from stages.student.model import Student

MIN_POINTS_PER_FIT = 10


class Learner(nn.Module):
    """The student, and the map from its tokens to the teacher's that feature distillation learns and throws away."""

    def __init__(self, student: Student, token_channels: int = 0):
        """`token_channels` of the teacher, 0 without feature distillation."""
        super().__init__()
        self.student = student
        self.adapter = nn.Linear(student.token_channels, token_channels) if token_channels else None


def loss_terms(
    learner: Learner,
    rigs: CachedRigs,
    image: Float[Tensor, "B V 3 H W"],
    spec: LossSpec,
    depth_range_m: tuple[float, float],
    device: torch.device,
    precision: str,
) -> LossTerms:
    """Forward pass and every term whose weight is not zero.

    Args:
        learner: the student, and its adapter where the feature term has a weight.
        rigs: what the cache says.
        image: RGB in [0, 1], augmented, on `device`.
        spec: weights.
        depth_range_m: LiDAR depths outside teach nothing.
        device, precision: where and how.
    """
    student = learner.student
    view_valid = rigs.view_valid.to(device)
    lidar_depth_m = rigs.lidar_depth_m.to(device)
    in_range = (lidar_depth_m > depth_range_m[0]) & (lidar_depth_m < depth_range_m[1])
    lidar_depth_m = torch.where(in_range, lidar_depth_m, 0.0)
    with autocast(device, precision):
        out = student(image, rigs.focal_px.to(device), view_valid)

    def term(weight: float, value: Callable[[], Float[Tensor, ""]]) -> Float[Tensor, ""] | None:
        return value() if weight else None

    teacher_prob = target = torch.empty(0)
    if spec.kl or spec.cross or spec.logit or spec.output or spec.completion:
        teacher_prob = decode(map_arrays(lambda array: array.to(device), rigs.bins), student.bins)
        target = teacher_prob
        if spec.frame == "aligned" and (spec.kl or spec.cross):
            target = align_frame(teacher_prob, out.logit.softmax(2))
    teacher_tokens = rigs.tokens.to(device)

    def output() -> Float[Tensor, ""]:
        teacher_depth_m, fitted = lidar_fitted_depth_m(teacher_prob, lidar_depth_m, depth_range_m)
        return losses.output_level(out.depth_m, teacher_depth_m, fitted)

    def feature() -> Float[Tensor, ""]:
        assert learner.adapter is not None
        return losses.token_distance(teacher_tokens, learner.adapter(out.tokens), view_valid)

    def completion() -> Float[Tensor, ""]:
        guide = expected_position(teacher_prob).flatten(0, 1)
        dense_m = densify(lidar_depth_m.flatten(0, 1), guide, spec.completion_radius_px).view_as(lidar_depth_m)
        return losses.scale_invariant_log(out.depth_m, dense_m)

    return LossTerms(
        supervised=term(spec.supervised, lambda: losses.scale_invariant_log(out.depth_m, lidar_depth_m)),
        kl=term(spec.kl, lambda: losses.bin_kl(target, out.logit, view_valid)),
        cross=term(spec.cross, lambda: losses.cross_interaction(target, out.centers_m, lidar_depth_m)),
        relation=term(
            spec.relation,
            lambda: losses.relation_kl(
                rigs.relation.to(device), ring_relations(out.tokens), neighbours_valid(view_valid)
            ),
        ),
        output=term(spec.output, output),
        logit=term(spec.logit, lambda: losses.softened_kl(teacher_prob, out.logit, view_valid)),
        feature=term(spec.feature, feature),
        all_relation=term(
            spec.all_relation,
            lambda: losses.relation_kl(
                all_relations(teacher_tokens), all_relations(out.tokens), pairs_valid(view_valid)
            ),
        ),
        completion=term(spec.completion, completion),
        photometric=term(spec.photometric, lambda: photometric_loss(out.depth_m, rigs)),
    )


def lidar_fitted_depth_m(
    teacher_prob: Float[Tensor, "B V K h w"],
    lidar_depth_m: Float[Tensor, "B V H W"],
    depth_range_m: tuple[float, float],
) -> tuple[Float[Tensor, "B V H W"], Bool[Tensor, "B V"]]:
    """The teacher's depth after a least-squares fit of its disparity to LiDAR, per image (Ranftl et al. 2020, MiDaS).

    Args:
        teacher_prob: bin probabilities, whose expected position is the affine-invariant map.
        lidar_depth_m: metres, 0 = no return.
        depth_range_m: the result is clipped to it.

    Returns:
        Metres, and which images had at least 10 points and a teacher that grows with true disparity.
    """
    size = (int(lidar_depth_m.shape[-2]), int(lidar_depth_m.shape[-1]))
    disparity = map_disparity(expected_position(teacher_prob))
    x = interpolate(disparity, size=size, mode="bilinear", align_corners=False)
    valid = lidar_depth_m > 0
    inverse = torch.where(valid, 1 / torch.where(valid, lidar_depth_m, 1.0), 0.0)
    points = valid.sum((-2, -1)).clamp(min=1)
    mean_x = torch.where(valid, x, 0.0).sum((-2, -1)) / points
    mean_y = inverse.sum((-2, -1)) / points
    centred = torch.where(valid, x - mean_x[..., None, None], 0.0)
    variance = (centred**2).sum((-2, -1))
    scale = (centred * inverse).sum((-2, -1)) / variance.clamp(min=1e-6)
    fitted = mean_y[..., None, None] + scale[..., None, None] * (x - mean_x[..., None, None])
    near_m, far_m = depth_range_m
    depth_m = 1 / fitted.clamp(1 / far_m, 1 / near_m)
    return depth_m, (valid.sum((-2, -1)) >= MIN_POINTS_PER_FIT) & (scale > 0)
