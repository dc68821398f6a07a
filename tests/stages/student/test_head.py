"""Metric bins, depth and sigma: the head of a student."""

import math

import pytest
import torch
from support.students import random
from torch import nn

from stages.student.head import MetricBinCenters, depth_and_sigma, expected_depth_m, upsampled_m


def test_centres_of_an_exported_student_bear_rounding_to_16_bits():
    """They are those of training; in bf16 they are off by 0.6 % at most, where the running sum is off by 4 %."""
    centers = MetricBinCenters(8, 64, 0.5, 120.0, 112.0)
    width = torch.softmax(math.log(2) * random(20, 64, seed=1).tanh(), -1)

    def summed(width: torch.Tensor) -> torch.Tensor:
        return torch.exp(centers.log_far - (width.cumsum(-1) - width / 2) * (centers.log_far - centers.log_near))

    expected_m = summed(width)
    torch.testing.assert_close(centers._deployed_m(width), expected_m, rtol=1e-5, atol=0)
    with torch.autocast("cpu", torch.bfloat16):
        rounded_m = centers._deployed_m(width.bfloat16()).float()
    torch.testing.assert_close(rounded_m, expected_m, rtol=0.01, atol=0)
    assert (summed(width.bfloat16()) / expected_m - 1).abs().max() > 0.03


def test_expected_depth_by_hand():
    """Odds 3 to 1 between 8 m and 2 m: 6.5 m; even between 10 m and 1 m: 5.5 m; in float32 whatever the logits are."""
    logit = torch.tensor([[math.log(3.0), 0.0], [2.0, 2.0]]).view(2, 2, 1, 1)
    depth_m = expected_depth_m(logit, torch.tensor([[8.0, 2.0], [10.0, 1.0]]))
    torch.testing.assert_close(depth_m, torch.tensor([6.5, 5.5]).view(2, 1, 1))
    assert expected_depth_m(logit.bfloat16(), torch.ones(2, 2)).dtype == torch.float32


@pytest.mark.parametrize("exporting", [False, True])
def test_sigma_by_hand(exporting, monkeypatch):
    """Centres e^3, e^1, e^0 have log cells of width 2, 1.5, 1. Odds 3 to 1 to 0: the mean of log depth is 2.5, the
    variance of the centres 0.75 * 0.25 + 0.25 * 2.25 = 0.75, that within the cells (0.75 * 4 + 0.25 * 2.25) / 12. All
    probability in the last bin: its own width / sqrt(12), whatever its neighbours are.
    """
    monkeypatch.setattr(torch.compiler, "is_exporting", lambda: exporting)
    logit = torch.tensor([[math.log(3.0), 0.0, -1e4], [-1e4, -1e4, 0.0]]).view(2, 3, 1, 1)
    centers_m = torch.tensor([3.0, 1.0, 0.0]).exp().expand(2, 3)
    depth_m, sigma = depth_and_sigma(logit, centers_m)
    torch.testing.assert_close(depth_m, expected_depth_m(logit, centers_m))
    expected = torch.tensor([0.75 + (0.75 * 4 + 0.25 * 2.25) / 12, 1 / 12]).sqrt().view(2, 1, 1)
    torch.testing.assert_close(sigma, expected, rtol=1e-5, atol=0)


def test_two_ways_to_sigma_are_one_and_depth_is_the_same_up_to_rounding(monkeypatch):
    """On a CPU sigma is a difference of two moments up to 8; each sum of 64 terms is rounded by 64 * 2 ** -24 of it."""
    logit, centers_m = 4 * random(3, 64, 5, 7), torch.linspace(math.log(120), math.log(0.5), 64).exp().expand(3, 64)
    logit[0, 9] += 50  # one bin has all of it
    with torch.autocast("cpu", dtype=torch.bfloat16):  # would round a matrix product to 8 bits
        depth_m, sigma = depth_and_sigma(logit, centers_m)
    torch.testing.assert_close(depth_m, expected_depth_m(logit, centers_m), rtol=2 * 64 * 2**-24, atol=0)
    monkeypatch.setattr(torch.compiler, "is_exporting", lambda: True)
    torch.testing.assert_close(sigma**2, depth_and_sigma(logit, centers_m)[1] ** 2, rtol=0, atol=64 * 8 * 2**-24)
    width = math.log(240) / 63
    torch.testing.assert_close(sigma[0], torch.full((5, 7), width / 12**0.5), rtol=0.01, atol=0)


