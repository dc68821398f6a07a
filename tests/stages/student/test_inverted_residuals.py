"""Encoders of inverted residual blocks: sizes and padding; values are in `tests/pipeline/weights/test_reference.py`."""

from math import sqrt

import pytest
import torch
from support.students import random
from torch import nn

from stages.student.inverted_residuals import ARCHITECTURES, InvertedResiduals, SameConv2d


def make(name: str) -> InvertedResiduals:
    torch.manual_seed(0)
    return InvertedResiduals(ARCHITECTURES[name]).eval()


@pytest.mark.parametrize(
    ("name", "channels", "blocks", "parameters"),
    [
        ("efficientnet-lite0", (24, 40, 112, 320), 16, 2_958_848),
        ("efficientnet-lite1", (24, 40, 112, 320), 21, 3_723_520),
        ("efficientnet-lite2", (24, 48, 120, 352), 21, 4_357_952),
        ("mobilenet-v2", (24, 32, 96, 320), 17, 1_811_712),
    ],
)
def test_maps_halve_from_stride_4_to_32(name, channels, blocks, parameters):
    encoder = make(name)
    with torch.inference_mode():
        maps = encoder(random(2, 3, 64, 96))
    assert [tuple(m.shape) for m in maps.feature_maps] == [
        (2, c, 64 // s, 96 // s) for c, s in zip(channels, (4, 8, 16, 32), strict=True)
    ]
    assert len(encoder.blocks) == blocks
    assert sum(p.numel() for p in encoder.parameters()) == parameters
    assert all((m < 0).any() for m in maps.feature_maps), "a map is projected, not rectified"


def same_convolution_of_a_ramp(kernel: int) -> list[list[float]]:
    """The numbers 0 to 15 in rows of four, summed by a kernel of ones."""
    convolution = SameConv2d(1, 1, kernel, stride=2, bias=False)
    nn.init.ones_(convolution.weight)
    with torch.inference_mode():
        found: list[list[float]] = convolution(torch.arange(16.0).view(1, 1, 4, 4))[0, 0].tolist()
    return found


def test_same_padding_by_hand():
    """Kernel 3 begins at rows and columns 0 and 2, kernel 5 at -1 and 1; what lies outside counts nothing.

    Kernel 3, top right: 2 + 3 + 6 + 7 + 10 + 11 = 39. Kernel 5, top left: all, 120; without column 0, 96; without
    row 0, 114.
    """
    assert same_convolution_of_a_ramp(3) == [[45, 39], [66, 50]]
    assert same_convolution_of_a_ramp(5) == [[120, 96], [114, 90]]


@pytest.mark.parametrize(
    ("name", "padded_like_tensorflow", "eps"),
    [("efficientnet-lite0", 5, 1e-3), ("efficientnet-lite2", 5, 1e-3), ("mobilenet-v2", 0, 1e-5)],
)
def test_the_two_families_differ_in_padding_and_epsilon(name, padded_like_tensorflow, eps):
    """The stem and four stages have stride 2. Both families have ReLU6."""
    modules = list(make(name).modules())
    padded = [module for module in modules if isinstance(module, SameConv2d) or getattr(module, "same", False)]
    assert len(padded) == padded_like_tensorflow
    assert {module.eps for module in modules if isinstance(module, nn.BatchNorm2d)} == {eps}
    assert {type(block.depthwise[2]) for block in modules if hasattr(block, "depthwise")} == {nn.ReLU6}


def test_a_block_adds_its_input_where_the_sizes_allow_it():
    """With a projection of nothing, such a block is the identity, and each other one gives zeros."""
    encoder = make("mobilenet-v2")
    x, added = random(1, 3, 64, 96), []
    with torch.inference_mode():
        x = encoder.stem(x)
        for block in encoder.blocks:
            nn.init.zeros_(block.project[1].weight)
            y = block(x)
            added.append(torch.equal(y, x))
            assert added[-1] or not y.any()
            x = random(*y.shape)
    assert added == [index > 0 for depth in (1, 2, 3, 4, 3, 3, 1) for index in range(depth)]


def test_a_random_start_counts_the_fan_out_of_a_channel():
    """Of a depthwise 5 x 5 kernel that is 25, whatever the number of channels."""
    depthwise = make("efficientnet-lite0").blocks[-2].depthwise[0]
    assert depthwise.weight.shape == (1152, 1, 5, 5)
    error_of_std = 1 / sqrt(2 * depthwise.weight.numel())  # relative, one sigma
    assert depthwise.weight.std().item() == pytest.approx(sqrt(2 / 25), rel=5 * error_of_std)
