import math
from dataclasses import fields

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.losses.spec import LossSpec, weighted_sum
from stages.losses.terms import (
    LossTerms,
    bin_kl,
    cross_interaction,
    output_level,
    relation_kl,
    scale_invariant_log,
    softened_kl,
    token_distance,
)
from stages.targets.bins import move_bins, student_frame

ALL = torch.tensor([[True, True]])
seeds = st.integers(0, 2**31 - 1)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def pixel(*values: float) -> torch.Tensor:
    """One rig of one view of one pixel with these bin values, (1, 1, K, 1, 1)."""
    return torch.tensor(values).view(1, 1, -1, 1, 1)


def test_si_log_of_a_wrong_scale_by_hand():
    """Every prediction e^0.2 too far: no variance, so 10 sqrt(0.15 * 0.04 + 1e-6) = 0.7746..."""
    lidar = torch.linspace(2, 40, 20).view(1, 2, 2, 5)
    loss = scale_invariant_log(lidar * math.exp(0.2), lidar)
    assert loss.item() == pytest.approx(10 * math.sqrt(0.006001), rel=1e-4)


def test_si_log_by_hand():
    """Five points with g = 0.3, fifteen with -0.1: mean 0, variance (5 * 0.09 + 15 * 0.01) / 20 = 0.03."""
    g = torch.tensor([0.3] * 5 + [-0.1] * 15).view(1, 2, 2, 5)
    lidar = torch.full_like(g, 7.0)
    assert scale_invariant_log(lidar * g.exp(), lidar).item() == pytest.approx(10 * math.sqrt(0.030001), rel=1e-4)


def test_si_log_takes_the_views_of_a_rig_together():
    """View 0 too far by e^0.2, view 1 too near by as much: one rig, mean 0, variance 0.04."""
    lidar = torch.full((1, 2, 2, 5), 5.0)
    depth = lidar * torch.tensor([0.2, -0.2]).exp().view(1, 2, 1, 1)
    assert scale_invariant_log(depth, lidar).item() == pytest.approx(10 * math.sqrt(0.040001), rel=1e-4)


def test_si_log_averages_over_the_rigs_with_at_least_ten_points():
    lidar = torch.full((3, 1, 2, 10), 5.0)
    lidar[1, 0].view(-1)[10:] = 0  # ten points stay
    lidar[2, 0].view(-1)[9:] = 0  # nine points: left out
    depth = torch.full_like(lidar, 5.0) * torch.tensor([0.2, 0.4, 3.0]).exp().view(3, 1, 1, 1)
    hand = [10 * math.sqrt(0.15 * mean**2 + 1e-6) for mean in (0.2, 0.4)]
    assert scale_invariant_log(depth, lidar).item() == pytest.approx(sum(hand) / 2, rel=1e-4)


@settings(deadline=None, max_examples=20)
@given(seeds)
def test_pixels_without_lidar_do_not_matter(seed):
    lidar = random(2, 3, 4, 5, seed=seed).clamp(min=0) * 10
    depth = random(2, 3, 4, 5, seed=seed + 1).exp()
    expected = scale_invariant_log(depth, lidar)
    for nonsense in (1e6, 0.0, math.nan):
        other = torch.where(lidar > 0, depth, nonsense).requires_grad_()
        loss = scale_invariant_log(other, lidar)
        torch.testing.assert_close(loss, expected, rtol=0, atol=0)
        loss.backward()
        assert other.grad is not None
        assert other.grad.isfinite().all()
        assert (other.grad[lidar == 0] == 0).all()


def test_without_any_lidar_loss_and_gradient_are_zero():
    depth = torch.ones(2, 3, 4, 5, requires_grad=True)
    loss = scale_invariant_log(depth, torch.zeros(2, 3, 4, 5))
    loss.backward()
    assert loss.item() == 0
    assert depth.grad is not None
    assert (depth.grad == 0).all()


