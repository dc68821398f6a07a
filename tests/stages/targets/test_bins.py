import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from data_cache.shards.encodings import ClosedFormBins, WindowBins, map_arrays
from stages.targets.bins import (
    affine_invariant_map,
    closed_form_prob,
    decode,
    encode,
    expected_position,
    move_bins,
    positions,
    student_frame,
)
from stages.targets.spec import BinSpec

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


def align_frame(teacher_prob: torch.Tensor, student_prob: torch.Tensor) -> torch.Tensor:
    """The teacher in the student's frame."""
    return move_bins(teacher_prob, student_frame(teacher_prob, student_prob))


def random_map(seed: int, *shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def heaviest_window(prob: torch.Tensor, width: int) -> WindowBins[torch.Tensor]:
    """The window encoding as it is defined, for any (..., K, h, w) probabilities: slow and plain."""
    prob = prob.movedim(-3, -1)
    mass = torch.nn.functional.pad(prob.cumsum(-1), (1, 0))
    first = (mass[..., width:] - mass[..., :-width]).argmax(-1)
    inside = prob.gather(-1, first[..., None] + torch.arange(width))
    scaled = torch.round(255 * inside / inside.amax(-1, keepdim=True))
    return WindowBins(first.to(torch.uint8), scaled.to(torch.uint8))


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
    u = torch.linspace(0, 1, 4001)[None]
    dense, kept = closed_form_prob(u, SPEC), decode(encode(u, SPEC), SPEC)
    kl = (torch.special.xlogy(kept, kept) - torch.special.xlogy(kept, dense)).sum(0)
    assert kl.mean() < 1e-3
    assert kl.max() < 2e-3


@settings(deadline=None, max_examples=50)
@given(seeds, st.integers(1, 8), st.integers(8, 256), st.floats(0.7, 2))
def test_the_window_is_the_heaviest_and_its_weights_are_those_of_all_bins(seed, width, count, sigma):
    spec = BinSpec(count=count, sigma=sigma, window=width)
    u = random_map(seed, 2, 6, 8).double()
    stored, expected = encode(u, spec), heaviest_window(closed_form_prob(u, spec), width)
    # Where the bins next to both ends are equally far, two windows hold the same mass.
    away = ((count * u - 0.5 - (width - 1) / 2 + 0.5) % 1 - 0.5).abs() < 0.499
    assert torch.equal(stored.bin_first[away], expected.bin_first[away])
    assert (stored.bin_prob[away].int() - expected.bin_prob[away].int()).abs().amax() <= 1


@settings(deadline=None, max_examples=30)
@given(seeds, st.integers(1, 16), st.integers(16, 64))
def test_a_decoded_window_sums_to_one_and_lies_in_the_window(seed, width, count):
    spec = BinSpec(count=count, window=width)
    stored = encode(random_map(seed, 2, 3, 5), spec)
    assert stored.bin_prob.shape == (2, 3, 5, width)
    assert (stored.bin_prob.amax(-1) == 255).all()
    assert (stored.bin_first.long() + width <= count).all()
    dense = decode(stored, spec)
    assert dense.shape == (2, count, 3, 5)
    torch.testing.assert_close(dense.sum(1), torch.ones(2, 3, 5))
    assert (dense > 0).sum(1).amax() <= width


def test_a_window_by_hand():
    """K = 4, u = 0.3: K u - 1/2 = 0.7 lies 0.7 from bin 0, 0.3 from bin 1; exp(-(0.49 - 0.09) / 2) = 0.819 -> 209.

    u = 1 lies 1.5 from bin 2 and 0.5 from bin 3: exp(-1) -> 94, and the window stops at the last bin.
    """
    spec = BinSpec(count=4, window=2)
    stored = encode(torch.tensor([[0.3, 1.0]]), spec)
    assert stored.bin_first.tolist() == [[0, 2]]
    assert stored.bin_prob.tolist() == [[[209, 255], [94, 255]]]
    dense = decode(stored, spec)
    torch.testing.assert_close(dense[:, 0, 0], torch.tensor([209 / 464, 255 / 464, 0, 0]))
    torch.testing.assert_close(dense[:, 0, 1], torch.tensor([0, 0, 94 / 349, 255 / 349]))


@settings(deadline=None, max_examples=50)
@given(seeds, st.integers(2, 64), st.floats(0.01, 8))
@example(0, 4, 0.28125)
def test_a_decoded_map_leaves_out_less_than_two_millionths(seed, count, sigma):
    spec = BinSpec(count=count, sigma=sigma, encoding="closed_form")
    stored = encode(random_map(seed, 2, 3, 5), spec)
    expected = closed_form_prob(stored.bin_map.double() / 65535, spec)
    kept = decode(stored, spec) > 0
    assert (expected * ~kept).sum(1).amax() < 2e-6
    loose = max(1e-6, 1e-5 * count / sigma**2)  # K u in float32, against a slope of up to 1 / sigma^2 bins
    torch.testing.assert_close(decode(stored, spec).double(), expected, rtol=0, atol=loose)


def test_a_closed_form_map_by_hand():
    """The map 3 / 8 is stored as 24576 (24575.6), 1 as 65535. K = 4, sigma = 1: one bin from 0 and 2, two from 3.

    The same bytes read with K = 2, sigma = 1 / 2: K u - 1/2 = 1/4, so exp(-1 / 8) and exp(-9 / 8).
    """
    stored = encode(torch.tensor([[0.375, 1.0]]), BinSpec(count=64, encoding="closed_form"))
    assert stored.bin_map.tolist() == [[24576, 65535]]
    weight = torch.tensor([math.exp(-1 / 2), 1, math.exp(-1 / 2), math.exp(-2)])
    prob = decode(stored, BinSpec(count=4, encoding="closed_form"))[:, 0, 0]
    torch.testing.assert_close(prob, weight / weight.sum(), rtol=0, atol=2e-5)
    weight = torch.tensor([math.exp(-1 / 8), math.exp(-9 / 8)])
    prob = decode(stored, BinSpec(count=2, sigma=0.5, encoding="closed_form"))[:, 0, 0]
    torch.testing.assert_close(prob, weight / weight.sum(), rtol=0, atol=2e-5)


def test_halfway_between_two_bins_both_are_decoded_however_narrow_sigma_is():
    """K = 4, u = 1 / 4 is stored as 16384, 1.5e-5 of a bin off: exp(-3.05e-5 / 0.005) = 0.9939; bin 1 is nearer."""
    spec = BinSpec(count=4, sigma=0.05, encoding="closed_form")
    prob = decode(encode(torch.tensor([[0.25]]), spec), spec)[:, 0, 0]
    torch.testing.assert_close(prob, torch.tensor([0.9939 / 1.9939, 1 / 1.9939, 0, 0]), rtol=0, atol=1e-4)


def test_dense_probabilities_by_hand():
    """The map 3 / 8 of K = 4, as float16 and with the bin axis last."""
    spec = BinSpec(count=4, encoding="dense", sigma=2.0)
    stored = encode(torch.tensor([[0.375, 0.375, 1.0]]), spec)
    assert (stored.bin_dense.shape, stored.bin_dense.dtype) == ((1, 3, 4), torch.float16)
    weight = torch.tensor([math.exp(-1 / 8), 1, math.exp(-1 / 8), math.exp(-1 / 2)])
    torch.testing.assert_close(stored.bin_dense[0, 1].float(), weight / weight.sum(), rtol=1e-3, atol=0)
    dense = decode(stored, spec)
    torch.testing.assert_close(dense[:, 0, 1], weight / weight.sum(), rtol=1e-3, atol=0)
    assert dense.shape == (4, 1, 3)
    torch.testing.assert_close(dense.sum(0), torch.ones(1, 3))


@settings(deadline=None, max_examples=30)
@given(seeds, st.integers(16, 64), st.floats(0.5, 1))
def test_every_encoding_decodes_to_the_same_probabilities(seed, count, sigma):
    spec, u = BinSpec(count=count, sigma=sigma), random_map(seed, 2, 3, 5)
    dense = closed_form_prob(u, spec)
    for encoding, off in (("window", 1e-2), ("closed_form", 2e-3), ("dense", 1e-3)):
        decoded = decode(encode(u, replace(spec, encoding=encoding)), spec)
        assert ((decoded - dense).abs().sum(1) / 2).amax() < off
        torch.testing.assert_close(decoded.sum(1), torch.ones(2, 3, 5))


@pytest.mark.parametrize("encoding", ["window", "dense"])
def test_a_missing_camera_decodes_to_zeros(encoding):
    nothing = map_arrays(torch.zeros_like, encode(random_map(0, 2, 3, 5), replace(SPEC, encoding=encoding)))
    dense = decode(nothing, SPEC)
    assert dense.shape == (2, 64, 3, 5)
    assert (dense == 0).all()
    assert (align_frame(dense, random_prob(0, 0, 1)[..., :3, :5]) == 0).all()


def test_a_missing_camera_of_a_closed_form_map_decodes_to_the_farthest_bins_and_stays_finite():
    dense = decode(ClosedFormBins(torch.zeros(2, 3, 5, dtype=torch.int32)), SPEC)
    torch.testing.assert_close(dense, closed_form_prob(torch.zeros(2, 3, 5), SPEC))
    assert torch.isfinite(align_frame(dense, random_prob(0, 0, 1)[..., :3, :5])).all()


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
        ({"encoding": "windows"}, "encoding: expected one of window, closed_form, dense, got 'windows'"),
        ({"prob_stride": 8}, "prob_stride: expected 2 or 4, got 8"),
    ],
)
def test_an_impossible_spec_says_what_is_wrong(wrong, message):
    with pytest.raises(ValueError, match=message):
        BinSpec(**wrong)


def test_a_window_wider_than_the_bins_is_impossible_only_where_windows_are_stored():
    with pytest.raises(ValueError, match="window: expected 1 to count = 4, got 7"):
        BinSpec(count=4)
    assert BinSpec(count=4, encoding="dense").count == 4
