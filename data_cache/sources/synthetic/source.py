"""The synthetic data sets: drives through procedural worlds, rendered when asked for; nothing is on disk.

World axes are x forward, y left, z up; the vehicle frame has the same axes and lies on the ground below the rig. The
LiDAR fires some milliseconds before the cameras and the vehicle moves in between, as on a real car.
"""

import functools
from collections.abc import Mapping
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, UInt8

from data_cache.errors import FrameError
from data_cache.frames.rig import Camera, Frame, Rig, Sweep, View, make_sweep
from data_cache.sources.synthetic.scene import turned
from data_cache.sources.synthetic.world import STREET, World

if TYPE_CHECKING:
    from data_cache.sources.synthetic.render import Rendering, Tracer

EGO_FROM_OPTICAL = np.array([[0.0, 0, 1, 0], [-1, 0, 0, 0], [0, -1, 0, 0], [0, 0, 0, 1]])


class SyntheticSource:
    """The drives of a world; see `data_cache.sources.base.Source`."""

    def __init__(self, world: World = STREET) -> None:
        self._world = world
        self.name = world.name
        self.rig = Rig(world.name, tuple(mount.name for mount in world.mounts))
        names = [f"drive-{i:02d}" for i in range(sum(world.splits.values()))]
        self.drives: Mapping[str, tuple[str, ...]] = {
            name: tuple(f"{name}/{i}" for i in range(world.frames_per_drive)) for name in names
        }
        left = iter(names)
        self.splits: Mapping[str, tuple[str, ...]] = {
            split: tuple(islice(left, count)) for split, count in world.splits.items()
        }

    def frame(self, frame_id: str) -> Frame:
        """Poses and loaders of a frame; the scene is built when the first image or sweep is loaded."""
        name, _, number = frame_id.partition("/")
        if frame_id not in self.drives.get(name, ()):
            raise FrameError(f"{self.name}: expected an id like drive-07/3, found {frame_id!r}")
        where = self._world, int(name.removeprefix("drive-")), int(number)
        time_ns = 1_000_000_000 * (1 + where[2])
        views = tuple(
            View(
                _camera(self._world, v),
                _world_from_cam(*where, v),
                time_ns,
                functools.partial(_image, *where, v),
                ego_from_cam=_ego_from_cam(self._world, v),
            )
            for v in range(self.rig.view_count)
        )
        truth = tuple(functools.partial(_truth_m, *where, v) for v in range(self.rig.view_count))
        world_from_ego = _world_from_ego(*where, self._world.lidar.lead_s)
        return Frame(frame_id, views, functools.partial(_sweep, *where), truth, world_from_ego)


def _world_from_ego(world: World, drive: int, index: int, lead_s: float = 0.0) -> Float[np.ndarray, "4 4"]:
    """Pose of the vehicle `lead_s` seconds before the cameras fire: in the right lane, with a little sway."""
    plan = world.plan(world.first_seed + drive)
    along = world.first_along_m + world.frame_step_m * index - world.speed_m_per_s * lead_s
    sway_m, sway_rad = _rng(world, drive, index, 2).normal(0, (0.15, 0.01))
    return plan.path.pose(along, sway_m - plan.lane_m / 2, sway_rad)


def _world_from_cam(world: World, drive: int, index: int, view: int) -> Float[np.ndarray, "4 4"]:
    pose: np.ndarray = _world_from_ego(world, drive, index) @ _ego_from_mount(world, view) @ EGO_FROM_OPTICAL
    return pose


def _ego_from_cam(world: World, view: int) -> Float[np.ndarray, "4 4"]:
    pose: np.ndarray = _ego_from_mount(world, view) @ EGO_FROM_OPTICAL
    return pose


def _ego_from_mount(world: World, view: int) -> Float[np.ndarray, "4 4"]:
    mount = world.mounts[view]
    pose: np.ndarray = turned(np.deg2rad(mount.yaw_deg), np.deg2rad(mount.pitch_deg))
    pose[:3, 3] = mount.ahead_m, mount.left_m, mount.height_m
    return pose


def _camera(world: World, view: int) -> Camera:
    mount, (height_px, width_px) = world.mounts[view], world.size_px
    K = np.array([[mount.focal_px, 0, width_px / 2], [0, mount.focal_px, height_px / 2], [0, 0, 1]])
    return Camera(mount.name, K, width_px, height_px)


def _rng(world: World, drive: int, *stream: int) -> np.random.Generator:
    return np.random.default_rng([world.first_seed + drive, *stream])


@functools.lru_cache(maxsize=2)
def _tracer(world: World, drive: int) -> "Tracer":
    from data_cache.sources.synthetic.render import Tracer

    return Tracer(world.build(world.first_seed + drive))


@functools.lru_cache(maxsize=12)
def _rendering(world: World, drive: int, index: int, view: int) -> "Rendering":
    """Render a view; image and truth come from one cast, so the last few renderings are kept."""
    pose, world_from_ego = _world_from_cam(world, drive, index, view), _world_from_ego(world, drive, index)
    rng = _rng(world, drive, index, view, 3)
    return _tracer(world, drive).render(_camera(world, view), pose, rng, world_from_ego)


def _image(
    world: World, drive: int, index: int, view: int, at_least: tuple[int, int] | None = None
) -> UInt8[np.ndarray, "H W 3"]:
    return _rendering(world, drive, index, view).rgb.copy()


def _truth_m(world: World, drive: int, index: int, view: int) -> Float[np.ndarray, "H W"]:
    return _rendering(world, drive, index, view).depth_m.copy()


def _sweep(world: World, drive: int, index: int) -> Sweep:
    lidar, tracer = world.lidar, _tracer(world, drive)
    world_from_lidar = _world_from_ego(world, drive, index, lidar.lead_s)
    world_from_lidar[:3, 3] += lidar.height_m * world_from_lidar[:3, 2]
    elevation = np.deg2rad(lidar.elevation_deg)[:, None]
    azimuth = (np.arange(lidar.azimuth_count) * (2 * np.pi / lidar.azimuth_count))[None]
    level, up = np.cos(elevation), np.sin(elevation)
    rays = np.stack(np.broadcast_arrays(level * np.cos(azimuth), level * np.sin(azimuth), up), axis=-1).reshape(-1, 3)
    range_m = tracer.ranges_m(world_from_lidar[:3, 3], rays @ world_from_lidar[:3, :3].T)
    rng = _rng(world, drive, index, 4)
    range_m += rng.normal(0, lidar.noise_m, len(rays))
    back = range_m < lidar.range_m
    if lidar.lossy:
        back &= rng.uniform(size=len(rays)) < np.exp(-range_m / tracer.haze_m)
    where = f"{world.name} drive-{drive:02d}/{index}"
    return make_sweep(rays[back] * range_m[back, None], world_from_lidar, where)
