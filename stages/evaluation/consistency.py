"""Consistency of neighbouring cameras: do they give the same depth to a surface that both see?"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from data_cache.frames.geometry import OCCLUSION_RATIO, project, unproject
from data_cache.frames.rig import Frame
from data_cache.frames.views import RigViews


@dataclass(frozen=True)
class Overlap:
    """Agreement over a set of pixels: mean relative difference and number of pixels."""

    abs_rel: float
    pixels: int


def overlap_consistency(
    depth_m: Float[np.ndarray, "2 H W"],
    K_px: Float[np.ndarray, "2 3 3"],
    world_from_cam: Float[np.ndarray, "2 4 4"],
) -> Overlap | None:
    """Project the depth of the first view into the second and compare where both see the same surface.

    Mean of |z - D_2| / D_2, where z is the depth in view 2 of a point of view 1, and D_2 the depth of view 2 at the
    pixel it falls on; over points with 1 / OCCLUSION_RATIO < z / D_2 < OCCLUSION_RATIO. None if there are no such
    points. A depth of 0 means no depth.
    """
    size = (int(depth_m.shape[1]), int(depth_m.shape[2]))
    points = unproject(depth_m[0].astype(np.float64), K_px[0])[depth_m[0] > 0]
    second_from_first = np.linalg.inv(world_from_cam[1]) @ world_from_cam[0]
    seen = project(points, second_from_first, K_px[1], size)
    there = depth_m[1][seen.v_px.astype(int), seen.u_px.astype(int)].astype(np.float64)
    ratio = seen.depth_m / np.where(there > 0, there, np.inf)
    same = (ratio < OCCLUSION_RATIO) & (ratio > 1 / OCCLUSION_RATIO)
    if not same.any():
        return None
    return Overlap(float(np.abs(ratio[same] - 1).mean()), int(same.sum()))


def ring_overlaps(frame: Frame, rig: RigViews, depth_m: Float[np.ndarray, "V H W"]) -> dict[str, Overlap]:
    """Agreement of each pair of ring neighbours of a frame, pooled over both directions, by both camera names."""
    V = len(frame.views)
    found: dict[str, Overlap] = {}
    for i in range(V):
        j = (i + 1) % V
        first, second = frame.views[i], frame.views[j]
        if first is None or second is None or i == j:
            continue
        both = [
            overlap_consistency(depth_m[[a, b]], rig.intrinsics[[a, b]], rig.world_from_cam[[a, b]])
            for a, b in ((i, j), (j, i))
        ]
        kept = [overlap for overlap in both if overlap is not None]
        if kept:
            found[f"{first.camera.name}-{second.camera.name}"] = pooled_overlap(kept)
    return found


def pooled_overlap(overlaps: Sequence[Overlap]) -> Overlap:
    """Pool several overlaps: the agreement over all their pixels."""
    pixels = [overlap.pixels for overlap in overlaps]
    return Overlap(float(np.average([overlap.abs_rel for overlap in overlaps], weights=pixels)), sum(pixels))
