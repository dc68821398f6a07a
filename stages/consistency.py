"""Do adjacent cameras agree about the surface that both see?"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from data_cache.geometry import project, unproject

OCCLUSION_RATIO = 1.5
"""Depths further apart than this factor are two surfaces, one hiding the other, and are not compared."""


@dataclass(frozen=True)
class Overlap:
    """Agreement over a set of pixels: mean relative difference and how many pixels were compared."""

    abs_rel: float
    pixels: int


def overlap_consistency(
    depth_m: Float[np.ndarray, "2 H W"],
    K_px: Float[np.ndarray, "2 3 3"],
    world_from_cam: Float[np.ndarray, "2 4 4"],
) -> Overlap | None:
    """Project the depth of the first view into the second and compare where both see the surface.

    |z - D_2| / D_2 at the pixel of view 2 that each point of view 1 falls on, z its depth there, over points with
    z / D_2 within OCCLUSION_RATIO both ways. None where the views share nothing.
    """
    size = (int(depth_m.shape[1]), int(depth_m.shape[2]))
    points = unproject(depth_m[0].astype(np.float64), K_px[0]).reshape(-1, 3)
    second_from_first = np.linalg.inv(world_from_cam[1]) @ world_from_cam[0]
    seen = project(points, second_from_first, K_px[1], size)
    there = depth_m[1][seen.v_px.astype(int), seen.u_px.astype(int)].astype(np.float64)
    ratio = seen.depth_m / there
    same = (ratio < OCCLUSION_RATIO) & (ratio > 1 / OCCLUSION_RATIO)
    if not same.any():
        return None
    return Overlap(float(np.abs(ratio[same] - 1).mean()), int(same.sum()))
