"""A procedural street: its geometry and materials, without light or sensors.

Everything is laid out in street coordinates (along, left, up) and finally bent along a gently curved centre line. World
axes are x forward, y left, z up, in metres. Traffic keeps to the right.
"""

import functools
from typing import NamedTuple

import numpy as np

from data_cache.sources.synthetic.mesh import Material, Mesh, Surface
from data_cache.sources.synthetic.objects import KERB_M, SIGNS, car, person, pick, tree
from data_cache.sources.synthetic.scene import LENGTH_M, Path, Plan, Scene, Weather

CLEAR_ALONG_M = (90.0, 180.0)
"""The stretch of the right lane without traffic, where the vehicle drives."""
_WALLS = (0.42, 0.22, 0.15), (0.52, 0.44, 0.33), (0.55, 0.52, 0.47), (0.33, 0.17, 0.12), (0.60, 0.50, 0.32), \
    (0.35, 0.36, 0.37), (0.46, 0.36, 0.27), (0.62, 0.59, 0.54), (0.30, 0.33, 0.36), (0.45, 0.28, 0.20)  # fmt: skip
_ROOFS = (0.20, 0.10, 0.08), (0.13, 0.13, 0.14), (0.25, 0.14, 0.09)


class Facade(NamedTuple):
    """The style of a facade: a grid of windows over a ground floor."""

    pitch_m: float
    floor_m: float
    window_width_m: float
    window_height_m: float
    ground_m: float
    seed: float
    trim: float


@functools.cache
def plan_street(seed: int) -> Plan:
    """Plan a street; cheap, and the same for the same seed."""
    rng = np.random.default_rng([seed, 0])
    return Plan(Path(rng.uniform(-0.3, 0.3), rng.uniform(0, 2 * np.pi)), rng.uniform(3.2, 3.8))


def build_street(seed: int) -> Scene:
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
                car(mesh, rng, along + rng.uniform(-0.4, 0.4), side * (half_road - 1.1), 0.0 if side < 0 else np.pi)
    along = rng.uniform(-20, 0)
    while along < LENGTH_M:
        car(mesh, rng, along, plan.lane_m / 2, np.pi)
        along += rng.uniform(14, 70)
    for span in ((60, CLEAR_ALONG_M[0]), (CLEAR_ALONG_M[1], 205), (215, 260)):
        car(mesh, rng, rng.uniform(*span), -plan.lane_m / 2, 0.0)
    corners, uv, material, colour, style = mesh.columns()
    elevation, azimuth = rng.uniform(0.45, 1.05), rng.uniform(0, 2 * np.pi)
    sun = np.array([np.cos(elevation) * np.cos(azimuth), np.cos(elevation) * np.sin(azimuth), np.sin(elevation)])
    haze_m, cloud = rng.uniform(250, 700), rng.uniform(0.1, 0.9)
    return Scene(plan.path.bend(corners), uv, material, colour, style, sun, haze_m, cloud, Weather(), np.empty((0, 3)))


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
        strip(edge, edge, 0.0, KERB_M, kerb)
        strip(edge, edge + side * 0.18, KERB_M, KERB_M, kerb)
        strip(edge + side * 0.18, wall, KERB_M, KERB_M, slabs)
        strip(wall, wall + side * 22, KERB_M, KERB_M, Surface(Material.GRASS, (0.10, 0.14, 0.05)))
    far = np.array([[[-90.0, -900, -0.1], [390, -900, -0.1], [390, 900, -0.1], [-90, 900, -0.1]]])
    mesh.quads(far, Surface(Material.GRASS, (0.12, 0.14, 0.07)))


