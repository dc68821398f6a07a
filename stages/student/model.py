"""The student network: the images of a rig in, their metric depth maps out."""

from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from stages.student.blocks import conv_block, upsampled_like
from stages.student.cross_view import RingAttention
from stages.student.encoder import ENCODERS, STRIDES, build_encoder
from stages.student.head import MetricBinCenters, depth_and_sigma, expected_depth_m, upsampled_m
from stages.student.spec import StudentSpec
from stages.targets.relations import GRID, pool_tokens
from stages.targets.spec import BinSpec

IMAGE_MEAN = (0.485, 0.456, 0.406)
IMAGE_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True, eq=False)
class StudentOutput:
    """The student's output for a batch of rigs.

    Attributes:
        logit: bin scores at probability resolution; softmax over K gives probabilities. Float32 in training mode; in
            evaluation mode the dtype of the last convolution (bf16 under autocast).
        centers_m: bin centres in metres per image, farthest first.
        depth_m: expected depth in metres, bilinearly upsampled to the input size.
        tokens: unit-length tokens of the deepest map of at least 6 x 10, before the attention between views.
        sigma: standard deviation of log depth under the bins, upsampled like depth, not calibrated; None if not asked.
    """

    logit: Float[Tensor, "B V K h w"]
    centers_m: Float[Tensor, "B V K"]
    depth_m: Float[Tensor, "B V H W"]
    tokens: Float[Tensor, "B V P C"]
    sigma: Float[Tensor, "B V H W"] | None = None


class Student(nn.Module):
    """Encoder, attention between ring neighbours, feature pyramid decoder, metric-bin head."""

    mean: Tensor
    std: Tensor

    def __init__(self, spec: StudentSpec, bins: BinSpec, encoder_weights: Path | None = None):
        """Build the network; `encoder_weights` is the folder of ImageNet weights, None for random weights."""
        super().__init__()
        self.spec, self.bins = spec, bins
        width, encoder_channels = spec.decoder_channels, ENCODERS[spec.encoder].channels
        self.register_buffer("mean", torch.tensor(IMAGE_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGE_STD).view(3, 1, 1), persistent=False)
        self.encoder = build_encoder(spec.encoder, encoder_weights)
        self.attention = RingAttention(encoder_channels[-1], spec.attention_width) if spec.attention_width else None
        self.lateral = nn.ModuleList([nn.Conv2d(channels, width, 1) for channels in encoder_channels])
        self.fuse = nn.ModuleList([conv_block(width, width) for _ in encoder_channels])
        # Not every encoder has a map of stride 2: fine detail comes from the image itself.
        self.detail = conv_block(3, width, stride=2) if bins.prob_stride == 2 else None
        self.detail_fuse = conv_block(width, width) if bins.prob_stride == 2 else None
        self.classify = nn.Conv2d(width, bins.count, 1)
        self.centers = MetricBinCenters(encoder_channels[-1], bins.count, spec.near_m, spec.far_m, spec.focal_px)

    @property
    def token_channels(self) -> int:
        """C, the number of channels of its tokens."""
        return ENCODERS[self.spec.encoder].channels[_token_level(self.spec.input_size)]

    def forward(
        self,
        image: Float[Tensor, "B V 3 H W"],
        focal_px: Float[Tensor, "B V"],
        view_valid: Bool[Tensor, "B V"],
        *,
        sigma: bool = False,
    ) -> StudentOutput:
        """Estimate depth for a batch of rigs.

        Args:
            image: RGB in [0, 1] at the spec's input size.
            focal_px: fx of each view at that size.
            view_valid: False for missing cameras; their outputs are meaningless.
            sigma: also say how sure it is; in evaluation mode only. Depth is the same up to rounding.
        """
        B, V = image.shape[:2]
        flat = (image - self.mean).div_(self.std).flatten(0, 1).contiguous(memory_format=torch.channels_last)
        maps = list(self.encoder(flat).feature_maps)
        tokens = pool_tokens(maps[_token_level(self.spec.input_size)])
        if self.attention is not None:
            deepest = maps[-1].reshape(B, V, *maps[-1].shape[1:])
            maps[-1] = self.attention(deepest, view_valid).flatten(0, 1)

        x = self.fuse[-1](self.lateral[-1](maps[-1]))
        for level in (2, 1, 0):
            x = self.fuse[level](self.lateral[level](maps[level]) + upsampled_like(x, maps[level]))
        if self.detail is not None and self.detail_fuse is not None:
            detail = self.detail(flat)
            x = self.detail_fuse(detail + upsampled_like(x, detail))
        logit, spread = self.classify(x), None
        centers_m = self.centers(maps[-1].mean((-2, -1)), focal_px.flatten())
        if self.training:  # the order of this sum decides the bytes of a trained student
            logit = logit.float()
            depth_m = (logit.softmax(1) * centers_m[..., None, None]).sum(1)  # not einsum: autocast would round to bf16
        elif sigma:
            depth_m, spread = depth_and_sigma(logit, centers_m)
            spread = upsampled_m(spread, self.bins.prob_stride)
        else:
            depth_m = expected_depth_m(logit, centers_m)
        depth_m = upsampled_m(depth_m, self.bins.prob_stride)
        outputs = (logit, centers_m, depth_m, tokens, *([spread] if spread is not None else ()))
        return StudentOutput(*(x.reshape(B, V, *x.shape[1:]) for x in outputs))


def _token_level(input_size: tuple[int, int]) -> int:
    """Index of the deepest encoder map that is at least as large as the token grid."""
    height, width = input_size
    fits = [i for i, stride in enumerate(STRIDES) if height // stride >= GRID[0] and width // stride >= GRID[1]]
    return fits[-1] if fits else 0
