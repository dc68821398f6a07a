"""Are the cameras in ring order, and do neighbours overlap?"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from data_cache.frames.geometry import project, unproject
from data_cache.frames.rig import Frame, View

OVERLAP_AT_M = 10.0


def shared_view(one: View, other: View) -> float:
    """Share of a camera's image, at a depth (z) of OVERLAP_AT_M metres, that its neighbour sees, too."""
    size = (12, 24)
    cell = np.diag([size[1] / one.camera.width_px, size[0] / one.camera.height_px, 1.0])
    points_m = unproject(np.full(size, OVERLAP_AT_M), cell @ one.camera.K_px).reshape(-1, 3)
    camera = other.camera
    other_from_one = np.linalg.inv(other.world_from_cam) @ one.world_from_cam
    seen = project(points_m, other_from_one, camera.K_px, (camera.height_px, camera.width_px))
    return len(seen.index) / len(points_m)


@dataclass(frozen=True)
class RingCheck:
    """The camera ring according to the poses of a frame.

    Attributes:
        clockwise: camera names clockwise, seen from above, beginning with the first of the rig.
        in_order: whether that is the order of the rig.
        shared: overlap of each pair of neighbours that the frame has, see `shared_view`; the larger of both directions.
    """

    clockwise: tuple[str, ...]
    in_order: bool
    shared: Mapping[tuple[str, str], float]


def check_ring(frame: Frame) -> RingCheck:
    """Order and overlap of the cameras of a frame, which must have at least one."""
    views = [view for view in frame.views if view is not None]
    axes = np.stack([view.world_from_cam[:3, :3] for view in views])  # columns: right, down, forward
    up = -axes[:, :, 1].mean(axis=0)
    ahead = axes[0, :, 2] - up * (axes[0, :, 2] @ up) / (up @ up)
    right = np.cross(ahead, up) / np.linalg.norm(up)
    heading = np.arctan2(axes[:, :, 2] @ right, axes[:, :, 2] @ ahead) % (2 * np.pi)
    heading[0] = 0.0
    order = np.argsort(heading, kind="stable")
    shared = {}
    count = len(frame.views)
    for i in range(count if count > 2 else count - 1):
        one, other = frame.views[i], frame.views[(i + 1) % count]
        if one is not None and other is not None:
            pair = (one.camera.name, other.camera.name)
            shared[pair] = max(shared_view(one, other), shared_view(other, one))
    names = tuple(view.camera.name for view in views)
    return RingCheck(tuple(names[i] for i in order), bool((order == np.arange(len(views))).all()), shared)
