"""What an old town is built of: houses, a church, a fountain, stalls. Each is a mesh of its own at the origin.

In its coordinates x runs along the street, y away from it, z up; the front stands at y = 0 and looks towards -y.
"""

import numpy as np

from data_cache.sources.synthetic.mesh import Material, Mesh, Surface
from data_cache.sources.synthetic.objects import SIGNS, pick
from data_cache.sources.synthetic.scene import turned

_PLASTER = (0.62, 0.55, 0.42), (0.66, 0.60, 0.50), (0.58, 0.40, 0.30), (0.50, 0.55, 0.52), (0.64, 0.52, 0.30), \
    (0.55, 0.47, 0.45), (0.68, 0.66, 0.60)  # fmt: skip
_STONE = (0.40, 0.36, 0.29), (0.34, 0.33, 0.32), (0.46, 0.38, 0.30)
_BRICK = (0.33, 0.14, 0.09), (0.28, 0.15, 0.11)
_TILES = (0.32, 0.13, 0.07), (0.26, 0.12, 0.08), (0.16, 0.15, 0.16), (0.35, 0.18, 0.10)
_SHUTTERS = (0.05, 0.14, 0.08), (0.06, 0.10, 0.20), (0.18, 0.09, 0.05), (0.45, 0.45, 0.42), (0.25, 0.05, 0.05)
_WARM = np.array([1.7, 1.1, 0.5])
_ASHLAR_STYLE, _BRICK_STYLE, _TILE_STYLE = (0.7, 0.32, 0.025, 0.2), (0.24, 0.075, 0.012, 0.3), (0.22, 0.3, 0.03, 0.25)


def house(rng: np.random.Generator, width_m: float, depth_m: float, lit: bool) -> Mesh:
    """A house of two to four floors; `lit` at night."""
    mesh, floors, floor = Mesh(), int(rng.integers(2, 5)), rng.uniform(2.5, 3.1)
    height, kind, wall = floors * floor, rng.uniform(), pick(rng, _PLASTER)
    plaster = Surface(Material.PLAIN, wall)
    skin = plaster
    if kind < 0.3:
        skin = Surface(Material.TIMBER, wall * 1.05, (rng.uniform(0.9, 1.5), floor))
    elif kind < 0.45:
        skin = Surface(Material.STONES, pick(rng, _STONE), _ASHLAR_STYLE)
    elif kind < 0.6:
        skin = Surface(Material.STONES, pick(rng, _BRICK), _BRICK_STYLE)
    mesh.box((0, depth_m / 2, -floor), (width_m, depth_m, height + floor), skin)
    ornament = Surface(Material.PLAIN, rng.uniform(0.2, 0.5) * np.array((1, 0.95, 0.85)))
    mesh.box((0, 0.0, -1.0), (width_m, 0.06, 1.4), ornament)
    for storey in range(1, floors):
        if kind >= 0.3 and rng.uniform() < 0.6:
            mesh.box((0, -0.06, storey * floor - 0.1), (width_m, 0.12, 0.14), ornament)
    gable, rise = rng.uniform() < 0.5, rng.uniform(0.32, 0.6) * min(width_m, depth_m)
    _roof(mesh, (width_m, depth_m), height, rise, pick(rng, _TILES), skin, gable)
    chimney = Surface(Material.STONES, _BRICK[1], _BRICK_STYLE)
    mesh.box((width_m * 0.25, depth_m * 0.4, height), (0.7, 0.6, rise + 0.7), chimney)
    shutters = Surface(Material.PLAIN, pick(rng, _SHUTTERS)) if rng.uniform() < 0.65 else None
    shop = rng.uniform() < 0.35
    mesh.merge(_front(rng, width_m, floors, floor, shutters, shop, lit), np.eye(4))
    for side in (-1.0, 1.0):
        pose = turned(side * np.pi / 2, 0.0)
        pose[:3, 3] = side * width_m / 2, depth_m / 2, 0
        mesh.merge(_front(rng, depth_m, floors, floor, shutters, False, lit), pose)
    return mesh


