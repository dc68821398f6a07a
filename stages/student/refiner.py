"""A network that corrects the teacher's depth: it sees the image and the teacher's map in metres; LiDAR teaches it.

It is used offline alone, to give metres to training frames without LiDAR (`losses.without_lidar = "refined"`). The
teacher knows the shape of a scene that no student has seen, so far less is left to learn than for a student.
"""

from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import interpolate

from stages.student.blocks import conv_block, upsampled_like
from stages.student.encoder import ENCODERS, build_encoder
from stages.student.model import IMAGE_MEAN, IMAGE_STD
from stages.student.spec import StudentSpec

MOST = 1.5
"""The largest correction, in log depth: a factor of 4.5."""
HINTS = 4
USUAL_LOG_M = 2.5
"""About the mean log depth of a street, so that the network's input is centred."""


class Refiner(nn.Module):
    """Encoder and pyramid of the student, with the teacher's depth beside every map; the output is a correction."""

    mean: Tensor
    std: Tensor

    def __init__(self, spec: StudentSpec, encoder_weights: Path | None = None):
        """Build it with the encoder and the width of a student; untrained, it changes no depth."""
        super().__init__()
        channels, width = ENCODERS[spec.encoder].channels, spec.decoder_channels
        self.register_buffer("mean", torch.tensor(IMAGE_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGE_STD).view(3, 1, 1), persistent=False)
        self.encoder = build_encoder(spec.encoder, encoder_weights)
        self.detail = conv_block(3, width, stride=2)
        # Finest level first: stride 2, then the encoder's maps.
        self.lateral = nn.ModuleList([nn.Identity(), *(nn.Conv2d(count, width, 1) for count in channels)])
        self.hint = nn.ModuleList([_hint(width) for _ in self.lateral])
        self.fuse = nn.ModuleList([conv_block(width, width) for _ in self.lateral])
        self.pixels = _zero(nn.Conv2d(width, 1, 3, padding=1))
        self.whole = _zero(nn.Linear(channels[-1], 1))

    def forward(
        self,
        image: Float[Tensor, "B V 3 H W"],
        depth_m: Float[Tensor, "B V H W"],
        disparity: Float[Tensor, "B V H W"],
    ) -> Float[Tensor, "B V H W"]:
        """The corrected log of depth in metres.

        Args:
            image: RGB in [0, 1].
            depth_m: the teacher's depth, placed in metres without LiDAR.
            disparity: the teacher's relative disparity, 0 to 1.
        """
        flat = (image - self.mean).div_(self.std).flatten(0, 1).contiguous(memory_format=torch.channels_last)
        log_m = depth_m.flatten(0, 1).log()[:, None]
        hints = _hints(log_m, disparity.flatten(0, 1)[:, None])
        maps = list(self.encoder(flat).feature_maps)
        levels = [self.detail(flat), *maps]
        x: Tensor | None = None
        for level in reversed(range(len(levels))):
            own = self.lateral[level](levels[level])
            own = own + self.hint[level](interpolate(hints, size=own.shape[-2:], mode="area"))
            x = self.fuse[level](own if x is None else own + upsampled_like(x, own))
        assert x is not None
        correction = self.pixels(x) + self.whole(maps[-1].mean((-2, -1)))[:, :, None, None]
        correction = upsampled_like(correction.float(), log_m)
        return (log_m + MOST * torch.tanh(correction / MOST))[:, 0].view_as(depth_m)


def _hints(log_m: Float[Tensor, "N 1 H W"], disparity: Float[Tensor, "N 1 H W"]) -> Float[Tensor, "N C H W"]:
    """Log depth around its mean, that mean, the disparity, and the row from -1 to 1."""
    mean = log_m.mean((-2, -1), keepdim=True)
    row = torch.linspace(-1, 1, log_m.shape[-2], device=log_m.device)[:, None].expand_as(log_m)
    return torch.cat([log_m - mean, (mean - USUAL_LOG_M).expand_as(log_m), disparity, row], 1)


def _hint(width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(HINTS, width // 2, 3, padding=1), nn.ReLU(), nn.Conv2d(width // 2, width, 3, padding=1)
    )


def _zero(layer: nn.Conv2d | nn.Linear) -> nn.Conv2d | nn.Linear:
    nn.init.zeros_(layer.weight)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer
