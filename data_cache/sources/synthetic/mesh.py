"""Triangles with a surface: the shapes of which a procedural world is built."""

import functools
from enum import IntEnum
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

Vector = np.ndarray | tuple[float | int, ...]


class Material(IntEnum):
    """The material of a triangle; the renderer has one texture for each."""

    PLAIN, ROAD, PAVING, GRASS, FACADE, ROOF, BARK, FOLIAGE, PAINT, GLASS, STONES, TIMBER, LAMP = range(13)


class Surface(NamedTuple):
    """Material, linear RGB albedo (3,) or (F, 3), and up to seven numbers for the texture (`texture.py`)."""

    material: Material
    colour: Vector
    style: Vector = ()


class Mesh:
    """A collection of triangles; its columns are corners, uv (both in metres), material, colour, style."""

    def __init__(self) -> None:
        self._parts: list[tuple[np.ndarray, ...]] = []

    def columns(self) -> tuple[np.ndarray, ...]:
        """(F, 3, 3) corners, (F, 3, 2) uv, (F,) material, (F, 3) colour, (F, 7) style of all triangles so far."""
        return tuple(np.concatenate(column) for column in zip(*self._parts, strict=True))

    def merge(self, other: "Mesh", pose: Float[np.ndarray, "4 4"]) -> None:
        """Add the triangles of another mesh, moved by a pose."""
        self._parts += [(part[0] @ pose[:3, :3].T + pose[:3, 3], *part[1:]) for part in other._parts]

    def triangles(
        self, corners_m: Float[np.ndarray, "F 3 3"], surface: Surface, uv_m: np.ndarray | None = None
    ) -> None:
        """Add triangles; without uv the texture is projected from above."""
        count, style = len(corners_m), np.zeros(7)
        style[: len(surface.style)] = surface.style
        uv_m = corners_m[..., :2] + corners_m[..., 2:] if uv_m is None else uv_m
        colour = np.broadcast_to(np.asarray(surface.colour, dtype=float), (count, 3))
        material = np.full(count, int(surface.material))
        self._parts.append((corners_m, uv_m, material, colour, np.broadcast_to(style, (count, 7))))

    def quads(self, corners_m: Float[np.ndarray, "Q 4 3"], surface: Surface, uv_m: np.ndarray | None = None) -> None:
        """Add quadrilaterals; without uv the texture runs along the first side (u) and the last (v)."""
        if uv_m is None:
            width, height = (np.linalg.norm(corners_m[:, i] - corners_m[:, 0], axis=-1) for i in (1, 3))
            zero = np.zeros_like(width)
            uv_m = np.stack([zero, zero, width, zero, width, height, zero, height], axis=-1).reshape(-1, 4, 2)
        split = [0, 1, 2, 0, 2, 3]
        self.triangles(corners_m[:, split].reshape(-1, 3, 3), surface, uv_m[:, split].reshape(-1, 3, 2))

    def block(self, at_m: Vector, bottom: Vector, top: Vector, surface: Surface, yaw_rad: float = 0.0) -> None:
        """Add a block between two rectangles (x0, x1, y0, y1, z), rotated and moved to `at_m`; it has no underside."""
        corners = np.array([(r[i], r[j], r[4]) for r in (bottom, top) for i, j in ((0, 2), (1, 2), (1, 3), (0, 3))])
        c, s = np.cos(yaw_rad), np.sin(yaw_rad)
        corners = corners @ np.array([[c, s, 0], [-s, c, 0], [0, 0, 1]]) + np.asarray(at_m)
        self.quads(corners[[[1, 2, 6, 5], [0, 1, 5, 4], [3, 0, 4, 7], [2, 3, 7, 6], [4, 5, 6, 7]]], surface)

    def box(self, at_m: Vector, size_m: tuple[float, float, float], surface: Surface, yaw_rad: float = 0.0) -> None:
        """Add a box of `size_m` (x, y, z) that stands on `at_m`."""
        x, y, z = size_m[0] / 2, size_m[1] / 2, size_m[2]
        self.block(at_m, (-x, x, -y, y, 0.0), (-x, x, -y, y, z), surface, yaw_rad)

    def tube(
        self, start_m: Vector, end_m: Vector, radii_m: tuple[float, float], surface: Surface, sides: int = 8
    ) -> None:
        """Add a truncated cone between two points, closed at `end_m`."""
        a, b = np.asarray(start_m, dtype=float), np.asarray(end_m, dtype=float)
        axis = (b - a) / np.linalg.norm(b - a)
        across = np.cross(axis, (0.0, 0.0, 1.0) if abs(axis[2]) < 0.9 else (1.0, 0.0, 0.0))
        across /= np.linalg.norm(across)
        angle = np.linspace(0, 2 * np.pi, sides + 1)[:, None]
        ring = np.cos(angle) * across + np.sin(angle) * np.cross(axis, across)
        low, high = a + radii_m[0] * ring, b + radii_m[1] * ring
        self.quads(np.stack([low[:-1], low[1:], high[1:], high[:-1]], axis=1), surface)
        self.triangles(np.stack([high[:-1], high[1:], np.broadcast_to(b, (sides, 3))], axis=1), surface)

    def leaves(self, at_m: Vector, radius_m: float, colour: np.ndarray, rng: np.random.Generator) -> None:
        """Add a lumpy ball of foliage with single leaves standing off it."""
        vertices, faces = _sphere()
        lumps = vertices * (1 + 0.16 * rng.standard_normal((len(vertices), 1))) * radius_m + np.asarray(at_m)
        self.triangles(lumps[faces], Surface(Material.FOLIAGE, colour * rng.uniform(0.75, 1.25, (len(faces), 1))))
        leaf = lumps[:, None] + 0.17 * rng.standard_normal((len(vertices), 3, 3))
        self.triangles(leaf, Surface(Material.FOLIAGE, colour * rng.uniform(0.7, 1.5, (len(leaf), 1))))


@functools.cache
def _sphere() -> tuple[np.ndarray, np.ndarray]:
    # trimesh takes half a second to import, which only building a street should cost.
    from trimesh.creation import icosphere

    ball = icosphere(subdivisions=2)
    return np.asarray(ball.vertices), np.asarray(ball.faces)
