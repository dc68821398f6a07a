"""Photometric consistency: a surface looks the same to two cameras, and to one camera at two moments."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import max_pool2d, pad

from data_cache.dataset import CachedRigs
from stages.parallel import mean_count
from stages.reprojection import Cameras, images_in_a_row, in_a_row, neighbour_steps, reproject, sample

SSIM_SHARE = 0.85
SSIM_C1, SSIM_C2 = 0.01**2, 0.03**2
MAX_GAIN = 2.0


def photometric_error(target: Float[Tensor, "N 3 H W"], warped: Float[Tensor, "N 3 H W"]) -> Float[Tensor, "N H W"]:
    """0.85 (1 - SSIM) / 2 + 0.15 |difference|, mean over colours, RGB in [0, 1] (Godard et al. 2017, 2019).

    SSIM (Wang et al. 2004) over windows of 3 x 3 pixels, reflected at the border as in Monodepth2.
    """
    a, b = (pad(image, (1, 1, 1, 1), mode="reflect") for image in (target, warped))
    mean_a, mean_b = _mean_3x3(a), _mean_3x3(b)
    var_a, var_b = _mean_3x3(a**2) - mean_a**2, _mean_3x3(b**2) - mean_b**2
    cov = _mean_3x3(a * b) - mean_a * mean_b
    alike = (2 * mean_a * mean_b + SSIM_C1) * (2 * cov + SSIM_C2)
    ssim = alike / ((mean_a**2 + mean_b**2 + SSIM_C1) * (var_a + var_b + SSIM_C2))
    dissimilar = ((1 - ssim) / 2).clamp(0, 1)
    return (SSIM_SHARE * dissimilar + (1 - SSIM_SHARE) * (target - warped).abs()).mean(1)


def _mean_3x3(image: Float[Tensor, "N 3 _ _"]) -> Float[Tensor, "N 3 _ _"]:
    # Sums of shifted images: a quarter of the time of avg_pool2d on a CPU (`make bench ARGS="-k photometric"`).
    rows = image[..., :-2, :] + image[..., 1:-1, :] + image[..., 2:, :]
    return (rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:]) / 9


def match_exposure(
    warped: Float[Tensor, "N 3 H W"], target: Float[Tensor, "N 3 H W"], seen: Bool[Tensor, "N H W"]
) -> Float[Tensor, "N 3 H W"]:
    """Give `warped` the mean and the standard deviation that each colour of `target` has where both are seen.

    Cameras of one rig differ in exposure and white balance; over the overlap a gain and an offset per colour make up
    for it (as VFDepth does, Kim et al. 2022). Statistics of whole images would not: they see different things. No
    gradient flows through them, so that no depth is learnt that suits the exposure.
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
    """Mean over all pixels that any other image sees of the lowest error among these images, SSIM and L1 as above.

    A view is compared with its two neighbours in the ring and, where `rigs` has them, with the same camera a moment
    before or after. The lowest error per pixel copes with surfaces that one of several images does not see, and pixels
    that look more alike without warping are left out in time, since what moves with the rig, or a rig that stands
    still, says nothing (both from Monodepth2, Godard et al. 2019). The images are those of the cache, without colour
    jitter. Missing views are in no pair. Zero, with a zero gradient, if no image sees what another one does.

    Args:
        depth_m: predictions in metres, > 0; the gradient flows to them alone.
        rigs: on any device; images, cameras and neighbours are used.
    """
    depths_m = depth_m.flatten(0, 1)
    target, rgb = in_a_row(rigs, depth_m), images_in_a_row(rigs, depth_m)
    found = []
    for step in neighbour_steps(depth_m.shape[1]):
        source, other = in_a_row(rigs, depth_m, step), images_in_a_row(rigs, depth_m, step)
        warped, seen = _warp(other, depths_m, target, source)
        error = photometric_error(rgb, match_exposure(warped, rgb, seen))
        found.append((error, _whole_windows(seen)))
    if rigs.neighbour is not None:
        source, other = in_a_row(rigs.neighbour, depth_m), images_in_a_row(rigs.neighbour, depth_m)
        warped, seen = _warp(other, depths_m, target, source)
        error = photometric_error(rgb, warped)
        found.append((error, _whole_windows(seen) & (error < photometric_error(rgb, other))))
    if not found:
        return depth_m.sum() * 0
    lowest = torch.stack([torch.where(seen, error, torch.inf) for error, seen in found]).amin(0)
    used = lowest < torch.inf
    return torch.where(used, lowest, 0.0).sum() / mean_count(used.sum())


def _warp(
    source_rgb: Float[Tensor, "N 3 H W"], depth_m: Float[Tensor, "N H W"], target: Cameras, source: Cameras
) -> tuple[Float[Tensor, "N 3 H W"], Bool[Tensor, "N H W"]]:
    """Source images as the targets would see them, were their depths right, and which of their pixels are true."""
    landed = reproject(depth_m, target, source)
    return sample(source_rgb, landed), landed.seen


def _whole_windows(seen: Bool[Tensor, "N H W"]) -> Bool[Tensor, "N H W"]:
    """Pixels whose SSIM window is seen as a whole."""
    return max_pool2d((~seen)[:, None].float(), 3, 1, 1)[:, 0] == 0
