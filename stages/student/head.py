"""The metric head: bin centres in metres per image, and the expected depth."""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import conv2d, interpolate, pad, pixel_shuffle

WIDTH_FACTOR = 2.0
"""A bin is between 1/2 and 2 times as wide as an even share, before the widths are normalised to fill the range.

Free widths degenerate: with half of the log range free, a softmax gave it to one or two bins in all three runs examined
(synthetic evidence, 864 steps: at most one centre between 100 m and 6 m), and depth became a mixture of near and far.
docs/results/distillation.md, "What was tried on the way", says what that costs.
"""


class MetricBinCenters(nn.Module):
    """Sorted bin centres per image from pooled features (adaptive bins of AdaBins, Bhat et al. 2021, in log depth)."""

    def __init__(self, channels: int, bin_count: int, near_m: float, far_m: float, focal_px: float):
        """Canonical centres lie in [near_m, far_m] for a camera of focal length `focal_px` in student-input pixels."""
        super().__init__()
        self.log_near, self.log_far, self.focal_px = math.log(near_m), math.log(far_m), focal_px
        last = nn.Linear(128, bin_count)
        nn.init.zeros_(last.weight)  # untrained centres are evenly spaced in log depth
        nn.init.zeros_(last.bias)
        self.widths = nn.Sequential(nn.Linear(channels, 128), nn.ReLU(), last)

    def forward(self, pooled: Float[Tensor, "N C"], focal_px: Float[Tensor, " N"]) -> Float[Tensor, "N K"]:
        """Centres in metres, farthest first, strictly decreasing: c_k = canonical_k * fx / f0.

        Args:
            pooled: features averaged over each image.
            focal_px: fx of each view at the student's input size.
        """
        width = torch.softmax(math.log(WIDTH_FACTOR) * self.widths(pooled).float().tanh(), dim=-1)
        if torch.compiler.is_exporting():
            return self._deployed_m(width) * (focal_px / self.focal_px)[:, None]
        middle = width.cumsum(-1) - width / 2
        canonical = torch.exp(self.log_far - middle * (self.log_far - self.log_near))
        return canonical * (focal_px / self.focal_px)[:, None]

    def _deployed_m(self, width: Float[Tensor, "N K"]) -> Float[Tensor, "N K"]:
        """The same canonical centres in a form for exported graphs that stays accurate if a runtime rounds to 16 bits.

        The centres of even shares are constants; only each image's deviation from them is computed, from small numbers
        summed in one matrix product. In the form of `forward`, OpenVINO's bf16 made depth 7 % too large.
        """
        K, log_range = width.shape[-1], self.log_far - self.log_near
        even_m = torch.exp(self.log_far - (torch.arange(K, device=width.device) + 0.5) / K * log_range)
        ones = torch.ones_like(even_m)
        before = ones.expand(K, K).triu(1) + ones.diag() / 2  # all bins before k, and half of k
        return even_m * torch.exp((width - 1 / K) @ (-log_range * before))


def expected_depth_m(logit: Float[Tensor, "N K h w"], centers_m: Float[Tensor, "N K"]) -> Float[Tensor, "N h w"]:
    """Mean of the bin centres under softmax(logit), in metres; float32 whatever the precision of the logits.

    Bins are summed in channels-last layout, where they are adjacent in memory; on a CPU one view at a time, which fits
    the cache. An exported graph has no loop over views, because their number may be left open, and leaves the layout to
    its runtime: to change it took OpenVINO longer than the sum.
    """
    if torch.compiler.is_exporting():
        return (logit.softmax(1, dtype=torch.float32) * centers_m[..., None, None]).sum(1)
    if logit.device.type != "cpu":
        return _expected_m(logit, centers_m)
    return torch.cat([_expected_m(logit[i : i + 1], centers_m[i : i + 1]) for i in range(len(logit))])


def _expected_m(logit: Float[Tensor, "N K h w"], centers_m: Float[Tensor, "N K"]) -> Float[Tensor, "N h w"]:
    return (logit.permute(0, 2, 3, 1).softmax(-1, dtype=torch.float32) * centers_m[:, None, None]).sum(-1)


