"""Projection, z-buffered sparse depth, and intrinsics of a resized image."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from data_cache.frames.rig import Sweep, View

OCCLUSION_RATIO = 1.5
"""Depths that differ by more than this factor belong to two surfaces, one hiding the other, and are not compared."""


@dataclass(frozen=True, eq=False)
class Projection:
    """Points projected into an image; only those inside it.

    Attributes:
        u_px, v_px: (M,) image coordinates; pixel centres lie at half-integers.
        depth_m: (M,) z in the camera frame, metres.
        index: (M,) indices into the N points that were projected.
    """

    u_px: Float[np.ndarray, " M"]
    v_px: Float[np.ndarray, " M"]
    depth_m: Float[np.ndarray, " M"]
    index: Int[np.ndarray, " M"]


def resized_intrinsics(
    K_px: Float[np.ndarray, "3 3"], from_size: tuple[int, int], to_size: tuple[int, int]
) -> Float[np.ndarray, "3 3"]:
    """Intrinsics after stretching an image from (H, W) `from_size` to `to_size`.

    With pixel centres at half-integers a stretch scales fx, cx by the width ratio and fy, cy by the height ratio.
    """
    scale = np.array([to_size[1] / from_size[1], to_size[0] / from_size[0], 1.0])
    scaled: np.ndarray = K_px * scale[:, None]
    return scaled


def project(
    points_m: Float[np.ndarray, "N 3"],
    cam_from_points: Float[np.ndarray, "4 4"],
    K_px: Float[np.ndarray, "3 3"],
    size: tuple[int, int],
    *,
    min_depth_m: float = 0.1,
) -> Projection:
    """Project points into a pinhole image and keep those inside it.

    Args:
        points_m: points in any frame.
        cam_from_points: (4, 4) pose from the frame of the points to the camera.
        K_px: intrinsics for an image of `size`.
        size: (H, W) of the image.
        min_depth_m: points with z <= min_depth_m are dropped.
    """
    # Written out: a matrix product this thin is slower, and its threads compete with the teacher's for the cores.
    points_x, points_y, points_z = points_m.T
    x, y, z = (a * points_x + b * points_y + c * points_z + d for a, b, c, d in cam_from_points[:3])
    ahead = np.flatnonzero(z > min_depth_m)
    x, y, z = x[ahead], y[ahead], z[ahead]
    u = (K_px[0, 0] * x + K_px[0, 1] * y) / z + K_px[0, 2]
    v = K_px[1, 1] * y / z + K_px[1, 2]
    height, width = size
    inside = (u >= 0) & (u < width) & (v >= 0) & (v < height)
    return Projection(u[inside], v[inside], z[inside], ahead[inside])


def cam_from_lidar(view: View, sweep: Sweep) -> Float[np.ndarray, "4 4"]:
    """Pose from the LiDAR to the camera, through the world: the vehicle moves between the two time stamps."""
    pose: np.ndarray = np.linalg.inv(view.world_from_cam) @ sweep.world_from_lidar
    return pose


def sparse_depth(view: View, sweep: Sweep, size: tuple[int, int]) -> Float[np.ndarray, "H W"]:
    """Z-buffered LiDAR depth of a view, stretched to (H, W) `size`.

    Returns:
        (H, W) float32 depth (z) in metres, 0 where no point falls; a pixel keeps the nearest of its points.
    """
    K_px = resized_intrinsics(view.camera.K_px, (view.camera.height_px, view.camera.width_px), size)
    return zbuffer(project(sweep.points_m, cam_from_lidar(view, sweep), K_px, size), size)


def zbuffer(projection: Projection, size: tuple[int, int]) -> Float[np.ndarray, "H W"]:
    """Nearest depth per pixel, float32 metres, 0 where there is none."""
    flat = np.full(size[0] * size[1], np.inf)
    pixel = projection.v_px.astype(np.int64) * size[1] + projection.u_px.astype(np.int64)
    np.minimum.at(flat, pixel, projection.depth_m)
    flat[np.isinf(flat)] = 0.0
    return flat.reshape(size).astype(np.float32)


def unproject(depth_m: Float[np.ndarray, "H W"], K_px: Float[np.ndarray, "3 3"]) -> Float[np.ndarray, "H W 3"]:
    """Camera-frame points of a depth (z) map, metres; a pixel without depth (0) lands on the origin."""
    height, width = depth_m.shape
    v, u = np.mgrid[0:height, 0:width] + 0.5
    y = (v - K_px[1, 2]) / K_px[1, 1]
    x = (u - K_px[0, 2] - K_px[0, 1] * y) / K_px[0, 0]
    points: np.ndarray = np.stack([x, y, np.ones_like(x)], axis=-1) * depth_m[..., None]
    return points