def _frontage(mesh: Mesh, rng: np.random.Generator, side: float, wall: float, houses: bool) -> None:
    """Add buildings, gaps and front gardens of one side, and a row of blocks behind them."""
    along = -50.0
    while along < LENGTH_M + 50:
        width, depth = rng.uniform(8, 14 if houses else 22), rng.uniform(9, 13)
        if rng.uniform() < 0.12:
            for _ in range(3):
                tree(mesh, rng, along + rng.uniform(1, 9), side * (wall + rng.uniform(2, 12)))
            along += 10
            continue
        garden = rng.uniform(2.5, 6.0) if houses else rng.choice([0.05, 0.05, 1.5, 3.0])
        _building(mesh, rng, (along + width / 2, side * (wall + garden + depth / 2)), (width, depth), side, houses)
        if garden > 1:
            hedge = Surface(Material.FOLIAGE, (0.05, 0.09, 0.03))
            stone = Surface(Material.PLAIN, rng.uniform(0.2, 0.5) * np.array((1, 0.9, 0.75)))
            fence = hedge if rng.uniform() < 0.5 else stone
            for x in (along + width / 4 - 0.4, along + 3 * width / 4 + 0.4):
                mesh.box((x, side * (wall + 0.3), KERB_M), (width / 2 - 1.2, 0.4, 1.1), fence)
            if rng.uniform() < 0.4 and garden > 2:
                tree(mesh, rng, along + rng.uniform(1, width - 1), side * (wall + garden / 2), 0.6)
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
    wall, floors = pick(rng, _WALLS), int(rng.integers(1, 3) if house else rng.integers(2, 7))
    base, top = KERB_M - 0.02, KERB_M + ground + (floors - 1) * floor + 0.5
    x, y = size[0] / 2, size[1] / 2
    mesh.box((*centre, base), (2 * x, 2 * y, top - base), Surface(Material.FACADE, wall, style))
    if house or rng.uniform() < 0.4:
        eaves = -x - 0.4, x + 0.4, -y - 0.4, y + 0.4, 0.0
        ridge = -x - 0.2, x + 0.2, -0.1, 0.1, rng.uniform(1.8, 3.5)
        mesh.block((*centre, top), eaves, ridge, Surface(Material.ROOF, pick(rng, _ROOFS)))
    else:
        mesh.box((*centre, top), (2 * x + 0.4, 2 * y + 0.4, 0.5), Surface(Material.PLAIN, wall * 0.8))
    front = centre[1] - side * y
    if ground > floor and rng.uniform() < 0.6:
        awning = Surface(Material.PLAIN, pick(rng, SIGNS) * 0.6)
        mesh.box((centre[0], front - side * 0.5, base + ground - 0.9), (1.6 * x, 1.0, 0.12), awning)
    if rng.uniform() < 0.5:
        for up in base + ground + floor * np.arange(floors - 1):
            for along in centre[0] + np.arange(-x + pitch, x - 1.0, 2 * pitch):
                mesh.box((along, front - side * 0.5, up), (2.0, 1.0, 0.15), Surface(Material.PLAIN, wall * 0.7))
                mesh.box((along, front - side * 0.97, up + 0.15), (2.0, 0.05, 0.9), Surface(Material.PLAIN, wall * 0.5))


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
            tree(mesh, rng, along + rng.uniform(-1, 1), edge + side * 0.5)
        elif kind < trees + 0.12:
            mesh.tube((along, edge, 0), (along, edge, 2.9), (0.035, 0.035), grey, 6)
            mesh.box((along - 0.05, edge, 2.2), (0.03, 0.65, 0.65), Surface(Material.PLAIN, pick(rng, SIGNS)))
        elif kind < trees + 0.25:
            cabinet = Surface(Material.PLAIN, rng.uniform(0.08, 0.25) * np.array((0.9, 1.0, 0.95)))
            mesh.box((along, edge + side * 0.3, KERB_M), (0.6, 0.5, rng.uniform(0.8, 1.3)), cabinet, rng.uniform(0, 3))
    for along in rng.uniform(0, LENGTH_M, int(rng.integers(6, 22))):
        person(mesh, rng, along, side * (half_road + rng.uniform(1.2, walk - 0.4)))