@pytest.mark.parametrize("factor", [2, 4])
@pytest.mark.parametrize("size", [(5, 7), (1, 3)])
def test_exported_or_not_depth_is_upsampled_alike(factor, size, monkeypatch):
    """Weights are exact, multiples of 1/8 by axis, and all terms positive: each rounding is one of the sum itself.

    A mixture of 9 pixels is rounded 9 times, one of 4 pixels 4 times, by 2 ** -24 each: 16 are more than enough.
    """
    depth_m = random(3, *size).exp()
    expected_m = upsampled_m(depth_m, factor)
    assert expected_m.shape == (3, factor * size[0], factor * size[1])
    monkeypatch.setattr(torch.compiler, "is_exporting", lambda: True)
    torch.testing.assert_close(upsampled_m(depth_m, factor), expected_m, rtol=16 * 2**-24, atol=0)


@pytest.mark.parametrize("exporting", [False, True])
def test_upsampled_depth_by_hand(exporting, monkeypatch):
    """Fine pixels lie 3/8 and 1/8 of a coarse one from its centre, on either side; beyond the border, depth stays."""
    monkeypatch.setattr(torch.compiler, "is_exporting", lambda: exporting)
    found_m = upsampled_m(torch.tensor([[[8.0, 16.0], [0.0, 32.0]]]), 4)[0]
    assert found_m[0].tolist() == [8, 8, 9, 11, 13, 15, 16, 16]
    assert found_m[:, 0].tolist() == [8, 8, 7, 5, 3, 1, 0, 0]
    assert found_m[3, 4] == 5 / 8 * 13 + 3 / 8 * 20


def extreme_centers(logits: torch.Tensor, focal_px: float = 50.0) -> torch.Tensor:
    head = MetricBinCenters(4, len(logits), near_m=0.5, far_m=80.0, focal_px=50.0)
    with torch.no_grad():
        head.widths[-1].weight.zero_()
        head.widths[-1].bias.copy_(logits)
        return head(random(1, 4), torch.tensor([focal_px]))[0]


@pytest.mark.parametrize("count", [2, 64, 256])
@pytest.mark.parametrize("where", [0, 1, -1])
def test_centres_strictly_decrease_whatever_the_logits_say(count, where):
    logits = torch.full((count,), -1e4)
    logits[where] = 1e4
    centers_m = extreme_centers(logits)
    assert (centers_m.diff() < 0).all()
    assert ((centers_m > 0.5) & (centers_m < 80)).all()


def test_centres_by_hand():
    """Equal widths, two bins in [1, 16] m: a quarter and three quarters of log 16 below log 16, 8 m and 2 m.

    At 50 pixels of focal length, and so 16 m and 4 m at 100 pixels.
    """
    head = MetricBinCenters(4, 2, near_m=1.0, far_m=16.0, focal_px=50.0)
    nn.init.zeros_(head.widths[-1].weight)
    nn.init.zeros_(head.widths[-1].bias)
    centers_m = head(random(2, 4), torch.tensor([50.0, 100.0]))
    torch.testing.assert_close(centers_m, torch.tensor([[8.0, 2.0], [16.0, 4.0]]))


def test_a_wide_bin_moves_the_centres_that_follow_it():
    """Bin 0 of 4, the farthest, twice an even share, the others half of it: 4/7 and 1/7 of the log range."""
    centers_m = extreme_centers(torch.tensor([20.0, -20, -20, -20]))
    assert centers_m[0].item() == pytest.approx(80 * (0.5 / 80) ** (2 / 7), rel=1e-4)
    assert centers_m[3].item() == pytest.approx(80 * (0.5 / 80) ** (1 - 1 / 14), rel=1e-4)
