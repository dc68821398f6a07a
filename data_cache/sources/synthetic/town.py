"""A procedural old town: a narrow road that winds over hills, a square, and weather from sun to night.

Houses, trees and vehicles are built one by one (`houses.py`, `objects.py`) and placed upright along the road. World
axes are x forward, y left, z up, in metres. Traffic keeps to the right.
"""

import functools
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from data_cache.sources.synthetic.houses import church, fountain, house, lorry, stall
from data_cache.sources.synthetic.mesh import Material, Mesh, Surface
from data_cache.sources.synthetic.objects import car, person, tree
from data_cache.sources.synthetic.scene import LENGTH_M, Path, Plan, Scene, Weather, turned

_GREY = (0.50, 0.53, 0.57)
_MIST = (0.72, 0.75, 0.78)
WEATHERS = {  # weather, haze in metres, cloud cover
    "day": (Weather(), (180.0, 500.0), (0.1, 0.8)),
    "fog": (
        Weather(
            sun=(0.12, 0.12, 0.11), sky=(0.85, 0.88, 0.92), street=(0.4, 0.4, 0.4),
            zenith=_MIST, horizon=(0.0, 0.0, 0.0), glow=(0.06, 0.06, 0.05), haze=_MIST, low=0.4,
        ),
        (35.0, 70.0),
        (-3.0, -3.0),
    ),
    "rain": (
        Weather(
            sun=(0.0, 0.0, 0.0), sky=(0.55, 0.6, 0.66), street=(0.22, 0.22, 0.22), zenith=(0.36, 0.4, 0.45),
            horizon=(0.14, 0.13, 0.12), cloud=0.55, glow=(0.0, 0.0, 0.0), haze=_GREY, low=0.2, wet=1.0,
            exposure=0.8, noise=0.012,
        ),
        (110.0, 200.0),
        (0.5, 0.8),
    ),
    "night": (
        Weather(
            sun=(0.02, 0.022, 0.03), sky=(0.02, 0.024, 0.036), street=(0.03, 0.025, 0.018),
            zenith=(0.006, 0.008, 0.016),
            horizon=(0.03, 0.024, 0.018), cloud=0.03, glow=(0.0, 0.0, 0.0), haze=(0.02, 0.018, 0.015), low=0.02,
            beam=700.0, wet=0.25, exposure=1.5, noise=0.03,
        ),
        (150.0, 300.0),
        (0.2, 0.7),
    ),
}  # fmt: skip
"""By name; one drive after the other has each of them."""
_SQUARE_M = 22.0
_CLEAR_ALONG_M = (84.0, 158.0)
"""Where the vehicle drives, its lane is free."""


@dataclass(frozen=True, eq=False)
class _Site:
    """Where things stand: the road and its pavements, and what is built so far.

    `square_side` is +1 where the square lies on the left; `square_m` is its stretch of the road.
    """

    mesh: Mesh
    path: Path
    half_m: float
    walk_m: float
    square_side: float
    square_m: tuple[float, float]

    def edge_m(self, along_m: float, side: float) -> float:
        """Distance from the centre line to the fronts of this side."""
        on_square = side == self.square_side and self.square_m[0] < along_m < self.square_m[1]
        return self.half_m + self.walk_m + (_SQUARE_M if on_square else 0.0)

    def put(self, thing: Mesh, along_m: float, left_m: float, yaw_rad: float = 0.0, level: bool = True) -> None:
        """Place a mesh in street coordinates."""
        self.mesh.merge(thing, self.path.pose(along_m, left_m, yaw_rad, level=level))


@functools.cache
def plan_town(seed: int) -> Plan:
    """Plan the road of a town; cheap, and the same for the same seed."""
    rng = np.random.default_rng([seed, 0])
    swing, phase = rng.choice((-1.0, 1.0)) * rng.uniform(0.45, 0.8), rng.uniform(0, 2 * np.pi)
    return Plan(Path(swing, phase, rng.uniform(150, 200), rng.uniform(0.6, 2.0)), rng.uniform(2.9, 3.5))


