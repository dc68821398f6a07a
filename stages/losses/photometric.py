"""Photometric consistency: a surface should look the same to two cameras, and to one camera at two moments."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import max_pool2d, pad

from data_cache.dataset import CachedRigs, CachedViews
from stages.compute.parallel import mean_count
from stages.losses.reprojection import Landed, images_in_a_row, in_a_row, neighbour_steps, reproject, sample

SSIM_SHARE = 0.85
SSIM_C1, SSIM_C2 = 0.01**2, 0.03**2
MAX_GAIN = 2.0


@dataclass(frozen=True, eq=False)
class Windows:
    """An image, with sums of its colours and of their squares over 3 x 3 windows around each pixel."""

    rgb: Float[Tensor, "N 3 H W"]
    sums: Float[Tensor, "N 3 H W"]
    squares: Float[Tensor, "N 3 H W"]

    def within(self, box: "_Box") -> "Windows":
        """Crop to a box; the sums at its border still include pixels outside."""
        return Windows(box.of(self.rgb), box.of(self.sums), box.of(self.squares))


def windows(rgb: Float[Tensor, "N 3 H W"]) -> Windows:
    """Windows of an image, RGB in [0, 1], at least 2 x 2 pixels; its border is reflected, as in Monodepth2."""
    return Windows(rgb, _sum_3x3(rgb), _sum_3x3(rgb**2))


def photometric_error(target: Windows, warped: Windows) -> Float[Tensor, "N H W"]:
    """0.85 (1 - SSIM) / 2 + 0.15 |difference|, mean over colours, RGB in [0, 1] (Godard et al. 2017, 2019).

    SSIM (Wang et al. 2004) over windows of 3 x 3 pixels, with both sides of the fraction multiplied by 9^4 so that sums
    replace means.
    """
    product = target.sums * warped.sums
    power = target.sums**2 + warped.sums**2
    cov = 9 * _sum_3x3(target.rgb * warped.rgb) - product
    var = 9 * (target.squares + warped.squares) - power
    ssim = (2 * product + 81 * SSIM_C1) * (2 * cov + 81 * SSIM_C2) / ((power + 81 * SSIM_C1) * (var + 81 * SSIM_C2))
    dissimilar = ((1 - ssim) / 2).clamp(0, 1)
    return (SSIM_SHARE * dissimilar + (1 - SSIM_SHARE) * (target.rgb - warped.rgb).abs()).mean(1)


def _sum_3x3(image: Float[Tensor, "N 3 H W"]) -> Float[Tensor, "N 3 H W"]:
    # Sums of shifted images: a quarter of the time of avg_pool2d on a CPU (`make bench ARGS="-k photometric"`).
    image = pad(image, (1, 1, 1, 1), mode="reflect")
    rows = image[..., :-2, :] + image[..., 1:-1, :] + image[..., 2:, :]
    return rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:]


def match_exposure(
    warped: Float[Tensor, "N 3 H W"], target: Float[Tensor, "N 3 H W"], seen: Bool[Tensor, "N H W"]
) -> Float[Tensor, "N 3 H W"]:
    """Match the mean and standard deviation of each colour of `warped` to those of `target` over the `seen` pixels.

    Cameras of one rig differ in exposure and white balance; a gain and an offset per colour, computed over the overlap,
    correct this (as in VFDepth, Kim et al. 2022). Statistics of whole images would not, as they show different scenes.
    No gradient flows through the statistics, so that depth cannot adapt to the exposure.
    """
    with torch.no_grad():
        mask = seen[:, None]
        count = mask.sum((-2, -1), keepdim=True).clamp(min=1)
        mean, sd = [], []
        for image in (warped, target):
            mean.append(torch.where(mask, image, 0.0).sum((-2, -1), keepdim=True) / count)
            sd.append((torch.where(mask, image - mean[-1], 0.0) ** 2).sum((-2, -1), keepdim=True).div(count).sqrt())
        gain = (sd[1] / sd[0].clamp(min=1e-3)).clamp(1 / MAX_GAIN, MAX_GAIN)
    return (warped - mean[0]) * gain + mean[1]


def photometric_loss(depth_m: Float[Tensor, "B V H W"], rigs: CachedRigs) -> Float[Tensor, ""]:
    """Mean over all pixels that another image sees of the lowest `photometric_error` among those images.

    A view is compared with its two neighbours in the ring and, if `rigs` has it, with the same camera a moment before
    or after. The lowest error per pixel copes with surfaces that one of several images does not see. In time, pixels
    that match better without warping are left out: they move with the rig, or the rig stands still (both from
    Monodepth2, Godard et al. 2019). The images are those of the cache, without colour jitter. Missing views are
    skipped. Zero, with a zero gradient, if no images overlap.

    Args:
        depth_m: predictions in metres, > 0; the gradient flows to them alone.
        rigs: rigs on any device; their images, cameras and neighbours are used.
    """
    V, rgb = depth_m.shape[1], images_in_a_row(rigs, depth_m)
    others = [_others(depth_m, rigs, rigs, step) for step in neighbour_steps(V)]
    if rigs.neighbour is not None:
        others.append(_others(depth_m, rigs, rigs.neighbour))
    total, pixels = depth_m.sum() * 0, torch.zeros((), dtype=torch.long, device=depth_m.device)
    for view in range(V):  # one camera at a time, so that its data stays in the CPU's cache
        target = windows(rgb[view::V])
        lowest = torch.full_like(depth_m[:, view], torch.inf)
        for other in others:
            box = other.boxes[view]
            if not box.is_empty:
                error = _error(target.within(box), other, view)
                lowest = torch.minimum(lowest, box.put_back(error, torch.inf, lowest))
        used = lowest < torch.inf
        total, pixels = total + torch.where(used, lowest, 0.0).sum(), pixels + used.sum()
    return total / mean_count(pixels)


@dataclass(frozen=True)
class _Box:
    """Rows and columns of an image."""

    top: int
    bottom: int
    left: int
    right: int

    @property
    def is_empty(self) -> bool:
        return self.top >= self.bottom

    def of(self, image: Tensor) -> Tensor:
        """Crop an image (..., H, W) to the box."""
        return image[..., self.top : self.bottom, self.left : self.right]

    def put_back(self, part: Float[Tensor, "B h w"], fill: float, like: Float[Tensor, "B H W"]) -> Tensor:
        """Put a crop back in its place, with `fill` around it."""
        height, width = like.shape[-2:]
        return pad(part, (self.left, width - self.right, self.top, height - self.bottom), value=fill)


@dataclass(frozen=True, eq=False)
class _Others:
    """Another image for each target, the places of the target's pixels in it, and for each camera the box it sees."""

    rgb: Float[Tensor, "N 3 H W"]
    landed: Landed
    boxes: tuple[_Box, ...]
    in_time: bool