def test_a_perfect_prediction_has_a_finite_gradient():
    lidar = torch.full((1, 1, 4, 5), 5.0)
    depth = lidar.clone().requires_grad_()
    scale_invariant_log(depth, lidar).backward()
    assert depth.grad is not None
    assert depth.grad.isfinite().all()


def test_bin_kl_by_hand_is_from_teacher_to_student():
    """Teacher (1/2, 1/2, 0), student (1/4, 1/4, 1/2): log 2 nats; the other way round it would be infinite."""
    student = pixel(0.25, 0.25, 0.5).log() + 3.0  # logits are free up to a constant
    loss = bin_kl(pixel(0.5, 0.5, 0.0), student, torch.tensor([[True]]))
    assert loss.item() == pytest.approx(math.log(2), rel=1e-5)
    skewed = bin_kl(pixel(0.75, 0.25), pixel(0.25, 0.75).log() * 2, torch.tensor([[True]]))
    assert skewed.item() == pytest.approx(0.75 * math.log(0.75 / 0.1) + 0.25 * math.log(0.25 / 0.9), rel=1e-5)


@settings(deadline=None, max_examples=20)
@given(seeds)
def test_bin_kl_is_zero_when_equal_and_else_positive(seed):
    logit = random(2, 2, 8, 3, 4, seed=seed)
    valid = torch.ones(2, 2, dtype=torch.bool)
    assert bin_kl(logit.softmax(2), logit, valid).item() == pytest.approx(0, abs=1e-6)
    assert bin_kl(logit.softmax(2), random(2, 2, 8, 3, 4, seed=seed + 1), valid) > 0.01


def test_bin_kl_is_a_mean_over_the_pixels_of_valid_views():
    logit, teacher = random(1, 2, 8, 3, 4), random(1, 2, 8, 3, 4, seed=1).softmax(2)
    first, second = (bin_kl(teacher, logit, torch.tensor([[i == 0, i == 1]])) for i in (0, 1))
    assert first != second
    torch.testing.assert_close(bin_kl(teacher, logit, ALL), (first + second) / 2)
    per_pixel = (teacher[0, 0] * (teacher[0, 0].log() - logit[0, 0].log_softmax(0))).sum(0)
    torch.testing.assert_close(first, per_pixel.mean())


def test_missing_views_give_zeros_and_no_nan_in_bin_kl():
    logit = random(1, 2, 8, 3, 4).requires_grad_()
    teacher = random(1, 2, 8, 3, 4, seed=1).softmax(2) * torch.tensor([1.0, 0.0]).view(1, 2, 1, 1, 1)
    bin_kl(teacher, logit, torch.tensor([[True, False]])).backward()
    assert logit.grad is not None
    assert logit.grad.isfinite().all()
    assert (logit.grad[0, 1] == 0).all()
    assert logit.grad[0, 0].any()
    assert bin_kl(torch.zeros(1, 2, 8, 3, 4), logit, ~ALL).item() == 0


def test_the_cross_term_by_hand():
    """Half of the mass at 8 m and half at 2 m is 5 m; LiDAR says 5 / e^0.2 m everywhere."""
    lidar = torch.full((1, 1, 4, 8), 5 * math.exp(-0.2))
    prob = torch.full((1, 1, 2, 2, 4), 0.5)
    loss = cross_interaction(prob, torch.tensor([[[8.0, 2.0]]]), lidar)
    assert loss.item() == pytest.approx(10 * math.sqrt(0.15 * 0.04 + 1e-6), rel=1e-4)


def test_the_cross_term_pairs_bins_with_centres_of_the_same_index():
    """Bin 0 at 80 m is the farthest: a teacher all in bin 0 says 80 m, one all in bin 1 says 1 m."""
    lidar = torch.cat([torch.full((1, 1, 4, 4), 80.0), torch.full((1, 1, 4, 4), 1.0)], dim=1)
    prob = torch.zeros(1, 2, 2, 4, 4)
    prob[0, 0, 0], prob[0, 1, 1] = 1, 1
    centers_m = torch.tensor([[[80.0, 1.0], [80.0, 1.0]]])
    assert cross_interaction(prob, centers_m, lidar).item() == pytest.approx(10 * 1e-3, rel=1e-3)
    assert cross_interaction(prob, centers_m.flip(-1), lidar) > 40


