"""Two synthetic worlds: the roads that a vehicle drives, and the cameras and LiDAR that it carries."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from data_cache.sources.synthetic.scene import Plan, Scene
from data_cache.sources.synthetic.street import build_street, plan_street
from data_cache.sources.synthetic.town import build_town, plan_town


@dataclass(frozen=True)
class Mount:
    """A camera on the vehicle: yaw and pitch in degrees (left and down positive), place in the vehicle frame."""

    name: str
    yaw_deg: float
    pitch_deg: float
    focal_px: float
    ahead_m: float
    left_m: float
    height_m: float


@dataclass(frozen=True)
class Lidar:
    """A spinning LiDAR above the origin of the vehicle frame.

    Attributes:
        height_m: above the road.
        elevation_deg: of each ring.
        azimuth_count: rays of a ring.
        range_m: farther returns are lost.
        noise_m: standard deviation of a range.
        lead_s: how long before the cameras it fires.
        lossy: whether haze swallows returns.
    """

    height_m: float
    elevation_deg: tuple[float, ...]
    azimuth_count: int
    range_m: float
    noise_m: float
    lead_s: float
    lossy: bool = False


@dataclass(frozen=True, eq=False)
class World:
    """Drives through procedural scenes.

    Attributes:
        name: of the data set.
        plan, build: the road of a seed, and its scene.
        first_seed: seed of the first drive; the others follow.
        splits: number of drives of each, in order.
        mounts: cameras in ring order, clockwise from the front.
        size_px: height and width of an image.
        lidar: the LiDAR.
        frames_per_drive, first_along_m, frame_step_m: where the vehicle is, along its road.
        speed_m_per_s: how fast it moves between LiDAR and cameras.
    """

    name: str
    plan: Callable[[int], Plan]
    build: Callable[[int], Scene]
    first_seed: int
    splits: Mapping[str, int] = field(repr=False)
    mounts: tuple[Mount, ...]
    size_px: tuple[int, int]
    lidar: Lidar
    frames_per_drive: int
    first_along_m: float
    frame_step_m: float
    speed_m_per_s: float


STREET = World(
    name="synthetic",
    plan=plan_street,
    build=build_street,
    first_seed=0,
    splits={"train": 40, "selection": 8, "test": 12},
    mounts=(
        Mount("front", 0.0, 0.0, 480.0, 0.4, 0.0, 1.6),
        Mount("front_right", -60.0, 0.8, 450.0, 0.3, -0.3, 1.6),
        Mount("back_right", -120.0, 1.2, 450.0, -0.1, -0.3, 1.6),
        Mount("back", 180.0, 0.5, 450.0, -0.3, 0.0, 1.6),
        Mount("back_left", 120.0, 1.0, 450.0, -0.1, 0.3, 1.6),
        Mount("front_left", 60.0, 0.6, 450.0, 0.3, 0.3, 1.6),
    ),
    size_px=(384, 640),
    lidar=Lidar(1.9, tuple(np.linspace(-25.0, 10.0, 32)), 1091, 80.0, 0.02, 0.018),
    frames_per_drive=6,
    first_along_m=105.0,
    frame_step_m=6.0,
    speed_m_per_s=10.0,
)
"""A straight street by day, seen from a car: to learn from."""

TOWN = World(
    name="synthetic_town",
    plan=plan_town,
    build=build_town,
    first_seed=1000,
    splits={"test": 12},
    mounts=(
        Mount("front", 0.0, 4.0, 600.0, 1.1, 0.0, 2.3),
        Mount("front_right", -55.0, 6.0, 440.0, 0.9, -0.8, 2.1),
        Mount("back_right", -110.0, 7.0, 440.0, 0.6, -0.9, 2.1),
        Mount("back", 180.0, 9.0, 330.0, -1.0, 0.0, 2.5),
        Mount("back_left", 110.0, 7.0, 440.0, 0.6, 0.9, 2.1),
        Mount("front_left", 55.0, 6.0, 440.0, 0.9, 0.8, 2.1),
    ),
    size_px=(400, 704),
    lidar=Lidar(
        2.7,
        (-16.0, -14.0, -12.0, -10.0, *np.arange(-8.0, -2.0, 1.0), *np.linspace(-2.0, 2.0, 13), 3.0, 4.0, 5.0, 7.0),
        1800,
        120.0,
        0.03,
        0.03,
        lossy=True,
    ),
    frames_per_drive=6,
    first_along_m=100.0,
    frame_step_m=7.0,
    speed_m_per_s=7.0,
)
"""A hilly old town by day, in fog, in rain and at night, seen from a van: only to measure on."""
