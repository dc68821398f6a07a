import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from stages.bins import (
    BinSpec,
    WindowedProb,
    affine_invariant_map,
    align_frame,
    closed_form_prob,
    decode_window,
    encode_window,
    expected_position,
    positions,
)

SPEC = BinSpec()
# Whole numbers keep the span of an image far from the rounding of float32.
disparities = hnp.arrays(np.float32, (2, 6, 8), elements=st.integers(0, 100).map(float))
seeds = st.integers(0, 2**31 - 1)


def one_hot(*bins: int, count: int = 4) -> torch.Tensor:
    """(K, 1, w) probabilities, one pixel per entry, all of its mass in that bin."""
    return torch.nn.functional.one_hot(torch.tensor(bins), count).float().T[:, None]


def random_prob(seed: int, low: float, high: float, *, batch: int = 2) -> torch.Tensor:
    """Closed-form probabilities of maps drawn uniformly from [low, high]."""
    u = torch.rand(batch, 6, 8, generator=torch.Generator().manual_seed(seed))
    return closed_form_prob(low + (high - low) * u, SPEC)


@settings(deadline=None, max_examples=50)
@given(disparities, st.floats(0.01, 100), st.floats(-20, 20))
def test_scale_and_shift_of_the_disparity_leave_the_map_unchanged(disparity, scale, shift):
    d = torch.from_numpy(disparity)
    moved = scale * (d + shift * float(np.ptp(disparity)))
    u = affine_invariant_map(d, (3, 4))
    torch.testing.assert_close(affine_invariant_map(moved, (3, 4)), u, rtol=0, atol=3e-3)
    assert ((u >= 0) & (u <= 1)).all()


def test_the_map_by_hand():
    """Pairs average to 0, 1, 4; q01 = 0.02, q99 = 3.94; x of the middle is 0.98 / 3.92 = 1 / 4; larger is nearer."""
    u = affine_invariant_map(torch.tensor([[-1.0, 1.0, 0.0, 2.0, 3.0, 5.0]]), (1, 3))
    torch.testing.assert_close(u, torch.tensor([[0.0, math.log(26) / math.log(101), 1.0]]))


def test_the_map_of_an_image_does_not_depend_on_the_others():
    d = torch.rand(3, 2, 8, 8, generator=torch.Generator().manual_seed(1)) * torch.tensor([1.0, 50.0]).view(2, 1, 1)
    alone = torch.stack([torch.stack([affine_invariant_map(image, (4, 4)) for image in rig]) for rig in d])
    torch.testing.assert_close(affine_invariant_map(d, (4, 4)), alone)


@pytest.mark.parametrize("value", [0.0, 3.7, -1e4, 1e-20])
def test_a_constant_image_is_one_half(value):
    assert (affine_invariant_map(torch.full((2, 4, 4), value), (2, 2)) == 0.5).all()


def test_probabilities_by_hand():
    """K = 4, u = 3 / 8 is the centre of bin 1, one bin from bins 0 and 2, two from bin 3."""
    weight = torch.tensor([math.exp(-1 / 2), 1, math.exp(-1 / 2), math.exp(-2)])
    prob = closed_form_prob(torch.tensor([[0.375]]), BinSpec(count=4, sigma=1.0, window=4))
    torch.testing.assert_close(prob[:, 0, 0], weight / weight.sum())
    wide = torch.tensor([math.exp(-1 / 8), 1, math.exp(-1 / 8), math.exp(-1 / 2)])
    prob = closed_form_prob(torch.tensor([[0.375]]), BinSpec(count=4, sigma=2.0, window=4))
    torch.testing.assert_close(prob[:, 0, 0], wide / wide.sum())


@settings(deadline=None, max_examples=50)
@given(st.floats(0.1, 0.9))
def test_the_expected_position_undoes_the_closed_form(u):
    prob = closed_form_prob(torch.tensor([[u]]), SPEC)
    torch.testing.assert_close(expected_position(prob), torch.tensor([[u]]), rtol=0, atol=1e-5)


def test_positions_are_bin_centres_that_grow_towards_the_camera():
    torch.testing.assert_close(positions(4, torch.zeros(1)), torch.tensor([0.125, 0.375, 0.625, 0.875]))
    torch.testing.assert_close(expected_position(one_hot(0, 3)), torch.tensor([[0.125, 0.875]]))


def test_the_stored_window_is_close_to_the_dense_probabilities():
    dense = closed_form_prob(torch.linspace(0, 1, 4001)[None], SPEC)
    kept = decode_window(encode_window(dense, SPEC.window), SPEC.count)
    kl = (torch.special.xlogy(kept, kept) - torch.special.xlogy(kept, dense)).sum(0)
    assert kl.mean() < 1e-3
    assert kl.max() < 2e-3


@settings(deadline=None, max_examples=30)
@given(seeds, st.integers(1, 16), st.integers(16, 64))
def test_decoded_probabilities_sum_to_one_and_lie_in_the_window(seed, width, count):
    logit = 4 * torch.randn(2, count, 3, 5, generator=torch.Generator().manual_seed(seed))
    stored = encode_window(logit.softmax(1), width)
    assert stored.prob.shape == (2, 3, 5, width)
    assert (stored.prob.amax(-1) == 255).all()
    assert (stored.first.long() + width <= count).all()
    dense = decode_window(stored, count)
    assert dense.shape == logit.shape
    torch.testing.assert_close(dense.sum(1), torch.ones(2, 3, 5))
    assert (dense > 0).sum(1).amax() <= width