def test_the_cross_term_teaches_centres_only():
    logit, centers_m = random(1, 2, 8, 3, 4).requires_grad_(), torch.linspace(50, 2, 8).repeat(1, 2, 1).requires_grad_()
    teacher = random(1, 2, 8, 3, 4, seed=1).softmax(2)
    aligned = move_bins(teacher, student_frame(teacher, logit.softmax(2)))
    cross_interaction(aligned, centers_m, torch.full((1, 2, 6, 8), 5.0)).backward()
    assert logit.grad is None
    assert centers_m.grad is not None
    assert (centers_m.grad != 0).all()


def test_a_missing_view_leaves_the_cross_term_finite():
    centers_m = torch.linspace(50, 2, 8).repeat(1, 2, 1).requires_grad_()
    prob = random(1, 2, 8, 3, 4).softmax(2) * torch.tensor([1.0, 0.0]).view(1, 2, 1, 1, 1)
    lidar = torch.full((1, 2, 6, 8), 5.0) * torch.tensor([1.0, 0.0]).view(1, 2, 1, 1)
    loss = cross_interaction(prob, centers_m, lidar)
    loss.backward()
    assert loss.isfinite()
    assert centers_m.grad is not None
    assert (centers_m.grad[0, 1] == 0).all()
    assert centers_m.grad[0, 0].isfinite().all()


def kl(p: list[float], q: list[float]) -> float:
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def test_relation_kl_by_hand_is_from_teacher_to_student_both_by_rows_and_by_columns():
    """Temperature 0.1 turns 0.1 log 3 into odds of 3.

    Teacher rows (3/4, 1/4), (1/2, 1/2); its columns (3/4, 1/4), (1/2, 1/2). Student: odds of 9 in the second row, so
    rows (1/2, 1/2), (1/10, 9/10) and columns (1/2, 1/2), (1/10, 9/10).
    """
    teacher = torch.tensor([[[[math.log(3), 0.0], [0.0, 0.0]]]]) * 0.1
    student = torch.tensor([[[[0.0, 0.0], [0.0, math.log(9)]]]]) * 0.1
    rows = (kl([0.75, 0.25], [0.5, 0.5]) + kl([0.5, 0.5], [0.1, 0.9])) / 2
    loss = relation_kl(teacher, student, torch.tensor([[True]]))
    assert loss.item() == pytest.approx(rows, rel=1e-4)
    assert relation_kl(student, teacher, torch.tensor([[True]])).item() != pytest.approx(rows, rel=0.01)


def test_relation_kl_asks_in_both_directions():
    """The teacher's rows both look at column 0; a student without a preference is wrong by rows, right by columns."""
    teacher = torch.tensor([[[[math.log(3), 0.0], [math.log(3), 0.0]]]]) * 0.1
    loss = relation_kl(teacher, torch.zeros(1, 1, 2, 2), torch.tensor([[True]]))
    assert loss.item() == pytest.approx(kl([0.75, 0.25], [0.5, 0.5]) / 2, rel=1e-4)
    turned = relation_kl(teacher.transpose(-1, -2), torch.zeros(1, 1, 2, 2), torch.tensor([[True]]))
    torch.testing.assert_close(turned, loss)


@settings(deadline=None, max_examples=20)
@given(seeds)
def test_relation_kl_is_zero_when_equal_and_free_of_a_common_offset(seed):
    relation = random(2, 3, 6, 6, seed=seed).clamp(-1, 1)
    valid = torch.ones(2, 3, dtype=torch.bool)
    assert relation_kl(relation, relation + 0.3, valid).item() == pytest.approx(0, abs=1e-5)
    assert relation_kl(relation, relation.flip(-1), valid) > 0.01


