"""Ray casting in a world: the image that a camera takes, and the ranges that a LiDAR measures."""

from dataclasses import dataclass

import numpy as np
from embreex.mesh_construction import TriangleMesh
from embreex.rtcore_scene import EmbreeScene
from jaxtyping import Float, UInt8

from data_cache.frames.rig import Camera
from data_cache.sources.synthetic.mesh import Material
from data_cache.sources.synthetic.scene import Colour, Scene
from data_cache.sources.synthetic.texture import appearance, noise

_OCCLUSION_M = 1.5
_OFF_SURFACE_M = 0.02
_LAMP = np.array([26.0, 20.0, 12.0], np.float32)
_LAMP_REACH_M = 28.0
_HEADLAMPS_M = (2.2, 0.65, 0.8), (2.2, -0.65, 0.8)
"""In the vehicle frame."""
_BEAM_RAD = 0.4, 0.1
"""Width and height of a headlamp's beam, and how far it is tilted down below."""
_BEAM_DOWN_RAD = 0.05


@dataclass(frozen=True, eq=False)
class Rendering:
    """One image and the depth at each of its pixel centres.

    Attributes:
        rgb: (H, W, 3) image.
        depth_m: (H, W) float32 z in metres, 0 for sky.
    """

    rgb: UInt8[np.ndarray, "H W 3"]
    depth_m: Float[np.ndarray, "H W"]


@dataclass(frozen=True, eq=False)
class _Hits:
    """The first surfaces that N rays hit: `on` holds the indices of the M rays that hit one; the rest has M rows."""

    on: np.ndarray
    face: np.ndarray
    barycentric: np.ndarray
    depth_m: np.ndarray
    point_m: np.ndarray
    normal: np.ndarray


