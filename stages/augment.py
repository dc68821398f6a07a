"""Augmentation of cached rigs; every random number comes from the generator that is passed."""

import hashlib
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from data_cache.dataset import CachedRigs
from data_cache.schema import map_arrays
from stages.relations import mirror_relations, mirror_tokens

BRIGHTNESS = CONTRAST = 0.2


def mirror(rig: CachedRigs) -> CachedRigs:
    """The rig as a mirror shows it: images, maps, token grids and the ring order turn together. Twice is once.

    View j of the mirrored ring is view -j mod V of the old one, so that front stays first and left becomes right.
    """
    V = rig.view_valid.shape[0]
    order = torch.tensor([-j % V for j in range(V)])
    return replace(
        rig,
        image=rig.image[order].flip(-1),
        lidar_depth_m=rig.lidar_depth_m[order].flip(-1),
        bins=map_arrays(lambda array: array[order].flip(2), rig.bins),  # axes V h w, then those of the encoding
        relation=mirror_relations(rig.relation),
        tokens=mirror_tokens(rig.tokens),
        focal_px=rig.focal_px[order],
        view_valid=rig.view_valid[order],
    )


def thin_lidar(rig: CachedRigs, share: float) -> CachedRigs:
    """The rig with this share of its LiDAR pixels; which ones depends on the frame alone."""
    if share == 1:
        return rig
    digest = hashlib.sha256(rig.frame_ids[0].encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:4]))
    kept = torch.rand(rig.lidar_depth_m.shape, generator=generator) < share
    return replace(rig, lidar_depth_m=torch.where(kept, rig.lidar_depth_m, 0.0))


def jitter_colours(image: Float[Tensor, "V 3 H W"], generator: torch.Generator) -> Float[Tensor, "V 3 H W"]:
    """Brightness and contrast of RGB in [0, 1], one draw for all views: they look at the same world."""
    brightness, contrast = 1 + (torch.rand(2, generator=generator) * 2 - 1) * torch.tensor([BRIGHTNESS, CONTRAST])
    mean = image.mean()
    jittered: Tensor = (((image - mean) * contrast + mean) * brightness).clamp(0, 1)
    return jittered