def _roof(
    mesh: Mesh, size: tuple[float, float], height: float, rise: float, colour: np.ndarray, wall: Surface, gable: bool
) -> None:
    """Add a saddle roof; with `gable` its ridge runs away from the street."""
    a, b = (size[0] / 2, size[1] / 2) if gable else (size[1] / 2, size[0] / 2)
    out, tiles = 0.35, Surface(Material.STONES, colour, _TILE_STYLE)

    def at(across: float, along: float, up: float) -> tuple[float, float, float]:
        x, y = (across, along) if gable else (along, across)
        return x, y + size[1] / 2, up

    eaves, ridge = height - out * rise / a, height + rise
    for s in (-1.0, 1.0):
        slope = at(s * (a + out), -b - out, eaves), at(s * (a + out), b + out, eaves), at(0.0, b + out, ridge)
        mesh.quads(np.array([[*slope, at(0.0, -b - out, ridge)]]), tiles)
        corners = np.array([[at(-a, s * b, height), at(a, s * b, height), at(0.0, s * b, ridge)]])
        mesh.triangles(corners, wall, np.array([[(0, height), (2 * a, height), (a, ridge)]]))


def _front(
    rng: np.random.Generator,
    width: float,
    floors: int,
    floor: float,
    shutters: Surface | None,
    shop: bool,
    lit: bool,
) -> Mesh:
    """Windows, a door, a shop; they stand out from a wall at y = 0."""
    mesh, count = Mesh(), max(1, int(width / rng.uniform(1.8, 2.6)))
    pitch, door = width / count, int(rng.integers(count))
    half, high = min(pitch * rng.uniform(0.2, 0.27), 0.65), rng.uniform(1.1, 1.6)
    frame = Surface(Material.PLAIN, rng.uniform(0.35, 0.75) * np.ones(3))
    frames, panes, closed = [], [], []
    for storey in range(1 if shop else 0, floors):
        for column in range(count):
            x, z = (column + 0.5) * pitch - width / 2, storey * floor + 0.85
            if storey == 0 and column == door:
                mesh.quads(_upright(x, 0.65, -0.3, 2.25, 0.09), Surface(Material.PLAIN, pick(rng, _STONE)))
                mesh.quads(_upright(x, 0.5, -0.3, 2.1, 0.1), Surface(Material.PLAIN, pick(rng, _SHUTTERS)))
                continue
            frames += [
                _upright(x, half + 0.1, z - 0.1, high + 0.2, 0.05), _upright(x, 0.03, z, high, 0.07),
                _upright(x, half, z + 0.65 * high, 0.05, 0.07), _upright(x, half + 0.15, z - 0.16, 0.07, 0.18),
                _upright(x, half + 0.15, z - 0.09, 0.0, 0.18) - [[0, 0, 0], [0, 0, 0], [0, -0.18, 0], [0, -0.18, 0]],
            ]  # fmt: skip
            panes.append(_upright(x, half, z, high, 0.06))
            closed += [_upright(x + side * half, half * 0.48, z, high, 0.08) for side in (-1.5, 1.5)]
    if shop:
        sign, reach = Surface(Material.PLAIN, pick(rng, SIGNS) * 0.7), 0.42 * width
        frames.append(_upright(0.0, 0.44 * width, 0.45, floor - 1.1, 0.06))
        columns = (np.arange(count) + 0.5) * pitch * 0.86 - 0.43 * width
        panes += [_upright(x, 0.4 * pitch, 0.5, floor - 1.2, 0.08) for x in columns]
        mesh.quads(_upright(0.0, reach, floor - 0.55, 0.42, 0.1), sign)
        if rng.uniform() < 0.6:
            mesh.block((0, -0.65, floor - 1.0), (-reach, reach, -0.65, 0.6, 0.0), (-reach, reach, 0.5, 0.6, 0.4), sign)
    mesh.quads(np.concatenate(frames), frame)
    if shutters is not None:
        mesh.quads(np.concatenate(closed), shutters)
    bright = (rng.uniform(size=len(panes)) < 0.35) & lit
    glass = np.concatenate(panes)
    mesh.quads(glass[~bright], Surface(Material.GLASS, (0.02, 0.024, 0.028)))
    strength = np.repeat(rng.uniform(0.3, 1.0, bright.sum()), 2)  # of both triangles of a pane
    mesh.quads(glass[bright], Surface(Material.LAMP, strength[:, None] * _WARM))
    return mesh


def _upright(x: float, half: float, z: float, high: float, out: float) -> np.ndarray:
    """A rectangle (1, 4, 3) that stands out from the wall, centred at x, from z upwards."""
    corners = [(x - half, -out, z), (x + half, -out, z), (x + half, -out, z + high), (x - half, -out, z + high)]
    return np.array([corners])