def depth_and_sigma(
    logit: Float[Tensor, "N K h w"], centers_m: Float[Tensor, "N K"]
) -> tuple[Float[Tensor, "N h w"], Float[Tensor, "N h w"]]:
    """The depth of `expected_depth_m`, up to rounding, and the standard deviation of log depth under the bins.

    Each bin is a uniform distribution of log depth over its cell, which ends half-way to the neighbouring centres. So
    the variance is that of the centres plus the mean of width ** 2 / 12: with all probability in one bin, sigma is the
    width of that bin / sqrt(12), not 0.
    """
    log_m = centers_m.log()
    position = log_m - log_m.mean(-1, keepdim=True)  # small numbers: squares of log metres would cost digits
    within = _cell_width(log_m) ** 2 / 12
    if logit.device.type == "cpu" and not torch.compiler.is_exporting():
        rows = zip(*(torch.split(x, 1) for x in (logit, centers_m, position, within)), strict=True)
        depth_m, sigma = zip(*(_depth_and_sigma(*row) for row in rows), strict=True)
        return torch.cat(depth_m), torch.cat(sigma)
    prob = logit.softmax(1, dtype=torch.float32)
    position, within = position[..., None, None], within[..., None, None]
    mean = (prob * position).sum(1, keepdim=True)
    # Only positive terms: a runtime that rounds to 16 bits loses less of them than of a difference of two moments.
    variance = (prob * ((position - mean) ** 2 + within)).sum(1)
    return (prob * centers_m[..., None, None]).sum(1), variance.sqrt()


def _depth_and_sigma(
    logit: Float[Tensor, "1 K h w"],
    centers_m: Float[Tensor, "1 K"],
    position: Float[Tensor, "1 K"],
    within: Float[Tensor, "1 K"],
) -> tuple[Float[Tensor, "1 h w"], Float[Tensor, "1 h w"]]:
    """One view on a CPU: three products with a vector, which take no longer than the sum of `expected_depth_m`."""
    prob = logit.permute(0, 2, 3, 1).softmax(-1, dtype=torch.float32)
    with torch.autocast("cpu", enabled=False):
        means = [prob.flatten(0, 2) @ values[0] for values in (centers_m, position, position**2 + within)]
    depth_m, mean, square = (values.view(prob.shape[:3]) for values in means)
    return depth_m, torch.maximum(square - mean**2, within.min()).sqrt()


def _cell_width(log_m: Float[Tensor, "N K"]) -> Float[Tensor, "N K"]:
    """Width of each bin's cell in log depth; the cells at both ends reach as far out as in."""
    step = log_m[:, :-1] - log_m[:, 1:]
    return torch.cat([step[:, :1], (step[:, :-1] + step[:, 1:]) / 2, step[:, -1:]], -1)


def upsampled_m(depth_m: Float[Tensor, "N h w"], factor: int) -> Float[Tensor, "N H W"]:
    """Depth in metres on a grid that is `factor` times as fine, bilinear between the centres of pixels.

    Of the `factor` fine pixels in a coarse one, pixel i lies (i + 1/2) / factor - 1/2 coarse pixels from its centre. So
    its value is a fixed mixture of three coarse pixels per axis; beyond the border the last one repeats. An exported
    graph computes these mixtures by one convolution with factor ** 2 channels, which takes OpenVINO less than a tenth
    of the time of its operator for interpolation, slow for a map of one channel.
    """
    if not torch.compiler.is_exporting():
        size = [factor * side for side in depth_m.shape[-2:]]
        return interpolate(depth_m[:, None], size=size, mode="bilinear", align_corners=False)[:, 0]
    offset = (torch.arange(factor) + 0.5) / factor - 0.5
    share = (1 - (offset[:, None] - torch.arange(-1, 2)).abs()).clamp(min=0)
    weight = (share[:, None, :, None] * share[None, :, None, :]).reshape(factor**2, 1, 3, 3)
    around = pad(depth_m[:, None], (1, 1, 1, 1), mode="replicate")
    return pixel_shuffle(conv2d(around, weight.to(depth_m)), factor)[:, 0]
