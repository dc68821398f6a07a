"""Encoders of inverted residual blocks: MobileNetV2 and EfficientNet-lite.

A block expands few channels by a 1x1 convolution, filters each channel on its own, and projects back to few channels:
Sandler et al. 2018 (MobileNetV2, https://arxiv.org/abs/1801.04381, sec. 3, table 2). EfficientNet-lite is the
EfficientNet of Tan and Le 2019 (https://arxiv.org/abs/1905.11946, table 1) without squeeze-and-excitation and with
ReLU6, made to be quantised; it has no paper of its own. The reference for its forward pass is the package
`efficientnet_lite_pytorch` 0.1.0. The two families differ in their numbers and in their padding, in nothing else.

The module is ours because no dependency has both: transformers knows no EfficientNet-lite, and timm needs torchvision.
"""

from dataclasses import dataclass
from itertools import accumulate
from math import sqrt

from jaxtyping import Float
from torch import Tensor, nn

from stages.student.depthwise import DepthwiseConv2d, same_padded


@dataclass(frozen=True)
class InvertedResidualShape:
    """The numbers of one architecture, per stage.

    Attributes:
        channels: channels that leave the stage.
        depths: blocks of the stage; the first one has its stride.
        kernels: side of the depthwise kernels.
        norm_eps: epsilon of the batch norms.
        same_padding: pad as TensorFlow's "same" does, else by half the kernel on each side.
    """

    channels: tuple[int, int, int, int, int, int, int]
    depths: tuple[int, int, int, int, int, int, int]
    kernels: tuple[int, int, int, int, int, int, int]
    norm_eps: float
    same_padding: bool


_STEM_CHANNELS = 32
_STAGE_STRIDES = (1, 2, 2, 2, 1, 2, 1)
_EXPANSIONS = (1, 6, 6, 6, 6, 6, 6)
_TAPPED_STAGES = (1, 2, 4, 6)
"""The last stage at each of the strides 4, 8, 16 and 32, counted from 0."""
_LITE_KERNELS = (3, 3, 5, 3, 5, 5, 3)
_LITE_CHANNELS = (16, 24, 40, 80, 112, 192, 320)
_DEEPER = (1, 3, 3, 4, 4, 5, 1)

ARCHITECTURES = {
    "efficientnet-lite0": InvertedResidualShape(_LITE_CHANNELS, (1, 2, 2, 3, 3, 4, 1), _LITE_KERNELS, 1e-3, True),
    "efficientnet-lite1": InvertedResidualShape(_LITE_CHANNELS, _DEEPER, _LITE_KERNELS, 1e-3, True),
    "efficientnet-lite2": InvertedResidualShape((16, 24, 48, 88, 120, 208, 352), _DEEPER, _LITE_KERNELS, 1e-3, True),
    "mobilenet-v2": InvertedResidualShape(
        (16, 24, 32, 64, 96, 160, 320), (1, 2, 3, 4, 3, 3, 1), (3, 3, 3, 3, 3, 3, 3), 1e-5, False
    ),
}


def map_channels(shape: InvertedResidualShape) -> tuple[int, int, int, int]:
    """Channels of the maps of strides 4, 8, 16 and 32."""
    c4, c8, c16, c32 = (shape.channels[stage] for stage in _TAPPED_STAGES)
    return c4, c8, c16, c32


@dataclass(frozen=True, eq=False)
class InvertedResidualMaps:
    """What the encoder sees.

    Attributes:
        feature_maps: maps of strides 4, 8, 16 and 32, as the backbones of transformers return them.
    """

    feature_maps: tuple[
        Float[Tensor, "N C4 h4 w4"],
        Float[Tensor, "N C8 h8 w8"],
        Float[Tensor, "N C16 h16 w16"],
        Float[Tensor, "N C32 h32 w32"],
    ]


class InvertedResiduals(nn.Module):
    """A stem and seven stages of inverted residual blocks; ImageNet classifiers without their head."""

    def __init__(self, shape: InvertedResidualShape):
        """Build it with random weights."""
        super().__init__()
        layer, padding = (SameConv2d, 0) if shape.same_padding else (nn.Conv2d, 1)
        self.stem = _normalised(layer(3, _STEM_CHANNELS, 3, 2, padding, bias=False), shape)
        blocks, inputs = [], _STEM_CHANNELS
        stages = zip(shape.channels, shape.depths, shape.kernels, _STAGE_STRIDES, _EXPANSIONS, strict=True)
        for outputs, depth, kernel, stride, expansion in stages:
            for index in range(depth):
                blocks.append(_Block(inputs, outputs, shape, kernel, stride if index == 0 else 1, expansion))
                inputs = outputs
        self.blocks = nn.ModuleList(blocks)
        ends = list(accumulate(shape.depths))
        self._tapped = {ends[stage] - 1 for stage in _TAPPED_STAGES}
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                _initialise(module)

    def forward(self, images: Float[Tensor, "N 3 H W"]) -> InvertedResidualMaps:
        """Maps of images, normalised as ImageNet is; H and W are multiples of 32."""
        x = self.stem(images)
        maps = []
        for index, block in enumerate(self.blocks):
            x = block(x)
            if index in self._tapped:
                maps.append(x)
        s4, s8, s16, s32 = maps
        return InvertedResidualMaps((s4, s8, s16, s32))


class SameConv2d(nn.Conv2d):
    """A convolution of stride 2 that pads as `same_padded` does."""

    def forward(self, x: Float[Tensor, "N C h w"]) -> Float[Tensor, "N D h/2 w/2"]:
        """Pad and convolve; h and w are even."""
        return super().forward(same_padded(x, self.kernel_size[0]))


class _Block(nn.Module):
    """Expand, filter each channel, project; the input is added where the sizes allow it."""

    def __init__(
        self, inputs: int, outputs: int, shape: InvertedResidualShape, kernel: int, stride: int, expansion: int
    ):
        super().__init__()
        hidden, same = inputs * expansion, shape.same_padding and stride == 2
        self.expand = _normalised(nn.Conv2d(inputs, hidden, 1, bias=False), shape) if expansion > 1 else nn.Identity()
        self.depthwise = _normalised(DepthwiseConv2d(hidden, kernel, stride, same=same), shape)
        self.project = _normalised(nn.Conv2d(hidden, outputs, 1, bias=False), shape, activate=False)
        self.adds_input = stride == 1 and inputs == outputs

    def forward(self, x: Float[Tensor, "N C h w"]) -> Float[Tensor, "N D H W"]:
        y: Tensor = self.project(self.depthwise(self.expand(x)))
        return x + y if self.adds_input else y


def _normalised(convolution: nn.Conv2d, shape: InvertedResidualShape, *, activate: bool = True) -> nn.Sequential:
    """Convolution, batch norm and, unless the block projects, ReLU6."""
    norm = nn.BatchNorm2d(convolution.out_channels, eps=shape.norm_eps)
    return nn.Sequential(convolution, norm, *([nn.ReLU6()] if activate else []))


def _initialise(convolution: nn.Conv2d) -> None:
    """Normal weights of variance 2 / fan-out (He et al. 2015), the fan-out of a channel's own group."""
    fan_out = convolution.kernel_size[0] ** 2 * convolution.out_channels // convolution.groups
    nn.init.normal_(convolution.weight, std=sqrt(2 / fan_out))
