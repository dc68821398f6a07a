"""A procedural street: its geometry and materials, without light or sensors.

Everything is laid out in street coordinates (along, left, up) and finally bent along a gently curved centre line. World
axes are x forward, y left, z up, in metres. Traffic keeps to the right.
"""

import functools
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from data_cache.sources.synthetic.mesh import Material, Mesh, Surface, Vector

LENGTH_M = 300.0
CLEAR_ALONG_M = (90.0, 180.0)
"""The stretch of the right lane without traffic, where the vehicle drives."""
_KERB_M = 0.13
_PAINTS = (0.55, 0.55, 0.55), (0.03, 0.03, 0.035), (0.25, 0.26, 0.27), (0.42, 0.43, 0.44), (0.35, 0.02, 0.02), \
    (0.03, 0.07, 0.25), (0.70, 0.70, 0.68), (0.04, 0.12, 0.07), (0.30, 0.26, 0.20)  # fmt: skip
_WALLS = (0.42, 0.22, 0.15), (0.52, 0.44, 0.33), (0.55, 0.52, 0.47), (0.33, 0.17, 0.12), (0.60, 0.50, 0.32), \
    (0.35, 0.36, 0.37), (0.46, 0.36, 0.27), (0.62, 0.59, 0.54), (0.30, 0.33, 0.36), (0.45, 0.28, 0.20)  # fmt: skip
_ROOFS = (0.20, 0.10, 0.08), (0.13, 0.13, 0.14), (0.25, 0.14, 0.09)
_SIGNS = (0.6, 0.03, 0.03), (0.03, 0.10, 0.5), (0.65, 0.62, 0.55), (0.6, 0.45, 0.03)


class Facade(NamedTuple):
    """The style of a facade: a grid of windows over a ground floor."""

    pitch_m: float
    floor_m: float
    window_width_m: float
    window_height_m: float
    ground_m: float
    seed: float
    trim: float


@dataclass(frozen=True, eq=False)
class Street:
    """A street and its weather.

    Attributes:
        corners_m: (F, 3, 3) corner positions in the world.
        uv_m: (F, 3, 2) texture coordinates: along and up a wall, along and left on the ground.
        material: (F,) Material.
        colour: (F, 3) linear RGB albedo.
        style: (F, 7) a Facade; on the road, the width of a lane and zeros.
        sun: unit vector towards the sun.
        haze_m: distance at which haze hides 63 % of a surface.
        cloud: cloud cover in [0, 1].
    """

    corners_m: Float[np.ndarray, "F 3 3"]
    uv_m: Float[np.ndarray, "F 3 2"]
    material: Int[np.ndarray, " F"]
    colour: Float[np.ndarray, "F 3"]
    style: Float[np.ndarray, "F 7"]
    sun: Float[np.ndarray, " 3"]
    haze_m: float
    cloud: float


class Path:
    """A centre line with its heading (radians, counterclockwise from x)."""

    def __init__(self, swing_rad: float, phase_rad: float) -> None:
        self._along_m = np.arange(-100.0, LENGTH_M + 101.0)
        self._heading_rad = swing_rad * (np.sin(2 * np.pi * self._along_m / 260.0 + phase_rad) - np.sin(phase_rad))
        self._x_m, self._y_m = np.cumsum(np.cos(self._heading_rad)), np.cumsum(np.sin(self._heading_rad))

    def heading_rad(self, along_m: float) -> float:
        """Heading of the street at this distance."""
        return float(np.interp(along_m, self._along_m, self._heading_rad))

    def bend(self, points_m: Float[np.ndarray, "*N 3"]) -> Float[np.ndarray, "*N 3"]:
        """Street coordinates (along, left, up) to world coordinates."""
        along, left, up = np.moveaxis(points_m, -1, 0)
        heading, x, y = (np.interp(along, self._along_m, f) for f in (self._heading_rad, self._x_m, self._y_m))
        return np.stack([x - left * np.sin(heading), y + left * np.cos(heading), up], axis=-1)


@dataclass(frozen=True, eq=False)
class Plan:
    """The centre line and lane width of a street, known before it is built."""

    path: Path
    lane_m: float