class Tracer:
    """Casts rays into a world."""

    def __init__(self, scene: Scene) -> None:
        corners = scene.corners_m.astype(np.float32)
        self._world = scene
        self._scene = EmbreeScene()
        # The scene does not keep its mesh alive.
        self._mesh = TriangleMesh(self._scene, corners.reshape(-1, 3), np.arange(3 * len(corners)).reshape(-1, 3))
        self._normal = _unit(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]))
        self._uv_m, self._colour, self._style, self._sun = (
            column.astype(np.float32) for column in (scene.uv_m, scene.colour, scene.style, scene.sun)
        )

    @property
    def haze_m(self) -> float:
        """Distance at which haze hides 63 % of a surface."""
        return self._world.haze_m

    def ranges_m(self, origin_m: Float[np.ndarray, " 3"], rays: Float[np.ndarray, "N 3"]) -> Float[np.ndarray, " N"]:
        """Range along unit rays to the first surface; inf where there is none."""
        origins = np.broadcast_to(origin_m, rays.shape).astype(np.float32)
        hit = self._scene.run(origins, rays.astype(np.float32), output=True)
        return np.where(hit["primID"] >= 0, hit["tfar"], np.inf).astype(np.float64)

    def render(
        self,
        camera: Camera,
        world_from_cam: Float[np.ndarray, "4 4"],
        rng: np.random.Generator,
        world_from_ego: Float[np.ndarray, "4 4"] | None = None,
    ) -> Rendering:
        """Image and depth of a pinhole camera.

        Args:
            camera: what takes the image.
            world_from_cam: its pose.
            rng: draws the sensor noise.
            world_from_ego: pose of the vehicle, which has headlamps; None for no vehicle.
        """
        size = camera.height_px, camera.width_px
        K, pose = camera.K_px.astype(np.float32), world_from_cam.astype(np.float32)
        v, u = np.indices(size, dtype=np.float32) + np.float32(0.5)
        rays = np.stack([(u - K[0, 2]) / K[0, 0], (v - K[1, 2]) / K[1, 1], np.ones_like(u)], axis=-1).reshape(-1, 3)
        rays = rays @ pose[:3, :3].T
        hits = self._cast(pose[:3, 3], rays)
        depth_m = np.zeros(len(rays), np.float32)
        depth_m[hits.on] = hits.depth_m
        openness, weather = self._openness(hits, depth_m.reshape(size)), self._world.weather
        light = self._light(rays, hits, openness, self._lamplight(hits, world_from_ego), 1 / float(K[0, 0]))
        image = _soften(light.reshape(*size, 3)) * np.float32(weather.exposure)
        # A filmic curve: deep shadows, soft highlights (Narkowicz's fit of the ACES tone mapping curve), then gamma 2.
        image = np.sqrt(image * (2.51 * image + 0.03) / (image * (2.43 * image + 0.59) + 0.14))
        image += np.float32(weather.noise) * rng.standard_normal(image.shape, dtype=np.float32)
        return Rendering((np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8), depth_m.reshape(size))

    def _cast(self, origin_m: np.ndarray, rays: np.ndarray) -> _Hits:
        """The first surface along each ray; rays have z = 1 in the camera, so that the ray parameter is the depth."""
        hit = self._scene.run(np.broadcast_to(origin_m, rays.shape).copy(), rays, output=True)
        on = np.flatnonzero(hit["primID"] >= 0)
        face, depth_m = hit["primID"][on], hit["tfar"][on]
        b, c = hit["u"][on], hit["v"][on]
        normal = self._normal[face]
        normal[_dot(normal, rays[on]) > 0] *= -1
        point_m = origin_m + depth_m[:, None] * rays[on]
        return _Hits(on, face, np.stack([1 - b - c, b, c], axis=-1), depth_m, point_m, normal)

    def _openness(self, hits: _Hits, depth_m: Float[np.ndarray, "H W"]) -> np.ndarray:
        """Ambient occlusion of each hit: 1 in the open, near 0 in corners and under cars.

        At half resolution each pixel probes one of 16 directions around its normal, in 4 x 4 tiles; neighbours at the
        same depth are then averaged.
        """
        row, column = np.divmod(hits.on, depth_m.shape[1])
        probes = np.flatnonzero((row % 2 == 0) & (column % 2 == 0))
        row, column = row // 2, column // 2
        normal = hits.normal[probes]
        # Normal + uniform direction on the sphere is cosine distributed about the normal.
        towards = _unit(normal * np.float32(1.02) + _SPHERE[(row[probes] % 4) * 4 + column[probes] % 4])
        start = hits.point_m[probes] + np.float32(_OFF_SURFACE_M) * normal
        reach_m = self._scene.run(start, towards, query="DISTANCE")
        depth_m = depth_m[::2, ::2]
        free = np.ones_like(depth_m)
        free[row[probes], column[probes]] = 1 - np.exp(-np.minimum(reach_m, 100) / np.float32(_OCCLUSION_M))
        total, count = np.zeros_like(free), np.zeros_like(free)
        for shift in np.ndindex(4, 4):
            shift = shift[0] - 2, shift[1] - 2
            alike = np.abs(np.roll(depth_m, shift, axis=(0, 1)) - depth_m) <= 0.06 * depth_m
            total += alike * np.roll(free, shift, axis=(0, 1))
            count += alike
        mean: np.ndarray = (total / count)[row, column]
        return mean

    def _lamplight(self, hits: _Hits, world_from_ego: np.ndarray | None) -> np.ndarray:
        """Irradiance (M, 3) from lamps and headlamps; a lamp shines to all sides, a headlamp ahead."""
        found = np.zeros_like(hits.point_m)
        for lamp_m in self._world.lamps_m.astype(np.float32):
            found += self._reach(hits, lamp_m)[:, None] * _LAMP
        beam = self._world.weather.beam
        if world_from_ego is None or not beam:
            return found
        for place_m in _HEADLAMPS_M:
            lamp_m = (world_from_ego[:3, :3] @ place_m + world_from_ego[:3, 3]).astype(np.float32)
            ahead, left, up = ((hits.point_m - lamp_m) @ world_from_ego[:3, :3].astype(np.float32)).T
            wide, high = np.arctan2(left, ahead), np.arctan2(up, np.maximum(ahead, np.float32(0.1))) + _BEAM_DOWN_RAD
            cone = np.exp(-((wide / _BEAM_RAD[0]) ** 2) - (high / _BEAM_RAD[1]) ** 2)
            found += (beam * cone * self._reach(hits, lamp_m, 100.0))[:, None].astype(np.float32)
        return found

    def _reach(self, hits: _Hits, lamp_m: np.ndarray, reach_m: float = _LAMP_REACH_M) -> np.ndarray:
        """Irradiance (M,) from a lamp of intensity 1, 0 in shadow or out of reach."""
        towards = lamp_m - hits.point_m
        distance_m = np.sqrt(_dot(towards, towards))
        found = _dot(towards, hits.normal) / np.maximum(distance_m, np.float32(0.5)) ** 3
        found *= np.clip(2 - 2 * distance_m / np.float32(reach_m), 0, 1)
        lit = np.flatnonzero(found > 0)
        start = hits.point_m[lit] + np.float32(_OFF_SURFACE_M) * hits.normal[lit]
        free_m = self._scene.run(start, _unit(towards[lit]), query="DISTANCE")
        found[lit] *= free_m > distance_m[lit] - np.float32(0.05)
        irradiance: np.ndarray = np.maximum(found, 0)
        return irradiance

    def _light(
        self, rays: np.ndarray, hits: _Hits, openness: np.ndarray, lamplight: np.ndarray, pixel_rad: float
    ) -> np.ndarray:
        """Linear RGB radiance (N, 3) along rays."""
        world, weather, face, normal = self._world, self._world.weather, hits.face, hits.normal
        length = np.sqrt(_dot(rays, rays))
        view = rays[hits.on] / length[hits.on, None]
        distance_m, cosine = hits.depth_m * length[hits.on], -_dot(normal, view)
        uv_m = np.einsum("nk,nkc->nc", hits.barycentric, self._uv_m[face])
        footprint_m = distance_m * pixel_rad / np.sqrt(np.maximum(cosine, np.float32(0.05)))
        albedo, mirror = appearance(
            world.material[face], self._colour[face], self._style[face],
            hits.point_m, uv_m, np.abs(normal[:, 2]) > 0.9, footprint_m,
        )  # fmt: skip
        if weather.wet:
            _moisten(albedo, mirror, np.float32(weather.wet) * (normal[:, 2] > 0.9), hits.point_m, footprint_m)
        sunny = normal @ self._sun
        sunny[sunny > 0] *= self._sees_sun(hits.point_m[sunny > 0] + np.float32(_OFF_SURFACE_M) * normal[sunny > 0])
        up = 0.5 + 0.5 * normal[:, 2:]
        ambient = (up * _rgb(weather.sky) + (1 - up) * _rgb(weather.street)) * openness[:, None]
        radiance = albedo * (np.maximum(sunny, 0)[:, None] * _rgb(weather.sun) + ambient + lamplight)
        shiny = np.flatnonzero(mirror > 0)
        bounce = view[shiny] + 2 * cosine[shiny, None] * normal[shiny]
        # Low reflections would show the other side of the street: it is not traced but taken as dull grey.
        above = np.clip((bounce[:, 2:] - 0.15) * 3, 0, 1)
        seen = above * self._sky(bounce) + (1 - above) * np.float32(weather.low)
        fresnel = (mirror[shiny] * (0.06 + 0.94 * (1 - cosine[shiny]) ** 5))[:, None]
        radiance[shiny] += fresnel * (seen - radiance[shiny])
        lamp = world.material[face] == Material.LAMP
        radiance[lamp] = self._colour[face[lamp]]
        haze = 1 - np.exp(-distance_m / np.float32(world.haze_m))[:, None]
        light = np.empty_like(rays)
        light[hits.on] = radiance + haze * (_rgb(weather.haze) - radiance)
        off = np.ones(len(rays), bool)
        off[hits.on] = False
        light[off] = self._sky(rays[off] / length[off, None])
        return light

    def _sees_sun(self, points_m: np.ndarray) -> np.ndarray:
        towards = np.broadcast_to(self._sun, points_m.shape).copy()
        blocked: np.ndarray = self._scene.run(points_m, towards, query="OCCLUDED")
        return blocked < 0

    def _sky(self, rays: np.ndarray) -> np.ndarray:
        """Sky radiance: paler towards the horizon, with clouds on a plane overhead and a glow around the sun."""
        weather, up = self._world.weather, np.maximum(rays[:, 2:], 0)
        clear = _rgb(weather.zenith) + _rgb(weather.horizon) * (1 - up) ** 5
        cloud = noise(rays[:, :2] / (up + 0.12) * np.float32(2.5), np.full(len(rays), 0.02, np.float32), smooth=True)
        cover = np.clip((cloud + np.float32(2.4 * self._world.cloud - 1.4)) * 0.8, 0, 1)[:, None]
        glow = np.maximum(rays @ self._sun, 0)[:, None] ** 24 * _rgb(weather.glow)
        light: np.ndarray = clear + cover * (weather.cloud - clear) + glow
        return light