def _others(depth_m: Float[Tensor, "B V H W"], rigs: CachedRigs, views: CachedViews, step: int = 0) -> _Others:
    landed = reproject(depth_m.flatten(0, 1), in_a_row(rigs, depth_m), in_a_row(views, depth_m, step))
    boxes = _boxes(landed.seen.view_as(depth_m))
    return _Others(images_in_a_row(views, depth_m, step), landed, boxes, in_time=step == 0)


def _boxes(seen: Bool[Tensor, "B V H W"]) -> tuple[_Box, ...]:
    """For each camera the smallest box around all seen pixels, with a margin of one pixel for the windows.

    Ring neighbours share only a strip of their images: the rest need not be warped and compared.
    """
    ends = []
    for along in (seen.any(3).any(0), seen.any(2).any(0)):
        size = along.shape[1]
        first, last = along.int().argmax(1), size - 1 - along.flip(1).int().argmax(1)
        nothing = ~along.any(1)
        ends += [(first - 1).clamp(min=0).masked_fill(nothing, 0), (last + 2).clamp(max=size).masked_fill(nothing, 0)]
    return tuple(_Box(*view) for view in torch.stack(ends, 1).tolist())


def _error(target: Windows, other: _Others, view: int) -> Float[Tensor, "B h w"]:
    """The photometric error of one camera within its box; infinite where there is nothing to compare."""
    V, box = len(other.boxes), other.boxes[view]
    seen = box.of(other.landed.seen[view::V])
    grid = other.landed.grid[view::V, box.top : box.bottom, box.left : box.right]
    warped = sample(other.rgb[view::V], grid)
    if other.in_time:
        error = photometric_error(target, windows(warped))
        still = photometric_error(target, windows(box.of(other.rgb[view::V])))
        return torch.where(_whole_windows(seen) & (error < still), error, torch.inf)
    error = photometric_error(target, windows(match_exposure(warped, target.rgb, seen)))
    return torch.where(_whole_windows(seen), error, torch.inf)


def _whole_windows(seen: Bool[Tensor, "N H W"]) -> Bool[Tensor, "N H W"]:
    """Pixels whose whole SSIM window is seen."""
    return max_pool2d((~seen)[:, None].float(), 3, 1, 1)[:, 0] == 0