@functools.cache
def plan_street(seed: int) -> Plan:
    """Plan a street; cheap, and the same for the same seed."""
    rng = np.random.default_rng([seed, 0])
    return Plan(Path(rng.uniform(-0.3, 0.3), rng.uniform(0, 2 * np.pi)), rng.uniform(3.2, 3.8))


def build_street(seed: int) -> Street:
    """Build a street, which takes a second; the same seed gives the same street."""
    rng, plan, mesh = np.random.default_rng([seed, 1]), plan_street(seed), Mesh()
    parking, houses, walk = rng.uniform() < 0.85, rng.uniform() < 0.35, rng.uniform(2.2, 4.5)
    half_road = plan.lane_m + rng.uniform(0.4, 1.4) + 2.3 * parking
    _ground(mesh, half_road, plan.lane_m, walk)
    for side in (-1.0, 1.0):
        _frontage(mesh, rng, side, half_road + walk, houses)
        _furniture(mesh, rng, side, half_road, walk)
        occupied = rng.uniform(0.3, 0.85) * parking
        for along in np.arange(-30.0, LENGTH_M + 30, 6.1):
            if rng.uniform() < occupied:
                _car(mesh, rng, along + rng.uniform(-0.4, 0.4), side * (half_road - 1.1), 0.0 if side < 0 else np.pi)
    along = rng.uniform(-20, 0)
    while along < LENGTH_M:
        _car(mesh, rng, along, plan.lane_m / 2, np.pi)
        along += rng.uniform(14, 70)
    for span in ((60, CLEAR_ALONG_M[0]), (CLEAR_ALONG_M[1], 205), (215, 260)):
        _car(mesh, rng, rng.uniform(*span), -plan.lane_m / 2, 0.0)
    corners, uv, material, colour, style = mesh.columns()
    elevation, azimuth = rng.uniform(0.45, 1.05), rng.uniform(0, 2 * np.pi)
    sun = np.array([np.cos(elevation) * np.cos(azimuth), np.cos(elevation) * np.sin(azimuth), np.sin(elevation)])
    haze_m, cloud = rng.uniform(250, 700), rng.uniform(0.1, 0.9)
    return Street(plan.path.bend(corners), uv, material, colour, style, sun, haze_m, cloud)


def _pick(rng: np.random.Generator, colours: tuple[tuple[float, float, float], ...]) -> np.ndarray:
    picked: np.ndarray = np.array(colours[rng.integers(len(colours))]) * rng.uniform(0.8, 1.2)
    return picked


def _ground(mesh: Mesh, half_road: float, lane: float, walk: float) -> None:
    along = np.arange(-60.0, LENGTH_M + 61.0, 3.0)

    def strip(left0: float, left1: float, up0: float, up1: float, surface: Surface) -> None:
        near = [np.broadcast_arrays(along, left, up) for left, up in ((left0, up0), (left1, up1))]
        a, b = (np.stack(points, axis=-1) for points in near)
        corners = np.stack([a[:-1], a[1:], b[1:], b[:-1]], axis=1)
        mesh.quads(corners, surface, corners[..., :2])

    strip(-half_road, half_road, 0.0, 0.0, Surface(Material.ROAD, (0.10, 0.10, 0.105), (lane,)))
    kerb, slabs = Surface(Material.PLAIN, (0.36, 0.35, 0.33)), Surface(Material.PAVING, (0.30, 0.29, 0.27))
    for side in (-1.0, 1.0):
        edge, wall = side * half_road, side * (half_road + walk)
        strip(edge, edge, 0.0, _KERB_M, kerb)
        strip(edge, edge + side * 0.18, _KERB_M, _KERB_M, kerb)
        strip(edge + side * 0.18, wall, _KERB_M, _KERB_M, slabs)
        strip(wall, wall + side * 22, _KERB_M, _KERB_M, Surface(Material.GRASS, (0.10, 0.14, 0.05)))
    far = np.array([[[-90.0, -900, -0.1], [390, -900, -0.1], [390, 900, -0.1], [-90, 900, -0.1]]])
    mesh.quads(far, Surface(Material.GRASS, (0.12, 0.14, 0.07)))


