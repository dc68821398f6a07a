"""Metric bin centres per image: where the student says how many metres a bin is."""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

WIDTH_FACTOR = 2.0
"""A bin is between 1/2 and 2 times as wide as an even share, before the widths are made to fill the range.

Free widths run into a corner: with half of the log range free, a softmax gave it to one or two bins in the three runs
looked at (synthetic evidence, 864 steps: at most one centre between 100 m and 6 m), and depth became a mixture of near
and far. What that costs is in docs/RESULTS.md, "What was tried".
"""


class MetricBinCenters(nn.Module):
    """Sorted bin centres from pooled features, per image (adaptive bins of AdaBins, Bhat et al. 2021, in log depth)."""

    def __init__(self, channels: int, bin_count: int, near_m: float, far_m: float, focal_px: float):
        """Canonical centres lie in [near_m, far_m] for a camera of focal length `focal_px` in student-input pixels."""
        super().__init__()
        self.log_near, self.log_far, self.focal_px = math.log(near_m), math.log(far_m), focal_px
        last = nn.Linear(128, bin_count)
        nn.init.zeros_(last.weight)  # an untrained head is log-uniform
        nn.init.zeros_(last.bias)
        self.widths = nn.Sequential(nn.Linear(channels, 128), nn.ReLU(), last)

    def forward(self, pooled: Float[Tensor, "N C"], focal_px: Float[Tensor, " N"]) -> Float[Tensor, "N K"]:
        """Centres in metres, farthest first, strictly decreasing: c_k = canonical_k * fx / f0.

        Args:
            pooled: features averaged over each image.
            focal_px: fx of each view at the student's input size.
        """
        width = torch.softmax(math.log(WIDTH_FACTOR) * self.widths(pooled).float().tanh(), dim=-1)
        middle = width.cumsum(-1) - width / 2
        canonical = torch.exp(self.log_far - middle * (self.log_far - self.log_near))
        return canonical * (focal_px / self.focal_px)[:, None]


def expected_depth_m(logit: Float[Tensor, "N K h w"], centers_m: Float[Tensor, "N K"]) -> Float[Tensor, "N h w"]:
    """Mean of the bin centres under softmax(logit), metres; float32 whatever the precision of the logits.

    Bins are summed where they lie side by side (channels-last); on a CPU a view at a time, which stays in the cache.
    """
    at_once = 1 if logit.device.type == "cpu" else len(logit)
    return torch.cat(
        [
            (scores.permute(0, 2, 3, 1).softmax(-1, dtype=torch.float32) * centers[:, None, None]).sum(-1)
            for scores, centers in zip(torch.split(logit, at_once), torch.split(centers_m, at_once), strict=True)
        ]
    )
