"""The teacher in metres without LiDAR: scale and shift of an image's disparity, by what other cameras and moments see.

A teacher knows the shape of a scene, poses know its size. Two numbers per image are searched so that the image's
pixels, put at the teacher's depth, look alike in the frames before and after it and in its ring neighbours (plane sweep
stereo, Collins 1996, with a teacher's map in place of the plane; patches by normalised cross-correlation).
"""

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor
from torch.nn.functional import grid_sample, interpolate, pad, unfold

from data_cache.dataset import CachedViews
from stages.targets.lidar_fit import LidarFit

DEFINITION = "correlation of patches before and after, and in ring neighbours; nearest surface and shift searched twice"
"""Part of what tells fits apart: a change to the numbers or the search below must change this text."""
ROWS = 96
"""Images are shrunk to about as many rows: two numbers per image need no more, and patches then reach as far."""
STRIDES = (4, 2)
"""Every so many pixels in each direction are compared, in the coarse search and in the fine one."""
PATCH = 5
FLAT = 12.0
"""Grey levels added to a patch's norm, so that noise of a wall without texture does not count as a pattern."""
DILATIONS = (1, 2)
MIN_FACING = 0.2
"""Cosine between optical axes below which two views are not compared."""
MIN_SEEN = 0.02
"""Share of pixels that another view must see."""
NEARER = tuple(i / 8 for i in range(-4, 12))
"""Log of how many times as near as usual the nearest surface may be: a wall or a car may stand on the road."""
USUAL_WITHIN = 0.25
SHIFTS = (-0.01, -0.005, 0.0, 0.005, 0.01, 0.015, 0.02, 0.03, 0.04, 0.055, 0.07, 0.085, 0.1, 0.12, 0.15)
"""Inverse metres at the teacher's least disparity: the sky or a wall 7 m away, beyond infinity for a rough fit."""
AT_ONCE = 4096
"""Pixels whose patches are compared at once: 0.8 MB of them, so that they stay in the CPU's cache."""
PRIOR_WEIGHT = 0.003
"""What a nearest surface that is USUAL_WITHIN nearer or farther than usual costs, in correlation: half of this, and
four times as much at twice that distance."""


def usual_nearest(fits: Sequence[LidarFit]) -> Float[Tensor, " V"]:
    """Log of the inverse metres of the nearest surface of each camera: median over frames fitted to LiDAR (B = 1 each).

    That is where the teacher's disparity is largest. For most cameras it is the road below, which is as far away as the
    camera is high. NaN where no frame was fitted.
    """
    near = torch.cat([torch.where(fit.fitted, fit.scale + fit.shift, float("nan")).log() for fit in fits])
    return near.nanmedian(0).values


@torch.no_grad()
def fit_to_motion(
    disparity: Float[Tensor, "V H W"], moments: Sequence[CachedViews], nearest: Float[Tensor, " V"]
) -> Float[Tensor, "V 2"]:
    """Scale and shift with 1 / depth = shift + scale x, see `LidarFit`; scale 0 where nothing else sees the view.

    Args:
        disparity: the teacher's relative disparity x of a frame, 0 to 1.
        moments: the frame, then those before and after it, with poses in axes that all share.
        nearest: of this rig, see `usual_nearest`.
    """
    small = [_shrunk(views) for views in moments]
    frame = small[0]
    V, _, height, width = frame.image.shape
    x = interpolate(disparity[:, None], size=(height, width), mode="bilinear", align_corners=False)
    patches = [_patches(views.image) for views in small]
    fits = torch.zeros(V, 2)
    for view in range(V):
        if not frame.view_valid[view] or nearest[view].isnan():
            continue
        seen_by = list(_seen_by(view, small, patches))
        near = nearest[view] + torch.tensor(NEARER)
        shift = torch.tensor(SHIFTS)
        for stride in STRIDES:  # the second search lies between the neighbours of the best of the first
            grid_near, grid_shift = (values.flatten() for values in torch.meshgrid(near, shift, indexing="ij"))
            scale = grid_near.exp() - grid_shift
            depth_m = LidarFit(scale, grid_shift, scale > 0).depth_m(x[view, :, ::stride, ::stride])
            alike = _alike(patches[0][view], frame.intrinsics[view], depth_m, seen_by, stride)
            if alike is None:
                break
            deviation = (grid_near - nearest[view]) / USUAL_WITHIN
            best = int((alike - PRIOR_WEIGHT * deviation**2 / 2).argmax())
            fits[view] = torch.stack([scale[best], grid_shift[best]])
            near, shift = _around(near, grid_near[best]), _around(shift, grid_shift[best])
    return torch.where(fits[:, :1] > 0, fits, 0.0)


