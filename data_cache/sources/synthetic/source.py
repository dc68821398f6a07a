"""The synthetic data set: drives through procedural streets, rendered when asked for; nothing is on disk.

World axes are x forward, y left, z up; the vehicle frame has the same axes and lies on the ground below the rig. The
LiDAR fires some milliseconds before the cameras and the vehicle moves in between, as on a real car.
"""

import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, UInt8

from data_cache.errors import FrameError
from data_cache.frames.rig import Camera, Frame, Rig, Sweep, View, make_sweep
from data_cache.sources.synthetic.street import build_street, plan_street

if TYPE_CHECKING:
    from data_cache.sources.synthetic.render import Rendering, Tracer

DRIVE_COUNT = 60
FRAMES_PER_DRIVE = 6
HEIGHT_PX, WIDTH_PX = 384, 640
CAMERA_HEIGHT_M = 1.6
LIDAR_HEIGHT_M = 1.9
ELEVATION_DEG = (-25.0, 10.0)
RING_COUNT = 32
AZIMUTH_COUNT = 1091
RANGE_M = 80.0
SPEED_M_PER_S = 10.0
LIDAR_LEAD_S = 0.018
_FRAME_STEP_M = 6.0
_FIRST_ALONG_M = 105.0
_RANGE_NOISE_M = 0.02

_MOUNTS = (  # name, yaw and pitch in degrees (left and down positive), focal length in pixels, x and y in metres
    ("front", 0.0, 0.0, 480.0, 0.4, 0.0),
    ("front_right", -60.0, 0.8, 450.0, 0.3, -0.3),
    ("back_right", -120.0, 1.2, 450.0, -0.1, -0.3),
    ("back", 180.0, 0.5, 450.0, -0.3, 0.0),
    ("back_left", 120.0, 1.0, 450.0, -0.1, 0.3),
    ("front_left", 60.0, 0.6, 450.0, 0.3, 0.3),
)
_RIG = Rig("synthetic", tuple(mount[0] for mount in _MOUNTS))


class SyntheticSource:
    """Sixty drives of six frames; see `data_cache.sources.base.Source`."""

    name = "synthetic"
    rig = _RIG

    def __init__(self) -> None:
        names = [f"drive-{i:02d}" for i in range(DRIVE_COUNT)]
        self.drives: Mapping[str, tuple[str, ...]] = {
            name: tuple(f"{name}/{i}" for i in range(FRAMES_PER_DRIVE)) for name in names
        }
        self.splits: Mapping[str, tuple[str, ...]] = {
            "train": tuple(names[:40]), "selection": tuple(names[40:48]), "test": tuple(names[48:])
        }  # fmt: skip

    def frame(self, frame_id: str) -> Frame:
        """Poses and loaders of a frame; the street is built when the first image or sweep is loaded."""
        name, _, number = frame_id.partition("/")
        if frame_id not in self.drives.get(name, ()):
            raise FrameError(f"synthetic: expected an id like drive-07/3, found {frame_id!r}")
        drive, index = int(name.removeprefix("drive-")), int(number)
        time_ns = 1_000_000_000 * (1 + index)
        views = tuple(
            View(
                _camera(v),
                _world_from_cam(drive, index, v),
                time_ns,
                functools.partial(_image, drive, index, v),
                ego_from_cam=_ego_from_cam(v),
            )
            for v in range(_RIG.view_count)
        )
        truth = tuple(functools.partial(_truth_m, drive, index, v) for v in range(_RIG.view_count))
        world_from_ego = _world_from_ego(drive, index, LIDAR_LEAD_S)
        return Frame(frame_id, views, functools.partial(_sweep, drive, index), truth, world_from_ego)


def _world_from_ego(drive: int, index: int, lead_s: float = 0.0) -> Float[np.ndarray, "4 4"]:
    """Pose of the vehicle `lead_s` seconds before the cameras fire: in the right lane, with a little sway."""
    plan = plan_street(drive)
    along = _FIRST_ALONG_M + _FRAME_STEP_M * index - SPEED_M_PER_S * lead_s
    sway_m, sway_rad = np.random.default_rng([drive, index, 2]).normal(0, (0.15, 0.01))
    yaw = plan.path.heading_rad(along) + sway_rad
    pose = _pose(yaw, 0.0)
    pose[:3, 3] = plan.path.bend(np.array([along, sway_m - plan.lane_m / 2, 0.0]))
    return pose


