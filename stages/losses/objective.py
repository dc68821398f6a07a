"""The objective of stage two: the student's forward pass and every loss term that has a weight."""

from collections.abc import Callable
from functools import cache

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from data_cache.dataset import CachedRigs
from stages.compute.devices import autocast
from stages.losses import terms
from stages.losses.agreement import agreement_loss
from stages.losses.bin_relation import bin_relation_loss
from stages.losses.completion import densify
from stages.losses.photometric import photometric_loss
from stages.losses.spec import LossSpec
from stages.losses.terms import LossTerms
from stages.student.model import Student, StudentOutput
from stages.targets.binning import Binning
from stages.targets.bins import decode, expected_position, move_bins, student_frame
from stages.targets.lidar_fit import LidarFit, fit_disparity
from stages.targets.lidar_frame import lidar_frame, teacher_disparity
from stages.targets.relations import all_relations, neighbours_valid, pairs_valid, ring_relations


class Learner(nn.Module):
    """The student, and an adapter from its tokens to the teacher's, which only feature distillation needs."""

    def __init__(self, student: Student, token_channels: int = 0):
        """`token_channels`: channels of the teacher's tokens, 0 without feature distillation."""
        super().__init__()
        self.student = student
        self.adapter = nn.Linear(student.token_channels, token_channels) if token_channels else None


def loss_terms(
    learner: Learner,
    binning: Binning,
    rigs: CachedRigs,
    image: Float[Tensor, "B V 3 H W"],
    spec: LossSpec,
    depth_range_m: tuple[float, float],
    precision: str,
) -> LossTerms:
    """Run the student and compute every term whose weight is not zero.

    Args:
        learner: the student, and its adapter if the feature term has a weight.
        binning: how the teacher's bins in the cache were cut.
        rigs: cached rigs with LiDAR and the teacher's targets. Where `teacher_fit` has a scale above 0, the teacher's
            depth by that fit, within `depth_range_m`, stands for LiDAR.
        image: RGB in [0, 1], augmented, on the device of learner and rigs.
        spec: weights.
        depth_range_m: LiDAR depths outside are ignored.
        precision: precision of the student's forward pass; the losses are fp32.
    """
    student = learner.student
    view_valid, lidar_depth_m = rigs.view_valid, rigs.lidar_depth_m
    in_range = (lidar_depth_m > depth_range_m[0]) & (lidar_depth_m < depth_range_m[1])
    lidar_depth_m = torch.where(in_range, lidar_depth_m, 0.0)
    teacher_prob = target = torch.empty(0)
    of_teacher = (spec.kl, spec.cross, spec.logit, spec.output, spec.completion, spec.bin_relation)
    if rigs.teacher_fit is not None or any(of_teacher):
        teacher_prob = decode(rigs.bins, student.bins)

    @cache
    def disparity() -> Float[Tensor, "B V H W"]:
        return teacher_disparity(teacher_prob, rigs.lidar_depth_m, binning)

    if rigs.teacher_fit is not None:
        scale, shift = rigs.teacher_fit.unbind(-1)
        fit = LidarFit(scale, shift, scale > 0)
        depth_m = fit.depth_m(disparity())
        taken = fit.fitted[..., None, None] & (depth_m > depth_range_m[0]) & (depth_m < depth_range_m[1])
        lidar_depth_m = torch.where(taken, depth_m, lidar_depth_m)
    with autocast(image.device, precision):
        out = student(image, rigs.focal_px, view_valid)

    @cache
    def teacher_fit() -> LidarFit:
        return fit_disparity(disparity(), lidar_depth_m)

    def term(weight: float, value: Callable[[], Float[Tensor, ""]]) -> Float[Tensor, ""] | None:
        return value() if weight else None

    if spec.kl or spec.cross:
        target = _framed(teacher_prob, binning, out, teacher_fit, spec.frame)

    def teacher_fitted_m() -> tuple[Float[Tensor, "B V H W"], Bool[Tensor, "B V"]]:
        fit = teacher_fit()
        return fit.depth_m(disparity()).clamp(min=depth_range_m[0]), fit.fitted

    def output() -> Float[Tensor, ""]:
        teacher_m, fitted = teacher_fitted_m()
        return terms.output_level(out.depth_m, teacher_m.clamp(max=depth_range_m[1]), fitted)

    def feature() -> Float[Tensor, ""]:
        assert learner.adapter is not None
        return terms.token_distance(rigs.tokens, learner.adapter(out.tokens), view_valid)

    def completion() -> Float[Tensor, ""]:
        guide = expected_position(teacher_prob).flatten(0, 1)
        dense_m = densify(lidar_depth_m.flatten(0, 1), guide, spec.completion_radius_px).view_as(lidar_depth_m)
        return terms.scale_invariant_log(out.depth_m, dense_m)

    return LossTerms(
        supervised=term(spec.supervised, lambda: terms.scale_invariant_log(out.depth_m, lidar_depth_m)),
        kl=term(spec.kl, lambda: terms.bin_kl(target, out.logit, view_valid)),
        cross=term(spec.cross, lambda: terms.cross_interaction(target, out.centers_m, lidar_depth_m)),
        relation=term(
            spec.relation,
            lambda: terms.relation_kl(rigs.relation, ring_relations(out.tokens), neighbours_valid(view_valid)),
        ),
        output=term(spec.output, output),
        logit=term(spec.logit, lambda: terms.softened_kl(teacher_prob, out.logit, view_valid)),
        feature=term(spec.feature, feature),
        all_relation=term(
            spec.all_relation,
            lambda: terms.relation_kl(all_relations(rigs.tokens), all_relations(out.tokens), pairs_valid(view_valid)),
        ),
        completion=term(spec.completion, completion),
        photometric=term(spec.photometric, lambda: photometric_loss(out.depth_m, rigs)),
        agreement=term(spec.agreement, lambda: agreement_loss(out.depth_m, rigs)),
        bin_relation=term(spec.bin_relation, lambda: bin_relation_loss(out.depth_m, *teacher_fitted_m(), rigs)),
    )


def _framed(
    teacher_prob: Float[Tensor, "B V K h w"],
    binning: Binning,
    out: StudentOutput,
    teacher_fit: Callable[[], LidarFit],
    frame: str,
) -> Float[Tensor, "B V K h w"]:
    """The teacher's probabilities moved to the student's bins, in the frame that LossSpec.frame names."""
    if frame == "literal":
        return teacher_prob
    position = student_frame(teacher_prob, out.logit.softmax(2))
    if frame == "lidar":
        fit = teacher_fit()
        position = torch.where(fit.fitted[..., None], lidar_frame(fit, out.centers_m, binning), position)
    return move_bins(teacher_prob, position)