def _frontage(mesh: Mesh, rng: np.random.Generator, side: float, wall: float, houses: bool) -> None:
    """Add buildings, gaps and front gardens of one side, and a row of blocks behind them."""
    along = -50.0
    while along < LENGTH_M + 50:
        width, depth = rng.uniform(8, 14 if houses else 22), rng.uniform(9, 13)
        if rng.uniform() < 0.12:
            for _ in range(3):
                _tree(mesh, rng, along + rng.uniform(1, 9), side * (wall + rng.uniform(2, 12)))
            along += 10
            continue
        garden = rng.uniform(2.5, 6.0) if houses else rng.choice([0.05, 0.05, 1.5, 3.0])
        _building(mesh, rng, (along + width / 2, side * (wall + garden + depth / 2)), (width, depth), side, houses)
        if garden > 1:
            hedge = Surface(Material.FOLIAGE, (0.05, 0.09, 0.03))
            stone = Surface(Material.PLAIN, rng.uniform(0.2, 0.5) * np.array((1, 0.9, 0.75)))
            fence = hedge if rng.uniform() < 0.5 else stone
            for x in (along + width / 4 - 0.4, along + 3 * width / 4 + 0.4):
                mesh.box((x, side * (wall + 0.3), _KERB_M), (width / 2 - 1.2, 0.4, 1.1), fence)
            if rng.uniform() < 0.4 and garden > 2:
                _tree(mesh, rng, along + rng.uniform(1, width - 1), side * (wall + garden / 2), 0.6)
        along += width + (rng.uniform(2, 5) if houses else rng.choice([0.0, 0.0, 1.5]))
    for along in np.arange(-50.0, LENGTH_M + 50, 24.0):
        _building(mesh, rng, (along, side * (wall + rng.uniform(32, 50))), (rng.uniform(14, 24), 12.0), side, False)


def _building(
    mesh: Mesh,
    rng: np.random.Generator,
    centre: tuple[float, float],
    size: tuple[float, float],
    side: float,
    house: bool,
) -> None:
    """Add a building of (along, left) `size` that faces the street, towards -side."""
    pitch, floor = rng.uniform(2.0, 3.6), rng.uniform(2.9, 3.5)
    # Shops on the ground floor are taller and glazed; flats and houses repeat one floor all the way up.
    ground = floor if house or rng.uniform() < 0.4 else rng.uniform(3.6, 4.3)
    width, high = pitch * rng.uniform(0.36, 0.62), rng.uniform(1.3, 1.9)
    style = Facade(pitch, floor, width, high, ground, float(rng.integers(1, 1000)), rng.uniform(0.3, 0.8))
    wall, floors = _pick(rng, _WALLS), int(rng.integers(1, 3) if house else rng.integers(2, 7))
    base, top = _KERB_M - 0.02, _KERB_M + ground + (floors - 1) * floor + 0.5
    x, y = size[0] / 2, size[1] / 2
    mesh.box((*centre, base), (2 * x, 2 * y, top - base), Surface(Material.FACADE, wall, style))
    if house or rng.uniform() < 0.4:
        eaves = -x - 0.4, x + 0.4, -y - 0.4, y + 0.4, 0.0
        ridge = -x - 0.2, x + 0.2, -0.1, 0.1, rng.uniform(1.8, 3.5)
        mesh.block((*centre, top), eaves, ridge, Surface(Material.ROOF, _pick(rng, _ROOFS)))
    else:
        mesh.box((*centre, top), (2 * x + 0.4, 2 * y + 0.4, 0.5), Surface(Material.PLAIN, wall * 0.8))
    front = centre[1] - side * y
    if ground > floor and rng.uniform() < 0.6:
        awning = Surface(Material.PLAIN, _pick(rng, _SIGNS) * 0.6)
        mesh.box((centre[0], front - side * 0.5, base + ground - 0.9), (1.6 * x, 1.0, 0.12), awning)
    if rng.uniform() < 0.5:
        for up in base + ground + floor * np.arange(floors - 1):
            for along in centre[0] + np.arange(-x + pitch, x - 1.0, 2 * pitch):
                mesh.box((along, front - side * 0.5, up), (2.0, 1.0, 0.15), Surface(Material.PLAIN, wall * 0.7))
                mesh.box((along, front - side * 0.97, up + 0.15), (2.0, 0.05, 0.9), Surface(Material.PLAIN, wall * 0.5))


