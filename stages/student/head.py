"""Metric bin centres per image: where the student says how many metres a bin is."""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

MIN_WIDTH_SHARE = 0.5
"""This share of the log range is spread evenly: centres stay strictly sorted, and every bin keeps meaning a distance.

With 0.05 a short PandaSet run put 56 of 64 bins below 1.3 m in the one view looked at. In AbsRel no difference between
the two was measured (demo, one seed: .111 and .111 at rate 3e-4, .104 and .102 at 1e-3).
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
        share = torch.softmax(self.widths(pooled).float(), dim=-1)
        width = (1 - MIN_WIDTH_SHARE) * share + MIN_WIDTH_SHARE / share.shape[-1]
        middle = width.cumsum(-1) - width / 2
        canonical = torch.exp(self.log_far - middle * (self.log_far - self.log_near))
        return canonical * (focal_px / self.focal_px)[:, None]