def test_a_window_by_hand():
    """Of five bins the pair (2, 3) holds most: 0.5 -> 255 and 0.2 -> 102, decoded as 255 / 357 and 102 / 357."""
    stored = encode_window(torch.tensor([0.1, 0.1, 0.5, 0.2, 0.1])[:, None, None], 2)
    assert stored.first.item() == 2
    assert stored.prob.flatten().tolist() == [255, 102]
    dense = decode_window(stored, 5).flatten()
    torch.testing.assert_close(dense, torch.tensor([0, 0, 255 / 357, 102 / 357, 0]))


def test_a_missing_camera_decodes_to_zeros():
    nothing = WindowedProb(torch.zeros(2, 3, 5, dtype=torch.uint8), torch.zeros(2, 3, 5, 7, dtype=torch.uint8))
    dense = decode_window(nothing, 64)
    assert dense.shape == (2, 64, 3, 5)
    assert (dense == 0).all()
    assert (align_frame(dense, random_prob(0, 0, 1)[..., :3, :5]) == 0).all()


@settings(deadline=None, max_examples=30)
@given(seeds, st.floats(0, 0.4), st.floats(0.6, 1), st.floats(0.05, 0.4), st.floats(0.6, 0.95))
def test_alignment_keeps_the_mass(seed, teacher_low, teacher_high, student_low, student_high):
    teacher = random_prob(seed, teacher_low, teacher_high)
    aligned = align_frame(teacher, random_prob(seed + 1, student_low, student_high))
    torch.testing.assert_close(aligned.sum(1), torch.ones(2, 6, 8))
    assert (aligned >= 0).all()


@settings(deadline=None, max_examples=30)
@given(seeds, st.floats(0.3, 0.45), st.floats(0.55, 0.7))
def test_the_aligned_teacher_has_the_students_mean_and_spread(seed, student_low, student_high):
    student = random_prob(seed + 1, student_low, student_high)
    aligned = expected_position(align_frame(random_prob(seed, 0.1, 0.9), student)).flatten(1)
    wanted = expected_position(student).flatten(1)
    torch.testing.assert_close(aligned.mean(1), wanted.mean(1), rtol=0, atol=1e-5)
    torch.testing.assert_close(aligned.std(1, correction=0), wanted.std(1, correction=0), rtol=1e-3, atol=1e-5)


@settings(deadline=None, max_examples=30)
@given(seeds)
def test_a_teacher_moved_in_its_own_frame_is_aligned_to_the_same_result(seed):
    student = random_prob(seed + 1, 0.3, 0.7)
    u = 0.3 + 0.3 * torch.rand(6, 8, generator=torch.Generator().manual_seed(seed))
    shifted = align_frame(closed_form_prob(u + 8 / SPEC.count, SPEC), student[0])
    torch.testing.assert_close(shifted, align_frame(closed_form_prob(u, SPEC), student[0]), rtol=0, atol=1e-4)


def test_alignment_by_hand():
    """Teacher in bins 0, 1: mean 1/4, std 1/8. Student at 3/8 and 11/16: mean 17/32, std 5/32. So scale 5/4:

    bin 0 moves to 3/8, the centre of bin 1; bin 1 moves to 11/16, a quarter of the way from bin 2 to bin 3.
    """
    student = torch.stack([torch.tensor([0, 1.0, 0, 0]), torch.tensor([0.1, 0, 0.45, 0.45])], dim=1)[:, None]
    assert expected_position(student)[0, 1] == pytest.approx(0.6875)
    aligned = align_frame(one_hot(0, 1), student)
    torch.testing.assert_close(aligned[:, 0, 0], torch.tensor([0, 1.0, 0, 0]))
    torch.testing.assert_close(aligned[:, 0, 1], torch.tensor([0, 0, 0.75, 0.25]))


def test_what_would_leave_the_range_stays_in_the_outermost_bins():
    """Student in bins 0 and 3, teacher mostly in bin 1: its bin 3 would move to 1.67 and stays in bin 3."""
    aligned = align_frame(one_hot(1, 1, 1, 3), one_hot(0, 0, 3, 3))
    assert aligned.shape == (4, 1, 4)
    torch.testing.assert_close(aligned[3, 0, 3], torch.tensor(1.0))
    torch.testing.assert_close(aligned.sum(0), torch.ones(1, 4))


def test_a_constant_teacher_is_moved_to_the_students_mean():
    aligned = align_frame(one_hot(0, 0, 0), one_hot(1, 2, 3))
    torch.testing.assert_close(aligned, one_hot(2, 2, 2), rtol=0, atol=1e-5)


def test_no_gradient_flows_through_the_alignment():
    logit = torch.randn(1, 64, 4, 4, requires_grad=True)
    assert not align_frame(random_prob(0, 0, 1, batch=1)[..., :4, :4], logit.softmax(1)).requires_grad


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"count": 1}, "count: expected 2 to 256 bins, got 1"),
        ({"count": 257}, "count: expected 2 to 256 bins, got 257"),
        ({"sigma": 0.0}, "sigma: expected a positive number of bins, got 0"),
        ({"sigma": math.nan}, "sigma: expected a positive number of bins, got nan"),
        ({"window": 65}, "window: expected 1 to count = 64, got 65"),
        ({"window": 0}, "window: expected 1 to count = 64, got 0"),
        ({"prob_stride": 8}, "prob_stride: expected 2 or 4, got 8"),
    ],
)
def test_an_impossible_spec_says_what_is_wrong(wrong, message):
    with pytest.raises(ValueError, match=message):
        BinSpec(**wrong)
