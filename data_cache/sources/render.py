"""Rays against a street: what a camera and a LiDAR measure there. Nothing about which street or which rig."""

import functools
from dataclasses import dataclass

import numpy as np
from embreex.mesh_construction import TriangleMesh
from embreex.rtcore_scene import EmbreeScene
from jaxtyping import Float, UInt8

from data_cache.rig import Camera
from data_cache.sources.street import Material, Street

_EXPOSURE = 0.62
_NOISE = 0.008
_OCCLUSION_M = 1.5
_TILE = 512
_TEXEL_M = 0.02


@dataclass(frozen=True, eq=False)
class Rendering:
    """One image and the depth behind each of its pixel centres.

    Attributes:
        rgb: (H, W, 3) image.
        depth_m: (H, W) z in metres, 0 for sky.
    """

    rgb: UInt8[np.ndarray, "H W 3"]
    depth_m: Float[np.ndarray, "H W"]


class Tracer:
    """A street ready to be hit by rays."""

    def __init__(self, street: Street) -> None:
        corners = street.corners_m.astype(np.float32)
        self.street = street
        self._scene = EmbreeScene()
        self._mesh = TriangleMesh(
            self._scene, corners.reshape(-1, 3), np.arange(3 * len(corners), dtype=np.int32).reshape(-1, 3)
        )
        normal = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
        self._normal = normal / np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-9)
        self._uv_m = street.uv_m.astype(np.float32)
        self._colour = street.colour.astype(np.float32)
        self._style = street.style.astype(np.float32)
        self._sun = street.sun.astype(np.float32)

    def distances(
        self, origin_m: Float[np.ndarray, " 3"], directions: Float[np.ndarray, "N 3"]
    ) -> Float[np.ndarray, " N"]:
        """Distance to the first surface along unit rays, metres; inf where there is none."""
        hit = self._cast(origin_m, directions.astype(np.float32))
        return np.where(hit["primID"] >= 0, hit["tfar"], np.inf).astype(np.float64)

    def render(
        self, camera: Camera, world_from_cam: Float[np.ndarray, "4 4"], rng: np.random.Generator
    ) -> Rendering:
        """Image and depth of a pinhole camera; `rng` draws the sensor noise."""
        height, width = camera.height_px, camera.width_px
        v, u = np.mgrid[0:height, 0:width].astype(np.float32) + np.float32(0.5)
        K = camera.K_px.astype(np.float32)
        rays = np.stack([(u - K[0, 2]) / K[0, 0], (v - K[1, 2]) / K[1, 1], np.ones_like(u)], axis=-1).reshape(-1, 3)
        origin, rotation = (part.astype(np.float32) for part in (world_from_cam[:3, 3], world_from_cam[:3, :3]))
        rays = rays @ rotation.T
        hit = self._cast(origin, rays)
        half = np.arange(height * width).reshape(height, width)[::2, ::2]
        openness = self._openness(origin, rays, hit, half).repeat(2, axis=0).repeat(2, axis=1)[:height, :width]
        light = self._shade(origin, rays, hit, openness.ravel(), 1.0 / float(K[0, 0]))
        image = _soften(light.reshape(height, width, 3)) * np.float32(_EXPOSURE)
        # A filmic curve: deep shadows, soft highlights (Narkowicz's fit of the ACES tone mapping curve), then gamma 2.
        image = np.sqrt(image * (2.51 * image + 0.03) / (image * (2.43 * image + 0.59) + 0.14))
        image += np.float32(_NOISE) * rng.standard_normal(image.shape, dtype=np.float32)
        depth = np.where(hit["primID"] >= 0, hit["tfar"], 0).astype(np.float32).reshape(height, width)
        return Rendering((np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8), depth)

    def _cast(self, origin_m: np.ndarray, rays: np.ndarray) -> dict[str, np.ndarray]:
        origins = np.broadcast_to(origin_m.astype(np.float32), rays.shape)
        hit: dict[str, np.ndarray] = self._scene.run(np.ascontiguousarray(origins), rays, output=True)
        return hit

    def _openness(
        self, origin_m: np.ndarray, rays: np.ndarray, hit: dict[str, np.ndarray], half: np.ndarray
    ) -> np.ndarray:
        """Ambient occlusion (h, w) at the rays numbered `half`: 1 in the open, towards 0 in corners and under cars.

        Each ray probes one of 16 directions around its normal, laid out in 4 x 4 tiles; neighbours at the same depth
        are then averaged.
        """
        face, depth = hit["primID"][half], hit["tfar"][half]
        normal = self._normal[face]
        away = np.einsum("hwc,hwc->hw", normal, rays[half]) > 0
        normal = np.where(away[..., None], -normal, normal)
        row, column = np.indices(half.shape)
        # Normal + uniform direction on the sphere is cosine distributed about the normal (Malley's method).
        probe = normal * np.float32(1.02) + _SPHERE[(row % 4) * 4 + column % 4]
        probe /= np.linalg.norm(probe, axis=-1, keepdims=True)
        start = origin_m + depth[..., None] * rays[half] + np.float32(0.02) * normal
        start[face < 0] = (0, 0, 1e4)
        reach = self._scene.run(start.reshape(-1, 3), probe.reshape(-1, 3), query="DISTANCE").reshape(half.shape)
        free = 1 - np.exp(-np.minimum(reach, 100) / np.float32(_OCCLUSION_M))
        total, weight = np.zeros_like(free), np.zeros_like(free)
        for down in range(-2, 2):
            for right in range(-2, 2):
                other = np.roll(depth, (down, right), axis=(0, 1))
                alike = np.abs(other - depth) < 0.06 * depth
                total += alike * np.roll(free, (down, right), axis=(0, 1))
                weight += alike
        mean: np.ndarray = total / np.maximum(weight, 1)
        return mean

    def _shade(
        self, origin_m: np.ndarray, rays: np.ndarray, hit: dict[str, np.ndarray], openness: np.ndarray, pixel_rad: float
    ) -> np.ndarray:
        """Linear RGB (N, 3) of rays with their hits."""
        length = np.linalg.norm(rays, axis=1)
        unit = rays / length[:, None]
        on = np.flatnonzero(hit["primID"] >= 0)
        off = np.flatnonzero(hit["primID"] < 0)
        light = np.empty_like(rays)
        light[off] = self._sky(unit[off])
        face, depth, ray = hit["primID"][on], hit["tfar"][on], unit[on]
        distance = depth * length[on]
        point = origin_m + depth[:, None] * rays[on]
        normal = self._normal[face]
        cosine = np.einsum("nc,nc->n", normal, ray)
        normal = np.where(cosine[:, None] > 0, -normal, normal)
        cosine = np.abs(cosine)
        b, c = hit["u"][on, None], hit["v"][on, None]
        corners = self._uv_m[face]
        uv = (1 - b - c) * corners[:, 0] + b * corners[:, 1] + c * corners[:, 2]
        footprint = distance * np.float32(pixel_rad) / np.sqrt(np.maximum(cosine, 0.05))
        albedo, mirror = self._surface(face, point, uv, footprint, normal)
        sunny = np.einsum("nc,c->n", normal, self._sun)
        lit = sunny > 0
        lit[lit] = self._sees_sun(point[lit] + 0.02 * normal[lit])
        foliage = self.street.material[face] == Material.FOLIAGE
        sunny = np.where(foliage, 0.45 + 0.55 * sunny, sunny)
        direct = (lit * np.maximum(sunny, 0))[:, None] * np.array([2.3, 2.1, 1.75], np.float32)
        # Surfaces that look up see the blue sky, others the warmer street.
        up = (0.5 + 0.5 * normal[:, 2:])
        ambient = up * np.array([0.62, 0.72, 0.9], np.float32) + (1 - up) * np.array([0.34, 0.31, 0.28], np.float32)
        ambient *= openness[on, None]
        radiance = albedo * (direct + ambient)
        shiny = np.flatnonzero(mirror > 0)
        bounce = ray[shiny] - 2 * np.einsum("nc,nc->n", ray[shiny], normal[shiny])[:, None] * normal[shiny]
        fresnel = mirror[shiny] * (0.06 + 0.94 * (1 - cosine[shiny]) ** 5)
        # Low reflections show the other side of the street, not traced, a dull grey.
        above = np.clip((bounce[:, 2:] - 0.15) * 3, 0, 1)
        seen = above * self._sky(bounce) + (1 - above) * np.float32(0.16)
        radiance[shiny] = radiance[shiny] * (1 - fresnel[:, None]) + fresnel[:, None] * seen
        haze = (1 - np.exp(-distance / np.float32(self.street.haze_m)))[:, None]
        light[on] = radiance * (1 - haze) + haze * np.array([0.75, 0.82, 0.9], np.float32)
        return light

    def _sees_sun(self, points_m: np.ndarray) -> np.ndarray:
        towards = np.ascontiguousarray(np.broadcast_to(self._sun, points_m.shape))
        blocked: np.ndarray = self._scene.run(np.ascontiguousarray(points_m), towards, query="OCCLUDED")
        return blocked < 0

    def _sky(self, ray: np.ndarray) -> np.ndarray:
        up = np.maximum(ray[:, 2:], 0)
        blue = np.array([0.25, 0.45, 0.95], np.float32) + np.array([0.65, 0.55, 0.15], np.float32) * (1 - up) ** 5
        plane = ray[:, :2] / (up + 0.12)
        cloud = _noise(plane * np.float32(2.5), np.full(len(ray), _TEXEL_M, np.float32), smooth=True)
        cover = np.clip((cloud + 2.4 * self.street.cloud - 1.4) * 0.8, 0, 1)[:, None]
        glow = np.maximum(ray @ self._sun, 0)[:, None] ** 24
        return blue * (1 - cover) + cover * np.float32(1.15) + glow * np.array([0.8, 0.7, 0.5], np.float32)

    def _surface(
        self, face: np.ndarray, point: np.ndarray, uv: np.ndarray, footprint: np.ndarray, normal: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Albedo (N, 3) and mirror strength (N,) of surface points."""
        albedo = self._colour[face].copy()
        material = self.street.material[face]
        mirror = np.zeros(len(face), np.float32)
        grain = np.array([0.12, 0.35, 0.25, 0.55, 0.1, 0.25, 0.5, 0.5, 0.0, 0.0, 0.0], np.float32)[material]
        scale = np.array([1, 1, 1, 2.0, 1, 1, 2, 0.7, 1, 1, 1], np.float32)[material]
        place = np.where((normal[:, 2:] > 0.9), point[:, :2], uv)
        foliage = material == Material.FOLIAGE
        place[foliage] = point[foliage][:, :2] + point[foliage][:, 2:] * np.float32(0.7)
        texture = 0.6 * _noise(place / scale[:, None], footprint / scale) + 0.4 * _noise(place / 9, footprint / 9)
        tone = np.maximum(1 + grain * texture, 0.15)
        albedo *= tone[:, None]
        mirror[(material == Material.PAINT)] = 0.9
        mirror[(material == Material.GLASS)] = 1.6
        for kind, paint in ((Material.ROAD, self._road), (Material.PAVING, self._paving), (Material.FACADE, self._facade)):
            rows = np.flatnonzero(material == kind)
            albedo[rows], mirror[rows] = paint(albedo[rows], uv[rows], footprint[rows], self._style[face[rows]], normal[rows])
        return albedo, mirror

    def _road(
        self, albedo: np.ndarray, uv: np.ndarray, footprint: np.ndarray, style: np.ndarray, normal: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        along, left, lane = uv[:, 0], uv[:, 1], style[:, 1]
        dash = _stripes(along, 9.0, 3.0, footprint * 2)
        line = _band(left, 0.06, footprint) * dash + _band(np.abs(left) - lane - 0.05, 0.06, footprint)
        worn = 0.75 + 0.25 * _noise(uv * 2, footprint * 2)
        line = (np.clip(line, 0, 1) * worn)[:, None]
        # Tyres polish two dark tracks in each lane.
        track = _band(np.abs(np.abs(left) - lane / 2) - 0.8, 0.3, footprint + 0.3)
        albedo = albedo * (1 - 0.15 * track)[:, None] * (1 - line) + line * np.float32(0.62)
        return albedo, np.full(len(uv), 0.12, np.float32)

    def _paving(
        self, albedo: np.ndarray, uv: np.ndarray, footprint: np.ndarray, style: np.ndarray, normal: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        joint = np.maximum(_stripes(uv[:, 0], 1.2, 0.03, footprint), _stripes(uv[:, 1], 1.2, 0.03, footprint))
        return albedo * (1 - 0.5 * joint)[:, None], np.zeros(len(uv), np.float32)

    def _facade(
        self, albedo: np.ndarray, uv: np.ndarray, footprint: np.ndarray, style: np.ndarray, normal: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        pitch, floor, wide, high, ground, tone, seed, trim = style.T
        shop = (uv[:, 1] < ground) & (ground > 3.55)
        up = np.where(uv[:, 1] < ground, uv[:, 1], uv[:, 1] - ground)
        period = np.where(shop, ground, floor)
        wide = np.where(shop, pitch * 0.78, wide)
        high = np.where(shop, ground - 1.3, high)
        sill = np.where(shop, 0.45, 0.8)
        column, storey = np.floor(uv[:, 0] / pitch), np.floor(up / period)
        x = np.abs(uv[:, 0] - (column + 0.5) * pitch)
        y = up - storey * period - sill - high / 2
        inside = _band(x, wide / 2, footprint) * _band(y, high / 2, footprint)
        framed = _band(x, wide / 2 + 0.12, footprint) * _band(y, high / 2 + 0.12, footprint)
        bars = np.maximum(_band(x, 0.03, footprint), _band(y - high * 0.2, 0.03, footprint))
        lot = np.sin(column * 12.9898 + storey * 78.233 + seed * 3.7) * 43758.5453
        chance = lot - np.floor(lot)
        recess = _band(y - high / 2 + 0.1, 0.1, footprint)
        glass = (tone + 0.22 * (chance > 0.72) * chance)[:, None] * np.array([0.9, 1.0, 1.1], np.float32)
        glass = glass * (1 - 0.6 * recess)[:, None]
        courses = _stripes(uv[:, 1], 0.25, 0.03, footprint)
        ledge = _band(uv[:, 1] - ground + 0.15, 0.12, footprint)
        wall = albedo * (1 - 0.18 * courses - 0.25 * np.exp(-uv[:, 1] * 1.2))[:, None]
        wall = wall * (1 - ledge)[:, None] + (ledge * trim)[:, None]
        edge = (framed * 0.9)[:, None]
        wall = wall * (1 - edge) + edge * trim[:, None]
        pane = np.clip(inside * (1 - bars * 0.8), 0, 1)[:, None]
        steep = np.abs(normal[:, 2]) < 0.5
        mixed = np.where(steep[:, None], wall * (1 - pane) + pane * glass, albedo)
        return mixed.astype(np.float32), np.where(steep, 1.3 * pane[:, 0], 0).astype(np.float32)


def _fibonacci_sphere(count: int) -> np.ndarray:
    """Evenly spread unit vectors, shuffled so that neighbours differ."""
    i = np.random.default_rng(5).permutation(count) + 0.5
    z, turn = 1 - 2 * i / count, i * np.pi * (1 + 5**0.5)
    flat = np.sqrt(1 - z * z)
    return np.stack([flat * np.cos(turn), flat * np.sin(turn), z], axis=-1).astype(np.float32)


_SPHERE = _fibonacci_sphere(16)


def _soften(image: np.ndarray) -> np.ndarray:
    """A lens blurs by a fraction of a pixel; without it every edge is a staircase."""
    wide = np.pad(image, ((1, 1), (1, 1), (0, 0)), mode="edge")
    rows = 0.7 * wide[1:-1] + 0.15 * (wide[:-2] + wide[2:])
    soft: np.ndarray = 0.7 * rows[:, 1:-1] + 0.15 * (rows[:, :-2] + rows[:, 2:])
    return soft


def _band(x_m: np.ndarray, half_m: np.ndarray | float, footprint_m: np.ndarray) -> np.ndarray:
    """Share of a pixel's footprint around x that lies within |x| < half: a box filter, so thin lines fade far away."""
    half = footprint_m / 2
    covered = np.minimum(x_m + half, half_m) - np.maximum(x_m - half, -half_m)
    share: np.ndarray = np.clip(covered / footprint_m, 0, 1)
    return share


def _stripes(x_m: np.ndarray, period_m: float, width_m: float, footprint_m: np.ndarray) -> np.ndarray:
    """Filtered stripes of `width_m` repeated each `period_m`; they fade to their mean where they cannot be resolved."""
    offset = x_m - np.round(x_m / period_m) * period_m
    blur = np.clip(footprint_m / period_m * 2 - 0.5, 0, 1)
    share: np.ndarray = _band(offset, width_m / 2, footprint_m) * (1 - blur) + blur * (width_m / period_m)
    return share


@functools.cache
def _pyramid(smooth: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A tileable fractal noise tile (std about 1) and its halvings: flat texels, offset and side of each level."""
    rng = np.random.default_rng(7)
    f = np.hypot(np.fft.fftfreq(_TILE)[:, None], np.fft.fftfreq(_TILE)[None]) * _TILE
    spectrum = np.fft.fft2(rng.standard_normal((_TILE, _TILE))) / np.maximum(f, 3.0) ** (1.7 if smooth else 0.85)
    spectrum[0, 0] = 0
    tile = np.fft.ifft2(spectrum).real
    levels = [(tile / tile.std()).astype(np.float32)]
    while levels[-1].shape[0] > 1:
        a = levels[-1]
        levels.append((a[::2, ::2] + a[1::2, ::2] + a[::2, 1::2] + a[1::2, 1::2]) / 4)
    sides = np.array([len(a) for a in levels], dtype=np.int32)
    offsets = np.concatenate([[0], np.cumsum(sides[:-1] ** 2)]).astype(np.int32)
    return np.concatenate([a.ravel() for a in levels]), offsets, sides


def _noise(place_m: np.ndarray, footprint_m: np.ndarray, smooth: bool = False) -> np.ndarray:
    """Fractal noise at (N, 2) places, filtered to (N,) footprints; 2 cm texels repeat after 10 m."""
    texels, offsets, sides = _pyramid(smooth)
    level = np.clip(np.log2(np.maximum(footprint_m, 1e-4) / _TEXEL_M) + 0.5, 0, len(sides) - 1).astype(np.int32)
    cell = np.floor(place_m * (1 / _TEXEL_M)).astype(np.int32) & (_TILE - 1)
    cell >>= level[:, None]
    found: np.ndarray = texels[offsets[level] + cell[:, 1] * sides[level] + cell[:, 0]]
    return found