def _rgb(colour: Colour) -> np.ndarray:
    return np.array(colour, np.float32)


def _moisten(
    albedo: np.ndarray, mirror: np.ndarray, wet: np.ndarray, point_m: np.ndarray, footprint_m: np.ndarray
) -> None:
    """Darken and polish surfaces by as much as they are `wet` (M,), with puddles; in place."""
    puddle = np.clip(0.55 + 0.35 * noise(point_m[:, :2] / 5, footprint_m / 5, smooth=True), 0.15, 1)
    albedo *= (1 - 0.55 * wet)[:, None]
    np.maximum(mirror, 1.4 * wet * puddle, out=mirror)


def _dot(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    dot: np.ndarray = np.einsum("nc,nc->n", a, b)
    return dot


def _unit(vectors: np.ndarray) -> np.ndarray:
    unit: np.ndarray = vectors / np.maximum(np.sqrt(_dot(vectors, vectors)), np.float32(1e-9))[:, None]
    return unit


def _fibonacci_sphere(count: int) -> np.ndarray:
    """Evenly spread unit vectors (count, 3), shuffled so that neighbours differ."""
    i = np.random.default_rng(5).permutation(count) + 0.5
    z, turn = 1 - 2 * i / count, i * np.pi * (1 + 5**0.5)
    flat = np.sqrt(1 - z * z)
    return np.stack([flat * np.cos(turn), flat * np.sin(turn), z], axis=-1).astype(np.float32)


_SPHERE = _fibonacci_sphere(16)


def _soften(image: Float[np.ndarray, "H W 3"]) -> Float[np.ndarray, "H W 3"]:
    """Blur by a fraction of a pixel, as a lens does; without it every edge is a staircase."""
    wide = np.pad(image, ((1, 1), (1, 1), (0, 0)), mode="edge")
    rows = 0.7 * wide[1:-1] + 0.15 * (wide[:-2] + wide[2:])
    soft: np.ndarray = 0.7 * rows[:, 1:-1] + 0.15 * (rows[:, :-2] + rows[:, 2:])
    return soft