def church(rng: np.random.Generator) -> Mesh:
    """A church whose tower faces the street."""
    mesh, stone = Mesh(), Surface(Material.STONES, pick(rng, _STONE), _ASHLAR_STYLE)
    tower, spire = rng.uniform(15, 22), rng.uniform(5, 11)
    mesh.box((0, 3.0, -1), (6.0, 6.0, tower + 1), stone)
    copper = Surface(Material.PLAIN, (0.16, 0.30, 0.25))
    mesh.block((0, 3.0, tower), (-3.3, 3.3, -3.3, 3.3, 0.0), (-0.1, 0.1, -0.1, 0.1, spire), copper)
    mesh.box((0, 15.0, -1), (12.0, 18.0, 9.0), stone)
    nave = Mesh()
    _roof(nave, (12.0, 18.0), 8.0, 5.0, pick(rng, _TILES), stone, True)
    pose = np.eye(4)
    pose[1, 3] = 6.0
    mesh.merge(nave, pose)
    dark = Surface(Material.GLASS, (0.02, 0.02, 0.025))
    for z, high, half in ((0.0, 3.2, 0.9), (6.0, 2.4, 0.5), (tower - 4, 2.6, 0.7)):
        mesh.quads(_upright(0.0, half + 0.2, z, high + 0.2, 0.04), Surface(Material.PLAIN, (0.5, 0.47, 0.4)))
        mesh.quads(_upright(0.0, half, z, high, 0.06), dark)
    return mesh


def fountain(rng: np.random.Generator) -> Mesh:
    """A round basin with a column."""
    mesh, stone = Mesh(), Surface(Material.PLAIN, pick(rng, _STONE))
    mesh.tube((0, 0, -0.3), (0, 0, 0.65), (2.3, 2.2), stone, 20)
    mesh.tube((0, 0, 0.65), (0, 0, 0.67), (1.95, 1.95), Surface(Material.GLASS, (0.03, 0.06, 0.06)), 20)
    mesh.tube((0, 0, 0.6), (0, 0, 2.4), (0.35, 0.22), stone, 10)
    mesh.tube((0, 0, 1.7), (0, 0, 1.95), (0.3, 0.9), stone, 14)
    mesh.tube((0, 0, 2.4), (0, 0, 2.9), (0.3, 0.05), stone, 10)
    return mesh


def stall(rng: np.random.Generator) -> Mesh:
    """A market stall under an awning."""
    mesh, wood = Mesh(), Surface(Material.PLAIN, (0.22, 0.14, 0.08))
    for x in (-1.4, 1.4):
        for y in (-0.9, 0.9):
            mesh.tube((x, y, -0.2), (x, y, 2.2), (0.04, 0.04), wood, 5)
    mesh.box((0, -0.5, -0.1), (2.8, 0.7, 1.0), wood)
    for x in np.arange(-1.2, 1.3, 0.4):
        mesh.box((x, -0.5, 0.9), (0.34, 0.5, rng.uniform(0.1, 0.3)), Surface(Material.PLAIN, rng.uniform(0.05, 0.6, 3)))
    cloth = pick(rng, SIGNS)
    for i in range(8):
        x = -1.6 + 0.4 * i
        stripe = Surface(Material.PLAIN, cloth if i % 2 else np.full(3, 0.6))
        mesh.block((x, 0, 2.15), (0, 0.4, -1.2, 1.2, 0.0), (0, 0.4, -0.05, 0.05, 0.6), stripe)
    return mesh


def lorry(rng: np.random.Generator) -> Mesh:
    """A lorry that drives towards +x."""
    mesh, cab = Mesh(), Surface(Material.PAINT, pick(rng, (*_SHUTTERS, (0.5, 0.5, 0.5))))
    box = Surface(Material.PLAIN, rng.uniform(0.3, 0.65) * np.ones(3))
    black = Surface(Material.PLAIN, (0.015, 0.015, 0.017))
    mesh.box((-0.8, 0, 0.9), (4.6, 2.2, 2.3), box)
    mesh.box((-0.8, 0, 1.6), (4.62, 2.22, 0.7), Surface(Material.PLAIN, pick(rng, SIGNS)))
    mesh.box((2.5, 0, 0.5), (1.6, 2.0, 1.0), cab)
    glass = Surface(Material.GLASS, (0.02, 0.024, 0.028))
    mesh.block((2.5, 0, 1.5), (-0.8, 0.8, -1.0, 1.0, 0.0), (-0.8, 0.4, -0.9, 0.9, 0.85), glass)
    mesh.box((2.3, 0, 2.35), (1.2, 1.8, 0.08), cab)
    mesh.box((0, 0, 0.55), (6.2, 1.0, 0.35), black)
    for x in (-2.2, 2.3):
        for y in (-1.0, 0.75):
            mesh.tube((x, y, 0.42), (x, y + 0.25, 0.42), (0.42, 0.42), black, 14)
    return mesh
