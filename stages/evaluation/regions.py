"""Regions for dense truth, which covers what LiDAR misses: depth edges, and surfaces above and between the beams."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from data_cache.frames.geometry import unproject
from data_cache.frames.rig import Sweep
from data_cache.frames.views import RigViews

EDGE_RATIO = 1.25
EDGE_RADIUS_PX = 3


@dataclass(frozen=True, eq=False)
class Regions:
    """Masks of one view at the student's input size, each a subset of the pixels with truth in range.

    Attributes:
        all: every such pixel.
        edges: pixels at most 3 px from a depth discontinuity, where neighbouring depths differ by more than a factor of
            1.25 or sky begins.
        above_lidar: surfaces at a greater elevation, seen from the LiDAR, than the highest return of the frame.
        at_lidar: pixels with a return.
    """

    all: Bool[np.ndarray, "H W"]
    edges: Bool[np.ndarray, "H W"]
    above_lidar: Bool[np.ndarray, "H W"]
    at_lidar: Bool[np.ndarray, "H W"]


def truth_at(truth_m: Float[np.ndarray, "h w"], size: tuple[int, int]) -> Float[np.ndarray, "H W"]:
    """Truth sampled at the pixel centres of another size; never interpolated, so surfaces do not mix."""
    rows, columns = (((np.arange(n) + 0.5) * m / n).astype(int) for n, m in zip(size, truth_m.shape, strict=True))
    return truth_m[np.ix_(rows, columns)]


def regions(
    truth_m: Float[np.ndarray, "H W"], rig: RigViews, view: int, sweep: Sweep | None, range_m: tuple[float, float]
) -> Regions:
    """Find the regions of a view.

    Args:
        truth_m: dense depth in metres at the size of `rig`, 0 where there is no surface.
        rig: views of the frame.
        view: index of the view.
        sweep: LiDAR sweep of the frame; without one `above_lidar` and `at_lidar` are empty.
        range_m: truth counts strictly between these depths.
    """
    valid = (truth_m > range_m[0]) & (truth_m < range_m[1])
    none = np.zeros_like(valid)
    edges = valid & _dilated(_discontinuities(truth_m), EDGE_RADIUS_PX)
    if sweep is None:
        return Regions(valid, edges, none, none)
    lidar_from_cam = np.linalg.inv(sweep.world_from_lidar) @ rig.world_from_cam[view]
    points_m = unproject(truth_m.astype(np.float64), rig.intrinsics[view].astype(np.float64))
    seen_m = points_m @ lidar_from_cam[:3, :3].T + lidar_from_cam[:3, 3]
    above = valid & (_slope(seen_m) > _slope(sweep.points_m).max())
    return Regions(valid, edges, above, valid & (rig.lidar_depth_m[view] > 0))


def _slope(points_m: Float[np.ndarray, "*N 3"]) -> Float[np.ndarray, "*N"]:
    """Tangent of the elevation above the LiDAR's horizontal plane."""
    slope: np.ndarray = points_m[..., 2] / np.maximum(np.hypot(points_m[..., 0], points_m[..., 1]), 1e-9)
    return slope


def _discontinuities(truth_m: Float[np.ndarray, "H W"]) -> Bool[np.ndarray, "H W"]:
    """Both pixels of each pair of neighbours (in rows and columns) that differ by EDGE_RATIO; sky counts as far."""
    log_depth = np.log(np.where(truth_m > 0, truth_m, 1e6))
    edge = np.zeros(truth_m.shape, bool)
    rows = np.abs(np.diff(log_depth, axis=0)) > np.log(EDGE_RATIO)
    columns = np.abs(np.diff(log_depth, axis=1)) > np.log(EDGE_RATIO)
    edge[1:] |= rows
    edge[:-1] |= rows
    edge[:, 1:] |= columns
    edge[:, :-1] |= columns
    return edge


def _dilated(mask: Bool[np.ndarray, "H W"], radius_px: int) -> Bool[np.ndarray, "H W"]:
    """Pixels at most `radius_px` from the mask, in rows and columns."""
    grown = np.pad(mask, radius_px)
    for axis in (0, 1):
        grown = np.logical_or.reduce([np.roll(grown, shift, axis) for shift in range(-radius_px, radius_px + 1)])
    inside = slice(radius_px, -radius_px)
    inner: np.ndarray = grown[inside, inside]
    return inner