def build_town(seed: int) -> Scene:
    """Build a town, which takes seconds; the same seed gives the same town."""
    rng, plan, mesh = np.random.default_rng([seed, 1]), plan_town(seed), Mesh()
    name = tuple(WEATHERS)[seed % len(WEATHERS)]
    night, (weather, haze, cover) = name == "night", WEATHERS[name]
    begin = rng.uniform(95, 125)
    square = begin, begin + rng.uniform(26, 38)
    site = _Site(mesh, plan.path, plan.lane_m + 0.3, rng.uniform(2.0, 3.6), rng.choice((-1.0, 1.0)), square)
    _ground(site, rng)
    for side in (-1.0, 1.0):
        _fronts(site, rng, side, night)
    _square(site, rng)
    lamps_m = _pavement(site, rng, night)
    _traffic(site, rng, plan.lane_m)
    corners, uv, material, colour, style = mesh.columns()
    elevation, azimuth = rng.uniform(0.35, 0.9), rng.uniform(0, 2 * np.pi)
    sun = np.array([np.cos(elevation) * np.cos(azimuth), np.cos(elevation) * np.sin(azimuth), np.sin(elevation)])
    haze_m, cloud = rng.uniform(*haze), rng.uniform(*cover)
    return Scene(corners, uv, material, colour, style, sun, haze_m, cloud, weather, lamps_m)


def _ground(site: _Site, rng: np.random.Generator) -> None:
    """Add the road, its pavements, the square, and hills with woods and houses around."""
    stones = rng.uniform(0.22, 0.34) * np.array((1.0, 0.96, 0.9))
    cobbles = Surface(Material.STONES, stones, (rng.uniform(0.12, 0.2), rng.uniform(0.1, 0.14), 0.014, 0.3))
    asphalt = Surface(Material.STONES, np.full(3, rng.uniform(0.09, 0.14)), (17.0, 3.1, 0.02, 0.12))
    slabs = Surface(Material.STONES, stones * 1.15, (0.6, 0.4, 0.015, 0.12))
    half, inner = site.half_m, site.half_m + 0.25
    road = cobbles if rng.uniform() < 0.6 else asphalt
    _strip(site, (-half, half), (0.0, 0.0), road)
    kerb = Surface(Material.PLAIN, (0.4, 0.38, 0.35))
    for side in (-1.0, 1.0):
        _strip(site, (side * half, side * half), (0.0, 0.09), kerb)
        _strip(site, (side * half, side * inner), (0.09, 0.09), kerb)
        _strip(site, (side * inner, side * (half + site.walk_m + 2.5)), (0.09, 0.09), slabs)
    near, far = site.half_m + site.walk_m, site.half_m + site.walk_m + _SQUARE_M + 2
    _strip(site, (site.square_side * near, site.square_side * far), (0.1, 0.1), cobbles, site.square_m)
    _hills(site, rng)


def _strip(
    site: _Site,
    left_m: tuple[float, float],
    up_m: tuple[float, float],
    surface: Surface,
    along_m: tuple[float, float] = (-60.0, LENGTH_M + 60.0),
) -> None:
    along = np.arange(along_m[0], along_m[1] + 1.5, 1.5)
    a, b = (np.stack(np.broadcast_arrays(along, left, up), axis=-1) for left, up in zip(left_m, up_m, strict=True))
    corners = np.stack([a[:-1], a[1:], b[1:], b[:-1]], axis=1)
    site.mesh.quads(site.path.bend(corners), surface, corners[..., :2])