def _tree(mesh: Mesh, rng: np.random.Generator, along: float, left: float, scale: float = 1.0) -> None:
    bark, green = Surface(Material.BARK, (0.12, 0.09, 0.065)), np.array([0.06, 0.115, 0.03]) * rng.uniform(0.7, 1.4, 3)
    radius = rng.uniform(1.4, 2.4) * scale
    top = np.array([along, left, _KERB_M + rng.uniform(2.2, 3.4) * scale])
    mesh.tube((along, left, 0.0), top, (0.17 * scale, 0.12 * scale), bark)
    crown = top + np.array([0, 0, radius * 0.9])
    for _ in range(4):
        mesh.tube(top - np.array([0, 0, 0.2]), crown + rng.normal(0, 0.35, 3) * radius, (0.07 * scale, 0.03), bark, 5)
    for _ in range(9):
        offset = rng.standard_normal(3)
        offset *= radius * rng.uniform(0.3, 0.75) / np.linalg.norm(offset)
        mesh.leaves(crown + offset, radius * rng.uniform(0.35, 0.6), green, rng)


def _furniture(mesh: Mesh, rng: np.random.Generator, side: float, half_road: float, walk: float) -> None:
    """Add lamps, trees, signs, boxes and people between kerb and wall."""
    edge, grey = side * (half_road + 0.6), Surface(Material.PLAIN, (0.17, 0.18, 0.18))
    for along in np.arange(-20.0 + rng.uniform(0, 20), LENGTH_M, rng.uniform(20, 32)):
        mesh.tube((along, edge, 0), (along, edge, 7.0), (0.09, 0.06), grey)
        mesh.tube((along, edge, 7.0), (along, edge - side * 1.6, 7.3), (0.05, 0.04), grey, 6)
        mesh.box((along, edge - side * 1.8, 7.22), (0.28, 0.7, 0.14), grey)
    trees = rng.uniform(0.2, 0.65)
    for along in np.arange(-30.0, LENGTH_M + 30, rng.uniform(7, 11)):
        kind = rng.uniform()
        if kind < trees:
            _tree(mesh, rng, along + rng.uniform(-1, 1), edge + side * 0.5)
        elif kind < trees + 0.12:
            mesh.tube((along, edge, 0), (along, edge, 2.9), (0.035, 0.035), grey, 6)
            mesh.box((along - 0.05, edge, 2.2), (0.03, 0.65, 0.65), Surface(Material.PLAIN, _pick(rng, _SIGNS)))
        elif kind < trees + 0.25:
            cabinet = Surface(Material.PLAIN, rng.uniform(0.08, 0.25) * np.array((0.9, 1.0, 0.95)))
            mesh.box((along, edge + side * 0.3, _KERB_M), (0.6, 0.5, rng.uniform(0.8, 1.3)), cabinet, rng.uniform(0, 3))
    for along in rng.uniform(0, LENGTH_M, int(rng.integers(6, 22))):
        _person(mesh, rng, along, side * (half_road + rng.uniform(1.2, walk - 0.4)))


def _person(mesh: Mesh, rng: np.random.Generator, along: float, left: float) -> None:
    trousers, coat = (rng.uniform(0.02, 0.25) * rng.uniform(0.7, 1.3, 3) for _ in range(2))
    skin = np.array([0.5, 0.32, 0.24]) * rng.uniform(0.4, 1.1)
    parts: list[tuple[Vector, Vector, tuple[float, float], np.ndarray]] = [
        ((0, 0, 0.8), (0, 0, 1.25), (0.17, 0.21), coat), ((0, 0, 1.25), (0, 0, 1.5), (0.21, 0.08), coat),
        ((0, 0, 1.48), (0, 0, 1.6), (0.06, 0.10), skin), ((0, 0, 1.6), (0, 0, 1.76), (0.11, 0.07), skin * 0.3),
    ]  # fmt: skip
    for swing, y in ((0.22, 0.09), (-0.2, -0.09)):
        parts.append(((swing, y, 0), (0, y, 0.85), (0.065, 0.10), trousers))
        parts.append(((-swing, 2.5 * y, 0.8), (0, 2.3 * y, 1.42), (0.045, 0.06), coat))
    facing, feet = rng.choice([-1.0, 1.0]), np.array([along, left, _KERB_M])
    turned = rng.uniform(0.92, 1.08) * np.array([facing, facing, 1.0])
    for start, end, radii, colour in parts:
        mesh.tube(feet + turned * start, feet + turned * end, radii, Surface(Material.PLAIN, colour))