def _pose(yaw_rad: float, pitch_rad: float) -> Float[np.ndarray, "4 4"]:
    """Pose that rotates by pitch about the left axis (nose down positive), then by yaw about up (counterclockwise)."""
    c, s, cp, sp = np.cos(yaw_rad), np.sin(yaw_rad), np.cos(pitch_rad), np.sin(pitch_rad)
    pose = np.eye(4)
    pose[:3, :3] = [[c * cp, -s, c * sp], [s * cp, c, s * sp], [-sp, 0.0, cp]]
    return pose


_EGO_FROM_OPTICAL = np.array([[0.0, 0, 1, 0], [-1, 0, 0, 0], [0, -1, 0, 0], [0, 0, 0, 1]])


def _world_from_cam(drive: int, index: int, view: int) -> Float[np.ndarray, "4 4"]:
    pose: np.ndarray = _world_from_ego(drive, index) @ _ego_from_mount(view) @ _EGO_FROM_OPTICAL
    return pose


def _ego_from_cam(view: int) -> Float[np.ndarray, "4 4"]:
    pose: np.ndarray = _ego_from_mount(view) @ _EGO_FROM_OPTICAL
    return pose


def _ego_from_mount(view: int) -> Float[np.ndarray, "4 4"]:
    _, yaw_deg, pitch_deg, _, x_m, y_m = _MOUNTS[view]
    pose = _pose(np.deg2rad(yaw_deg), np.deg2rad(pitch_deg))
    pose[:3, 3] = x_m, y_m, CAMERA_HEIGHT_M
    return pose


def _camera(view: int) -> Camera:
    name, _, _, focal_px, _, _ = _MOUNTS[view]
    K = np.array([[focal_px, 0, WIDTH_PX / 2], [0, focal_px, HEIGHT_PX / 2], [0, 0, 1]])
    return Camera(name, K, WIDTH_PX, HEIGHT_PX)


@functools.lru_cache(maxsize=2)
def _tracer(drive: int) -> "Tracer":
    from data_cache.sources.synthetic.render import Tracer

    return Tracer(build_street(drive))


@functools.lru_cache(maxsize=12)
def _rendering(drive: int, index: int, view: int) -> "Rendering":
    """Render a view; image and truth come from one cast, so the last few renderings are kept."""
    rng = np.random.default_rng([drive, index, view, 3])
    return _tracer(drive).render(_camera(view), _world_from_cam(drive, index, view), rng)


def _image(drive: int, index: int, view: int, at_least: tuple[int, int] | None = None) -> UInt8[np.ndarray, "H W 3"]:
    return _rendering(drive, index, view).rgb.copy()


def _truth_m(drive: int, index: int, view: int) -> Float[np.ndarray, "H W"]:
    return _rendering(drive, index, view).depth_m.copy()


def _sweep(drive: int, index: int) -> Sweep:
    world_from_lidar = _world_from_ego(drive, index, LIDAR_LEAD_S)
    world_from_lidar[2, 3] = LIDAR_HEIGHT_M
    elevation = np.deg2rad(np.linspace(*ELEVATION_DEG, RING_COUNT))[:, None]
    azimuth = (np.arange(AZIMUTH_COUNT) * (2 * np.pi / AZIMUTH_COUNT))[None]
    level, up = np.cos(elevation), np.sin(elevation)
    rays = np.stack(np.broadcast_arrays(level * np.cos(azimuth), level * np.sin(azimuth), up), axis=-1).reshape(-1, 3)
    range_m = _tracer(drive).ranges_m(world_from_lidar[:3, 3], rays @ world_from_lidar[:3, :3].T)
    range_m += np.random.default_rng([drive, index, 4]).normal(0, _RANGE_NOISE_M, len(rays))
    near = range_m < RANGE_M
    return make_sweep(rays[near] * range_m[near, None], world_from_lidar, f"synthetic drive-{drive:02d}/{index}")
