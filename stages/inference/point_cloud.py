"""The depth of all cameras as one coloured point cloud in the vehicle's frame."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float32, UInt8

from data_cache.errors import FrameError
from data_cache.frames.geometry import OCCLUSION_RATIO, project, unproject
from data_cache.frames.images import mask_at
from data_cache.frames.rig import Frame
from data_cache.frames.views import RigViews
from stages.inference.predict import Prediction

JUMP_RATIO = 1.08
LEVEL_SLOPE = 0.1
BELOW_CAMERA_M = 0.6
"""Thresholds that define a depth edge, see `smooth_pixels`.

Chosen on 12 frames of synthetic drives with a student of 96 x 160 (`make bench ARGS="-k bench_point_cloud"` prints the
table; 2026-11-26). Within 80 m 6.9 % of its points are flying (between two surfaces), 78 % are good (within 10 % of
one):

    jump  level surfaces spared   flying removed   good lost  of them beyond 40 m  street, 15 to 45 m
    1.05  yes                     80 %             9.4 %      47 %                 11 %
    1.08  yes                     62 %             4.6 %      21 %                 4.5 %
    1.15  yes                     35 %             1.5 %      3.7 %                1.4 %
    1.08  no                      65 %             7.4 %      28 %                 70 %

Also tried: windows of 5 x 5 pixels, comparing the two sides of a pixel, and the spread of the student's bins. None
removed more flying points for the same loss.
"""
SIGMA_LIMIT = 0.3
"""Points that a calibrated student is less sure of than this (sigma of log depth) are left out, too.

