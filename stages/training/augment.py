"""Augmentation of cached rigs; the random numbers come from stages/training/schedule.py."""

import hashlib
from dataclasses import replace
from typing import TypeVar

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from data_cache.dataset import CachedRigs, CachedViews
from data_cache.shards.encodings import map_arrays
from stages.targets.relations import mirror_relations, mirror_tokens

Views = TypeVar("Views", bound=CachedViews)


def mirror(rig: CachedRigs) -> CachedRigs:
    """Mirror a rig: images, maps, token grids, cameras and ring order together. Mirroring twice restores the rig.

    View j of the mirrored ring is view -j mod V of the original, so that front stays first and left becomes right.
    """
    order = _mirrored_ring(rig)
    return replace(
        _mirror_views(rig),
        lidar_depth_m=rig.lidar_depth_m[order].flip(-1),
        bins=map_arrays(lambda array: array[order].flip(2), rig.bins),  # axes V h w, then those of the encoding
        relation=mirror_relations(rig.relation),
        tokens=mirror_tokens(rig.tokens),
        teacher_fit=rig.teacher_fit[order] if rig.teacher_fit is not None else None,
        neighbour=_mirror_views(rig.neighbour) if rig.neighbour is not None else None,
    )


def _mirror_views(views: Views) -> Views:
    """Mirror images, cameras and ring order.

    With M = diag(-1, 1, 1) in a camera and u -> W - u in its image, K becomes F K M, F = [[-1, 0, W], [0, 1, 0],
    [0, 0, 1]]: cx becomes W - cx and the skew changes sign. A pose T becomes S T M, with S the same reflection of the
    rig's x: two reflections make a rigid transform, and relative poses do not depend on the choice of S.
    """
    order = _mirrored_ring(views)
    signs = torch.tensor([[1.0, -1, -1], [1, 1, 1], [1, 1, 1]])
    intrinsics = views.intrinsics[order] * signs.to(views.intrinsics)
    intrinsics[:, 0, 2] += views.image.shape[-1]
    reflection = torch.tensor([-1.0, 1, 1, 1]).to(views.rig_from_cam)
    return replace(
        views,
        image=views.image[order].flip(-1),
        intrinsics=intrinsics,
        rig_from_cam=views.rig_from_cam[order] * torch.outer(reflection, reflection),
        view_valid=views.view_valid[order],
    )


def _mirrored_ring(views: CachedViews) -> Int64[Tensor, " V"]:
    V = views.view_valid.shape[0]
    return torch.tensor([-j % V for j in range(V)])


def thin_lidar(rig: CachedRigs, share: float) -> CachedRigs:
    """Keep a random share of the LiDAR pixels; the choice depends on the frame alone."""
    if share == 1:
        return rig
    digest = hashlib.sha256(rig.frame_ids[0].encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:4]))
    kept = (torch.rand(rig.lidar_depth_m.shape, generator=generator) < share).to(rig.lidar_depth_m.device)
    return replace(rig, lidar_depth_m=torch.where(kept, rig.lidar_depth_m, 0.0))


def jitter_colours(image: Float[Tensor, "V 3 H W"], brightness: float, contrast: float) -> Float[Tensor, "V 3 H W"]:
    """Scale the contrast, then the brightness, of RGB in [0, 1]; all views alike, since they show the same scene."""
    mean = image.mean()
    return (((image - mean) * contrast + mean) * brightness).clamp(0, 1)