def _around(values: Tensor, best: Tensor) -> Tensor:
    """Five values between the neighbours of the best one."""
    i = int((values == best).nonzero()[0])
    low, high = values[max(i - 1, 0)], values[min(i + 1, len(values) - 1)]
    return best + torch.linspace(-0.75, 0.75, 5) * (high - low) / 2


def _shrunk(views: CachedViews) -> CachedViews:
    height, width = views.image.shape[-2:]
    rows, columns = min(height, ROWS), round(width * min(1, ROWS / height))
    image = interpolate(views.image.float(), size=(rows, columns), mode="area").round().to(torch.uint8)
    scale = torch.tensor([columns / width, rows / height, 1.0])
    return CachedViews(image, views.intrinsics * scale[:, None], views.rig_from_cam, views.view_valid)


def _patches(image: UInt8[Tensor, "V 3 H W"]) -> Float[Tensor, "V C H W"]:
    """The grey levels around each pixel, without their mean, of about unit length, at two sizes."""
    grey = image.float().mean(1, keepdim=True)
    found = []
    for dilation in DILATIONS:
        if dilation > 1:
            blurred = pad(grey, (dilation // 2,) * 4, mode="replicate")
            grey = torch.nn.functional.avg_pool2d(blurred, dilation + 1, 1)
        reach = PATCH // 2 * dilation
        patch = unfold(pad(grey, (reach,) * 4, mode="replicate"), PATCH, dilation=dilation)
        patch = patch - patch.mean(1, keepdim=True)
        found.append(patch / (patch.norm(dim=1, keepdim=True) + FLAT))
    return torch.cat(found, 1).view(len(image), -1, grey.shape[-2], grey.shape[-1])


def _seen_by(
    view: int, moments: Sequence[CachedViews], patches: Sequence[Tensor]
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """The other views that look the same way: pose of this camera in theirs, intrinsics, patches."""
    rig_from_this = moments[0].rig_from_cam[view].double()
    for moment, (views, theirs) in enumerate(zip(moments, patches, strict=True)):
        for other in range(len(views.view_valid)):
            if (moment == 0 and other == view) or not views.view_valid[other]:
                continue
            other_from_this = (torch.linalg.inv(views.rig_from_cam[other].double()) @ rig_from_this).float()
            if other_from_this[2, 2] > MIN_FACING:
                yield other_from_this, views.intrinsics[other], theirs[other]


def _alike(
    own: Float[Tensor, "C H W"],
    intrinsics: Float[Tensor, "3 3"],
    depth_m: Float[Tensor, "N h w"],
    seen_by: Sequence[tuple[Tensor, Tensor, Tensor]],
    stride: int,
) -> Float[Tensor, " N"] | None:
    """Mean correlation of the pixels with what other views see at each of N depths; None if no view sees enough."""
    height, width = own.shape[-2:]
    own = own[:, ::stride, ::stride].flatten(1)
    v, u = torch.meshgrid(torch.arange(0, height, stride) + 0.5, torch.arange(0, width, stride) + 0.5, indexing="ij")
    rays = torch.stack([u, v, torch.ones_like(u)], -1) @ torch.linalg.inv(intrinsics).T
    total, count = torch.zeros(len(depth_m)), torch.zeros(len(depth_m))
    for other_from_this, theirs_intrinsics, theirs in seen_by:
        point = (rays @ other_from_this[:3, :3].T) * depth_m[..., None] + other_from_this[:3, 3]
        z = point[..., 2]
        pixel = (point @ theirs_intrinsics.T)[..., :2] / z.clamp(min=0.1)[..., None]
        inside = (pixel > 1) & (pixel < torch.tensor([width - 1.0, height - 1.0]))
        inside = inside.all(-1) & (z > 0.5)
        if inside.float().mean() < MIN_SEEN:
            continue
        where = pixel[inside] / torch.tensor([width, height]) * 2 - 1
        hypothesis, place = inside.flatten(1).nonzero().unbind(1)
        correlation = torch.cat(
            [_correlation(theirs, *part, own) for part in zip(where.split(AT_ONCE), place.split(AT_ONCE), strict=True)]
        )
        total.index_add_(0, hypothesis, correlation)
        count += inside.sum((-2, -1))
    return total / count.clamp(min=1) if count.any() else None


def _correlation(
    theirs: Float[Tensor, "C H W"], where: Float[Tensor, "N 2"], place: Int64[Tensor, " N"], own: Float[Tensor, "C P"]
) -> Float[Tensor, " N"]:
    """Of the patches at N places of another view with those of pixels of this one, summed over DILATIONS."""
    found = grid_sample(theirs[None], where[None, None], align_corners=False)[0, :, 0]
    return torch.stack((found * own[:, place]).chunk(len(DILATIONS))).sum(1).clamp(min=0).sum(0)
