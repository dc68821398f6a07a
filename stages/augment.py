"""Augmentation of cached rigs; every random number comes from the generator that is passed."""

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from data_cache.dataset import CachedRigs
from data_cache.schema import map_arrays
from stages.relations import mirror_relations

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
        focal_px=rig.focal_px[order],
        view_valid=rig.view_valid[order],
    )


def jitter_colours(image: Float[Tensor, "V 3 H W"], generator: torch.Generator) -> Float[Tensor, "V 3 H W"]:
    """Brightness and contrast of RGB in [0, 1], one draw for all views: they look at the same world."""
    brightness, contrast = 1 + (torch.rand(2, generator=generator) * 2 - 1) * torch.tensor([BRIGHTNESS, CONTRAST])
    mean = image.mean()
    jittered: Tensor = (((image - mean) * contrast + mean) * brightness).clamp(0, 1)
    return jittered