def _car(mesh: Mesh, rng: np.random.Generator, along: float, left: float, yaw_rad: float) -> None:
    left, yaw_rad = left + rng.normal(0, 0.06), yaw_rad + rng.normal(0, 0.02)
    paint, glass = Surface(Material.PAINT, _pick(rng, _PAINTS)), Surface(Material.GLASS, (0.02, 0.024, 0.028))
    black, steel = Surface(Material.PLAIN, (0.015, 0.015, 0.017)), Surface(Material.PLAIN, (0.35, 0.35, 0.36))
    # Saloon, hatchback, sport utility, van: half length, belt height and roof height (m); then, in half lengths, where
    # the windscreen starts and ends and where the rear window ends and starts.
    half, belt, roof, nose, front, rear, tail = (
        (2.3, 0.92, 1.44, 0.55, 0.05, -0.5, -0.75), (2.0, 0.95, 1.48, 0.5, 0.05, -0.8, -0.98),
        (2.3, 1.08, 1.72, 0.5, 0.1, -0.85, -0.98), (2.6, 1.15, 2.1, 0.75, 0.45, -0.97, -0.99),
    )[int(rng.choice(4, p=[0.4, 0.32, 0.2, 0.08]))]  # fmt: skip
    w, nose, front, rear, tail = 0.92, half * nose, half * front, half * rear, half * tail
    layers = (
        (-half + 0.1, half - 0.15, w - 0.06, 0.2), (-half, half, w, 0.5),
        (-half + 0.05, half - 0.25, w - 0.05, belt - 0.12), (-half + 0.12, nose, w - 0.1, belt),
        (rear, front, w - 0.26, roof - 0.06), (rear + 0.1, front - 0.15, w - 0.35, roof),
    )  # fmt: skip
    rings = [(x0, x1, -y, y, z) for x0, x1, y, z in layers]
    rings.insert(4, (tail, nose, -w + 0.1, w - 0.1, belt))
    at = (along, left, 0.0)
    for low, high, skin in ((0, 1, paint), (1, 2, paint), (2, 3, paint), (4, 5, glass), (5, 6, paint)):
        mesh.block(at, rings[low], rings[high], skin, yaw_rad)
    c, s = np.cos(yaw_rad), np.sin(yaw_rad)

    def place(x: float, y: float, z: float) -> np.ndarray:
        return np.array([along + c * x - s * y, left + s * x + c * y, z])

    for y in (-1.0, 1.0):
        for x in (half * 0.62, -half * 0.62):
            mesh.tube(place(x, y * (w - 0.22), 0.32), place(x, y * (w + 0.01), 0.32), (0.32, 0.32), black, 14)
            mesh.tube(place(x, y * w, 0.32), place(x, y * (w + 0.02), 0.32), (0.2, 0.19), steel, 10)
        mirror = nose - 0.3
        mesh.tube(place(mirror, y * (w - 0.1), belt), place(mirror, y * (w + 0.1), belt), (0.09, 0.07), paint, 6)
        for foot, head in ((nose, front), (tail, rear), ((front + rear) / 2, (front + rear) / 2)):
            pillar = place(foot, y * (w - 0.1), belt), place(head, y * (w - 0.25), roof - 0.04)
            mesh.tube(*pillar, (0.05, 0.05), paint, 5)
        for x, z, lamp in ((half - 0.18, 0.66, (0.7, 0.7, 0.65)), (-half + 0.01, 0.72, (0.45, 0.02, 0.02))):
            mesh.box(place(x, y * (w - 0.28), z), (0.12, 0.32, 0.14), Surface(Material.PLAIN, lamp), yaw_rad)
    for x in (half, -half):
        mesh.box(place(x, 0.0, 0.42), (0.04, 0.52, 0.12), Surface(Material.PLAIN, (0.6, 0.6, 0.55)), yaw_rad)
        mesh.box(place(x * 0.99, 0.0, 0.25), (0.08, 1.5, 0.13), black, yaw_rad)