def _hills(site: _Site, rng: np.random.Generator) -> None:
    line, cell_m = site.path.line_m[::2], 5.0
    low, high = line[:, :2].min(axis=0) - 150, line[:, :2].max(axis=0) + 150
    grid = np.stack(np.meshgrid(*(np.arange(a, b, cell_m) for a, b in zip(low, high, strict=True)), indexing="ij"), -1)
    phase = rng.uniform(0, 2 * np.pi, 2)

    def height_m(place_m: Float[np.ndarray, "N 2"]) -> Float[np.ndarray, " N"]:
        """Of the terrain: just below the road beside it, hills farther off."""
        far = ((place_m[:, None, 0] - line[:, 0]) ** 2 + (place_m[:, None, 1] - line[:, 1]) ** 2).astype(np.float32)
        nearest = far.argmin(axis=1)
        rise = np.clip((np.sqrt(far[np.arange(len(far)), nearest]) - 40) / 110, 0, 1)
        waves = 1 + 0.5 * np.sin(place_m[:, 0] / 47 + phase[0]) * np.cos(place_m[:, 1] / 39 + phase[1])
        height: np.ndarray = line[nearest, 2] - 0.12 + 26 * rise**2 * (3 - 2 * rise) * waves
        return height

    up = height_m(grid.reshape(-1, 2)).reshape(grid.shape[:2])
    points = np.concatenate([grid, up[..., None]], axis=-1)
    corners = np.stack([points[:-1, :-1], points[1:, :-1], points[1:, 1:], points[:-1, 1:]], axis=2).reshape(-1, 4, 3)
    site.mesh.quads(corners, Surface(Material.GRASS, (0.11, 0.13, 0.055)), corners[..., :2])
    for scale, count in ((2.2, 46), (0.0, 40)):
        for _ in range(count):
            along, left = rng.uniform(-20, LENGTH_M + 20), rng.choice((-1.0, 1.0)) * rng.uniform(34, 110)
            pose = turned(rng.uniform(0, 2 * np.pi), 0.0)
            pose[:2, 3] = site.path.bend(np.array([along, left, 0.0]))[:2]
            if _distance_m(site, pose[None, :2, 3]) < 30 + 10 * (scale == 0):
                continue
            pose[2, 3] = height_m(pose[None, :2, 3])[0]
            thing = Mesh()
            if scale:
                tree(thing, rng, 0.0, 0.0, scale * rng.uniform(0.7, 1.3))
            else:
                thing = house(rng, rng.uniform(7, 12), rng.uniform(8, 12), False)
            site.mesh.merge(thing, pose)


def _distance_m(site: _Site, place_m: Float[np.ndarray, "N 2"]) -> float:
    """Smallest distance of the places from the centre line."""
    line = site.path.line_m[:, :2]
    return float(np.sqrt(((place_m[:, None] - line) ** 2).sum(axis=-1)).min())


def _fronts(site: _Site, rng: np.random.Generator, side: float, night: bool) -> None:
    """Add the houses of one side, with gaps, walls and gardens."""
    along, steeple = -40.0, site.square_m[0] + 0.5 * (site.square_m[1] - site.square_m[0])
    while along < LENGTH_M + 40:
        width, depth = rng.uniform(5.0, 11.5), rng.uniform(8, 12)
        middle, yaw = along + width / 2, 0.0 if side > 0 else np.pi
        edge = site.edge_m(middle, side)
        if rng.uniform() < 0.1:
            wall = Surface(Material.STONES, (0.36, 0.33, 0.28), (0.4, 0.2, 0.02, 0.3))
            garden = Mesh()
            garden.box((0, 0.2, -0.8), (width, 0.4, rng.uniform(1.8, 2.6)), wall)
            for _ in range(2):
                tree(garden, rng, rng.uniform(-3, 3), rng.uniform(3, 7), rng.uniform(0.7, 1.1))
            site.put(garden, middle, side * edge, yaw)
        else:
            built = house(rng, width, depth, night)
            if edge > _SQUARE_M and abs(middle - steeple) < width / 2 + 3:
                built, depth = church(rng), 8.0
            setback = rng.choice((0.0, 0.0, 0.25, 0.6))
            pose = site.path.pose(middle, side * (edge + setback), yaw, level=True)
            x, y = np.array([-width / 2, width / 2, width / 2, -width / 2]), np.array([0, 0, depth, depth])
            corners = np.stack([x, y, 0 * x, 1 + 0 * x], axis=-1) @ pose.T
            if _distance_m(site, corners[:, :2]) > site.half_m + 0.9:
                site.mesh.merge(built, pose)
        along += width + rng.choice((0.0, 0.0, 0.0, 1.2, 3.0))