def test_missing_neighbours_do_not_matter_to_relation_kl():
    student = random(1, 3, 6, 6).requires_grad_()
    teacher = random(1, 3, 6, 6, seed=1) * torch.tensor([1.0, 0.0, 0.0]).view(1, 3, 1, 1)
    only_first = torch.tensor([[True, False, False]])
    loss = relation_kl(teacher, student, only_first)
    torch.testing.assert_close(loss, relation_kl(teacher[:, :1], student[:, :1], only_first[:, :1]))
    loss.backward()
    assert student.grad is not None
    assert student.grad.isfinite().all()
    assert (student.grad[0, 1:] == 0).all()
    assert relation_kl(teacher, student, ~only_first & only_first).item() == 0


def test_the_weighted_sum_by_hand_leaves_out_what_was_not_computed():
    spec = LossSpec(supervised=1.0, kl=0.3, cross=0.5, relation=2.0)
    ten = {"kl": torch.tensor(10.0), "relation": torch.tensor(1000.0)}
    assert weighted_sum(LossTerms(supervised=torch.tensor(1.0), **ten), spec).item() == pytest.approx(1 + 3 + 2000)
    assert weighted_sum(LossTerms(**ten), spec).item() == pytest.approx(3 + 2000)


def test_losses_without_any_weight_are_refused():
    with pytest.raises(ValueError, match="every weight is 0"):
        LossSpec(**{field.name: 0.0 for field in fields(LossTerms)})
    with pytest.raises(ValueError, match="frame: expected one of lidar, student, literal, got 'x'"):
        LossSpec(frame="x")


@pytest.mark.parametrize("name", [field.name for field in fields(LossTerms)])
@pytest.mark.parametrize("value", [-0.1, math.nan, math.inf])
def test_an_impossible_weight_is_named(name, value):
    with pytest.raises(ValueError, match=f"{name}: expected a weight >= 0, got {value}"):
        LossSpec(**{name: value})


def test_output_level_by_hand():
    """Half of the pixels e^0.2 too far, half e^0.4 too near: mean 0.3. The view without a fit is left out."""
    depth = torch.full((1, 2, 2, 4), 5.0)
    teacher = depth.clone()
    teacher[0, 0, 0] *= math.exp(-0.2)
    teacher[0, 0, 1] *= math.exp(0.4)
    teacher[0, 1] *= 100
    assert output_level(depth, teacher, torch.tensor([[True, False]])).item() == pytest.approx(0.3, rel=1e-5)
    assert output_level(depth, teacher, torch.tensor([[False, False]])).item() == 0


def test_softened_kl_by_hand():
    """Odds of 16 become odds of 2 at T = 4: 16 KL((2/3, 1/3) || (1/2, 1/2))."""
    teacher = pixel(16 / 17, 1 / 17)
    loss = softened_kl(teacher, pixel(0.0, 0.0), torch.tensor([[True]]))
    assert loss.item() == pytest.approx(16 * kl([2 / 3, 1 / 3], [0.5, 0.5]), rel=1e-4)
    assert softened_kl(teacher, teacher.log() + 2, torch.tensor([[True]])).item() == pytest.approx(0, abs=1e-5)


def test_softened_kl_is_finite_where_the_teacher_is_certain():
    logit = random(1, 2, 8, 3, 4).requires_grad_()
    certain = torch.zeros(1, 2, 8, 3, 4)
    certain[:, :, 3] = 1
    softened_kl(certain, logit, ALL).backward()
    assert logit.grad is not None
    assert logit.grad.isfinite().all()


def test_token_distance_by_hand():
    """Distances 1 + 4 and 0 over two tokens: 2.5; the other view is missing."""
    teacher, student = torch.zeros(1, 2, 2, 3), torch.zeros(1, 2, 2, 3)
    student[0, 0, 1] = torch.tensor([1.0, 0.0, -2.0])
    student[0, 1] = 50
    assert token_distance(teacher, student, torch.tensor([[True, False]])).item() == pytest.approx(2.5)