Chosen on the 16 selection frames of `evidence`, three seeds (docs/PREDICT.md has the table): edges and this limit
together remove 45 to 47 % of the wrong points and lose 5.3 to 5.6 % of the good ones, edges alone 34 to 39 % and 5.2 to
5.4 %. Sigma alone is no replacement: where it loses as many good points, it takes 80 % and more of those beyond 40 m.
"""


@dataclass(frozen=True, eq=False)
class PointCloud:
    """Coloured points.

    Attributes:
        points_m: x forward, y left, z up in the vehicle's frame, metres.
        rgb: colour in the camera image, sRGB.
    """

    points_m: Float32[np.ndarray, "N 3"]
    rgb: UInt8[np.ndarray, "N 3"]


def frame_cloud(frame: Frame, prediction: Prediction, range_m: tuple[float, float], prob_stride: int) -> PointCloud:
    """`fused_cloud` of a student's prediction, without the pixels that self-occlusion masks hide.

    Of a calibrated student, pixels with a sigma above SIGMA_LIMIT are left out, too.

    Args:
        frame, prediction: a frame and the student's prediction of it.
        range_m: range of depths that the student was trained on.
        prob_stride: stride of the student's bin probabilities.

    Raises:
        FrameError: if the pose of the vehicle is unknown, a mask cannot be read, or there is no point.
    """
    if frame.world_from_ego is None:
        raise FrameError(
            f"frame {frame.id}: a point cloud needs the poses of the cameras on the vehicle, which are not known;"
            " give ego_from_cam in rig.json, or world_from_ego in frames.jsonl, or ask for depth maps only"
        )
    sigma = prediction.sigma if prediction.calibrated else None
    sure = sigma <= SIGMA_LIMIT if sigma is not None else None
    depth_m = unoccluded_depth(frame, prediction)
    neighbour_px = max(1, prob_stride // 2)
    cloud = fused_cloud(prediction.rig, depth_m, frame.world_from_ego, range_m, neighbour_px=neighbour_px, sure=sure)
    if not len(cloud.points_m):
        raise FrameError(
            f"frame {frame.id}: no depth from {range_m[0]:g} to {range_m[1]:g} m, so there is no point cloud"
        )
    return cloud


def unoccluded_depth(frame: Frame, prediction: Prediction) -> Float[np.ndarray, "V H W"]:
    """Depth of a prediction in metres, 0 also where self-occlusion masks hide the scene. Raises FrameError."""
    unoccluded = np.ones(prediction.depth_m.shape, dtype=bool)
    for i, view in enumerate(frame.views):
        if view is not None and view.load_unoccluded is not None:
            unoccluded[i] = mask_at(view.load_unoccluded(), prediction.depth_m.shape[1:])
    return np.where(unoccluded, prediction.depth_m, np.float32(0))


def fused_cloud(
    rig: RigViews,
    depth_m: Float[np.ndarray, "V H W"],
    world_from_ego: Float[np.ndarray, "4 4"],
    range_m: tuple[float, float],
    *,
    neighbour_px: int = 1,
    sure: Bool[np.ndarray, "V H W"] | None = None,
) -> PointCloud:
    """Put the pixels of all cameras into the vehicle's frame, in ring order, each image row by row.

    Left out are pixels without depth, depths outside `range_m`, pixels that are not `sure`, and those at depth edges
    (`smooth_pixels`; a pixel that is not sure makes an edge all the same). If two
    ring neighbours see the same surface, only the points of the camera that sees it nearer to its optical axis are
    kept. Both would appear as two surfaces: with the student above, a quarter of the points have such a twin, 0.85 m
    (5.4 %) away on average, and the point nearer to its optical axis is better (AbsRel .073 against .080, same
    benchmark). Points that something nearer hides from the other camera are kept.

    Args:
        rig: views with their images.
        depth_m: depth of each view, metres, 0 = none.
        world_from_ego: pose of the vehicle.
        range_m: depths (z) are kept strictly between these.
        neighbour_px: distance in pixels to the neighbours that a pixel is compared with: half a cell of the grid on
            which depth was predicted before it was stretched to (H, W).
        sure: pixels that may be kept; None for all.
    """
    V = len(depth_m)
    ego_from_world = np.linalg.inv(world_from_ego)
    kept = (depth_m > range_m[0]) & (depth_m < range_m[1]) & rig.view_valid[:, None, None]
    if sure is not None:
        kept &= sure
    camera_m: dict[int, np.ndarray] = {}
    ego_m: dict[int, np.ndarray] = {}
    for i in np.flatnonzero(rig.view_valid).tolist():
        ego_from_cam = ego_from_world @ rig.world_from_cam[i]
        camera_m[i] = unproject(depth_m[i].astype(np.float64), rig.intrinsics[i].astype(np.float64))
        ego_m[i] = camera_m[i] @ ego_from_cam[:3, :3].T + ego_from_cam[:3, 3]
        kept[i] &= smooth_pixels(depth_m[i], ego_m[i], float(ego_from_cam[2, 3]), neighbour_px)
    seen = kept.copy()
    for i in camera_m:
        for j in {(i - 1) % V, (i + 1) % V} & camera_m.keys() - {i}:
            kept[i] &= ~_seen_better(rig, depth_m, seen, i, j, camera_m[i])
    points_m = np.concatenate([np.empty((0, 3)), *(ego_m[i][kept[i]] for i in camera_m)])
    return PointCloud(points_m.astype(np.float32), rig.image[kept])


def smooth_pixels(
    depth_m: Float[np.ndarray, "H W"],
    ego_m: Float[np.ndarray, "H W 3"],
    camera_height_m: float,
    neighbour_px: int = 1,
) -> Bool[np.ndarray, "H W"]:
    """Pixels with depth that are not at an edge: the depths of their four neighbours differ by JUMP_RATIO at most.

    A street seen at a grazing angle has larger ratios between rows, too. So a larger ratio between two rows is no edge
    if both pixels lie at least BELOW_CAMERA_M below the camera and the slope between them is at most LEVEL_SLOPE.
    Pixels without depth (0) are not returned and make no edge.

    Args:
        depth_m: metres, 0 = none.
        ego_m: the same pixels in the vehicle's frame, z up.
        camera_height_m: z of the camera in that frame.
        neighbour_px: distance in pixels to the neighbours.
    """
    log_depth = np.log(np.where(depth_m > 0, depth_m, np.nan))
    low = ego_m[..., 2] < camera_height_m - BELOW_CAMERA_M
    smooth = depth_m > 0
    for axis in (0, 1):
        near, far = slice(0, -neighbour_px), slice(neighbour_px, None)
        one, other = ((part, slice(None)) if axis == 0 else (slice(None), part) for part in (near, far))
        edge = np.abs(log_depth[other] - log_depth[one]) > np.log(JUMP_RATIO)  # False for NaN
        if axis == 0:
            step_m = np.abs(ego_m[other] - ego_m[one])
            level = step_m[..., 2] < LEVEL_SLOPE * np.hypot(step_m[..., 0], step_m[..., 1])
            edge &= ~(level & low[one] & low[other])
        smooth[one] &= ~edge
        smooth[other] &= ~edge
    return smooth


def thinned(cloud: PointCloud, count: int) -> PointCloud:
    """A random subset of at most `count` points of a cloud, always the same one, in the original order."""
    if len(cloud.points_m) <= count:
        return cloud
    chosen = np.sort(np.random.default_rng(0).choice(len(cloud.points_m), count, replace=False))
    return PointCloud(cloud.points_m[chosen], cloud.rgb[chosen])


def _seen_better(
    rig: RigViews,
    depth_m: Float[np.ndarray, "V H W"],
    seen: Bool[np.ndarray, "V H W"],
    i: int,
    j: int,
    camera_m: Float[np.ndarray, "H W 3"],
) -> Bool[np.ndarray, "H W"]:
    """Pixels of view i whose surface view j sees, too, and nearer to its optical axis."""
    better = np.zeros(seen[i].shape, dtype=bool)
    pixels = np.flatnonzero(seen[i])
    points_m = camera_m.reshape(-1, 3)[pixels]
    j_from_i = np.linalg.inv(rig.world_from_cam[j]) @ rig.world_from_cam[i]
    K_px = rig.intrinsics[j].astype(np.float64)
    there = project(points_m, j_from_i, K_px, (int(depth_m.shape[1]), int(depth_m.shape[2])))
    row, column = there.v_px.astype(int), there.u_px.astype(int)
    other_m = depth_m[j][row, column]
    same = seen[j][row, column] & (np.abs(np.log(there.depth_m / np.maximum(other_m, 1e-6))) < np.log(OCCLUSION_RATIO))
    y = (there.v_px - K_px[1, 2]) / K_px[1, 1]
    x = (there.u_px - K_px[0, 2] - K_px[0, 1] * y) / K_px[0, 0]
    own = points_m[there.index]
    nearer_axis = x**2 + y**2 < (own[:, 0] ** 2 + own[:, 1] ** 2) / own[:, 2] ** 2
    better.flat[pixels[there.index[same & nearer_axis]]] = True
    return better
