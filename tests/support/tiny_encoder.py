"""Encoders for tests that mostly wait for weights to be made, stepped, saved and read, or for graphs to be traced.

They are known to every process that imports this module.
"""

from dataclasses import replace

from stages.student.encoder import ENCODERS, EncoderShape
from stages.student.inverted_residuals import ARCHITECTURES, map_channels

REAL_ENCODERS = tuple(ENCODERS)
TINY_ENCODER = "resnet-tiny"
"""A fiftieth of the weights of the smallest real encoder."""
TINY_LITE = "efficientnet-tiny"
"""EfficientNet-lite0 with half of its blocks, and an eighth of its channels or more."""

_LITE = replace(ARCHITECTURES["efficientnet-lite0"], channels=(8, 8, 16, 24, 32, 40, 48), depths=(1, 2, 1, 1, 1, 1, 1))
ARCHITECTURES.setdefault(TINY_LITE, _LITE)
ENCODERS.setdefault(TINY_LITE, EncoderShape(map_channels(_LITE), _LITE.depths, weights=None))
ENCODERS.setdefault(TINY_ENCODER, EncoderShape((8, 16, 32, 64), (1, 1, 1, 1), weights=None))
