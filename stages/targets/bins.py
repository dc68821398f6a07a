"""Depth bins: one definition for teacher, cache and student.

There are K bins; k = 0 is farthest, K - 1 nearest. A position b in [0, 1] grows towards the camera, like disparity, and
bin k is centred at (k + 1/2) / K. The bin axis of probabilities comes before the pixels: (..., K, h, w).
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import interpolate

from data_cache.shards.encodings import ClosedFormBins, DenseBins, StoredBins, WindowBins
from stages.targets.spec import BinSpec

LOG_CURVATURE = 100.0
LOW_QUANTILE, HIGH_QUANTILE = 0.01, 0.99
DEFINITION = f"affine-invariant log map: a={LOG_CURVATURE:g}, quantiles {LOW_QUANTILE:g}..{HIGH_QUANTILE:g}"
"""Part of the cache identity: a change to the definitions below must change this text."""
MAP_LEVELS = 65535
"""The closed_form encoding stores u in this many steps: an error of at most 5e-4 of a bin for K = 64."""
TAIL_SIGMAS = 5.3
"""Decoding leaves out bins farther than this from K u - 1/2, which hold less than 2e-6 of the mass.

The worst case is sigma = 0.283 halfway between two bins: exp(-(1.5^2 - 0.5^2) / (2 sigma^2)) / 2 = 1.9e-6."""


def affine_invariant_map(disparity: Float[Tensor, "*batch H W"], size: tuple[int, int]) -> Float[Tensor, "*batch h w"]:
    """Map relative disparity to u in [0, 1], invariant to disparity -> s * disparity + t with s > 0.

    u = log(1 + a x) / log(1 + a), x = clip((d - q01) / (q99 - q01), 0, 1), d area-reduced to `size` (METHOD: ours).
    A constant image gives 1/2.

    Args:
        disparity: larger is nearer, any unit.
        size: (h, w) of the probability maps.
    """
    batch = disparity.shape[:-2]
    images = disparity.float().reshape(-1, 1, *disparity.shape[-2:])
    reduced = interpolate(images, size=size, mode="area")[:, 0]
    flat = reduced.flatten(start_dim=1)
    low, high = torch.quantile(flat, torch.tensor([LOW_QUANTILE, HIGH_QUANTILE], device=flat.device), dim=1)
    low, span = low[:, None, None], (high - low)[:, None, None]
    constant = span <= 1e-6 * high.abs()[:, None, None]
    x = ((reduced - low) / torch.where(constant, 1.0, span)).clamp(0, 1)
    u = torch.where(constant, 0.5, torch.log1p(LOG_CURVATURE * x) / math.log1p(LOG_CURVATURE))
    return u.reshape(*batch, *size)


def map_disparity(u: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """The relative disparity x in [0, 1] of an affine-invariant map u: ((1 + a)^u - 1) / a."""
    return torch.expm1(u * math.log1p(LOG_CURVATURE)) / LOG_CURVATURE


def closed_form_prob(u: Float[Tensor, "*batch h w"], spec: BinSpec) -> Float[Tensor, "*batch K h w"]:
    """Bin probabilities of an affine-invariant map: p_k proportional to exp(-(K u - k - 1/2)^2 / (2 sigma^2))."""
    k = torch.arange(spec.count, device=u.device, dtype=u.dtype)[:, None, None]
    offset = spec.count * u.unsqueeze(-3) - k - 0.5
    return torch.softmax(-(offset**2) / (2 * spec.sigma**2), dim=-3)


def encode(u: Float[Tensor, "*batch h w"], spec: BinSpec) -> StoredBins[Tensor]:
    """Encode the bin probabilities of an affine-invariant map in the spec's encoding.

    Window weights that round to 0 stay 0. Raising them to 1 would add mass to the tails: for uniform u, K = 64,
    sigma = 1 and width 7, KL(stored, dense) was measured as 4.9e-4 nats with zeros and 2.3e-3 without.
    """
    if spec.encoding == "closed_form":
        return ClosedFormBins(torch.round(MAP_LEVELS * u).to(torch.int32))
    if spec.encoding == "dense":
        return DenseBins(closed_form_prob(u, spec).movedim(-3, -1).half())
    first, weight = _nearest_bins(u, spec, spec.window)
    return WindowBins(first.to(torch.uint8), torch.round(255 * weight).to(torch.uint8))


def decode(stored: StoredBins[Tensor], spec: BinSpec) -> Float[Tensor, "*batch K h w"]:
    """Probabilities over all K bins, summing to one.

    A missing camera is stored as zeros and decodes to zeros, except for closed_form, where it decodes to the farthest
    bins; `view_valid` keeps it out of every loss.

    Args:
        stored: bins in any encoding; that of `spec` does not matter.
        spec: its count is used, and its sigma for closed_form.
    """
    match stored:
        case DenseBins():
            return _normalised(stored.bin_dense.float()).movedim(-1, -3)
        case ClosedFormBins():
            # Halfway between two bins each has half of the mass, however small sigma is: at least 2 bins.
            width = min(spec.count, max(2, math.ceil(2 * TAIL_SIGMAS * spec.sigma)))
            first, weight = _nearest_bins(stored.bin_map / MAP_LEVELS, spec, width)
        case WindowBins():
            first, weight = stored.bin_first, stored.bin_prob.float()
    index = first.long()[..., None] + torch.arange(weight.shape[-1], device=weight.device)
    dense = torch.zeros(*weight.shape[:-1], spec.count, device=weight.device)
    return dense.scatter_(-1, index, _normalised(weight)).movedim(-1, -3)


def _nearest_bins(
    u: Float[Tensor, "*batch h w"], spec: BinSpec, width: int
) -> tuple[Float[Tensor, "*batch h w"], Float[Tensor, "*batch h w S"]]:
    """First bin and closed-form weights, the largest being 1, of the `width` consecutive bins with the most mass.

    These are the bins nearest to K u - 1/2, since weights fall with the distance from it alone.
    """
    position = spec.count * u - 0.5
    first = (position - (width - 1) / 2).round().clamp(0, spec.count - width)
    exponent = ((position - first)[..., None] - torch.arange(width, device=u.device)) ** 2 / (-2 * spec.sigma**2)
    return first, (exponent - exponent.amax(-1, keepdim=True)).exp()


def _normalised(weight: Float[Tensor, "*batch h w S"]) -> Float[Tensor, "*batch h w S"]:
    # The zeros of a missing camera stay zeros: no division by 0.
    return weight / weight.sum(-1, keepdim=True).clamp(min=torch.finfo(weight.dtype).tiny)


def expected_position(prob: Float[Tensor, "*batch K h w"]) -> Float[Tensor, "*batch h w"]:
    """Expected bin position sum_k p_k (k + 1/2) / K, in [0, 1]."""
    return torch.einsum("...khw,k->...hw", prob, positions(prob.shape[-3], prob))


def positions(count: int, like: Tensor) -> Float[Tensor, " K"]:
    """Bin positions (k + 1/2) / K, on the device and of the type of `like`."""
    return (torch.arange(count, device=like.device, dtype=like.dtype) + 0.5) / count


def student_frame(
    teacher_prob: Float[Tensor, "*batch K h w"], student_prob: Float[Tensor, "*batch K h w"]
) -> Float[Tensor, "*batch K"]:
    """Positions of the teacher's bins with the student's mean and spread, image by image; for `move_bins`.

    With e^S and e^T the expected positions of student and teacher, bin position b_k moves to
    b'_k = mean e^S + std e^S (b_k - mean e^T) / max(std e^T, 1e-3). METHOD: our reading of "scale-invariant" for images
    without a LiDAR fit; it does not constrain the student's spread (docs/results/distillation.md). No gradient
    flows through the result.
    """
    with torch.no_grad():
        count = teacher_prob.shape[-3]
        student, teacher = expected_position(student_prob).flatten(-2), expected_position(teacher_prob).flatten(-2)
        scale = student.std(-1, correction=0) / teacher.std(-1, correction=0).clamp(min=1e-3)
        position = positions(count, teacher_prob)
        return student.mean(-1, keepdim=True) + scale[..., None] * (position - teacher.mean(-1, keepdim=True))


def move_bins(
    prob: Float[Tensor, "*batch K h w"], position: Float[Tensor, "*batch K"]
) -> Float[Tensor, "*batch K h w"]:
    """Move bin k to `position` k; its mass is shared linearly between the two nearest bins.

    This is the projection of categorical distributions of Bellemare et al. 2017 (C51). Mass that would leave the range
    stays in the outermost bins. No gradient flows through the result.
    """
    with torch.no_grad():
        count = prob.shape[-3]
        target = (position.clamp(0, 1) * count - 0.5).clamp(0, count - 1)
        # Share of source bin k (columns) that lands in target bin j (rows): a hat function of their distance.
        distance = (torch.arange(count, device=target.device)[:, None] - target[..., None, :]).abs()
        share = (1 - distance).clamp(min=0)
        return torch.einsum("...jk,...khw->...jhw", share, prob)