def _square(site: _Site, rng: np.random.Generator) -> None:
    """Add a fountain, a market, trees, parked cars and people."""
    begin, end = site.square_m
    side, near = site.square_side, site.half_m + site.walk_m
    site.put(fountain(rng), (begin + end) / 2, side * (near + 0.45 * _SQUARE_M))
    for _ in range(5):
        along, left = rng.uniform(begin + 2, end - 2), side * (near + rng.choice((0.2, 0.7)) * _SQUARE_M)
        site.put(stall(rng), along, left, rng.choice((0.0, np.pi / 2, np.pi)))
    for along in np.arange(begin + 3, end - 2, rng.uniform(5, 8)):
        site.put(_planted(rng, rng.uniform(0.8, 1.3)), along, side * (near + 0.85 * _SQUARE_M))
    for along in np.arange(begin + 2, begin + 14, 2.7):
        if rng.uniform() < 0.6:
            site.put(_parked(rng), along, side * (near + 3.0), side * np.pi / 2, level=False)
    for _ in range(10):
        somebody = Mesh()
        person(somebody, rng, 0.0, 0.0)
        site.put(somebody, rng.uniform(begin, end), side * (near + rng.uniform(1, _SQUARE_M)), rng.uniform(0, 6))


def _planted(rng: np.random.Generator, scale: float) -> Mesh:
    mesh = Mesh()
    tree(mesh, rng, 0.0, 0.0, scale)
    return mesh


def _parked(rng: np.random.Generator) -> Mesh:
    mesh = Mesh()
    car(mesh, rng, 0.0, 0.0, 0.0)
    return mesh


def _pavement(site: _Site, rng: np.random.Generator, night: bool) -> Float[np.ndarray, "L 3"]:
    """Add lanterns, bollards, planters, benches and people beside the road; returns the lamps that are on."""
    iron, wood = Surface(Material.PLAIN, (0.04, 0.045, 0.045)), Surface(Material.PLAIN, (0.25, 0.15, 0.08))
    glass = Surface(Material.LAMP, (3.0, 2.3, 1.3)) if night else Surface(Material.PLAIN, (0.6, 0.6, 0.55))
    lamps_m, side = [], 1.0
    for along in np.arange(-30.0 + rng.uniform(0, 10), LENGTH_M + 30, rng.uniform(15, 20)):
        side, lantern = -side, Mesh()
        left = side * (site.half_m + 0.45)
        lantern.tube((0, 0, 0), (0, 0, 3.7), (0.07, 0.045), iron)
        lantern.tube((0, 0, 3.7), (0, 0, 4.15), (0.12, 0.2), glass, 6)
        lantern.tube((0, 0, 4.15), (0, 0, 4.4), (0.26, 0.03), iron, 6)
        site.put(lantern, along, left)
        if night:
            lamps_m.append(site.path.bend(np.array([along, left - side * 0.3, 3.6])))
    for along in np.arange(-30.0, LENGTH_M + 30, rng.uniform(3.5, 6)):
        for side in (-1.0, 1.0):
            kind, left, thing = rng.uniform(), side * (site.half_m + 0.5), Mesh()
            if kind < 0.25:
                thing.tube((0, 0, 0), (0, 0, 0.95), (0.07, 0.06), iron, 8)
            elif kind < 0.37:
                thing.box((0, 0, 0.05), (0.9, 0.45, 0.5), wood)
                for x in (-0.25, 0.25):
                    thing.leaves((x, 0, 0.75), 0.3, np.array([0.06, 0.12, 0.03]), rng)
            elif kind < 0.42:
                thing.box((0, 0.3 * side, 0.45), (1.6, 0.4, 0.06), wood)
                thing.box((0, 0.3 * side, 0.0), (1.3, 0.3, 0.45), iron)
            elif kind < 0.6:
                person(thing, rng, 0.0, side * rng.uniform(0.0, 0.7))
            else:
                continue
            site.put(thing, along + rng.uniform(-1, 1), left)
    return np.array(lamps_m).reshape(-1, 3)


def _traffic(site: _Site, rng: np.random.Generator, lane_m: float) -> None:
    along = rng.uniform(-20, 10)
    while along < LENGTH_M:
        beside = _CLEAR_ALONG_M[0] < along < _CLEAR_ALONG_M[1]  # a lorry would fill two cameras
        vehicle = lorry(rng) if rng.uniform() < 0.3 and not beside else _parked(rng)
        site.put(vehicle, along, lane_m / 2, np.pi, level=False)
        along += rng.uniform(16, 60)
    for span in ((40, _CLEAR_ALONG_M[0]), (_CLEAR_ALONG_M[1], 180), (190, 230)):
        vehicle = lorry(rng) if rng.uniform() < 0.3 else _parked(rng)
        site.put(vehicle, rng.uniform(*span), -lane_m / 2, 0.0, level=False)
