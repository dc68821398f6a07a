"""What a renderer needs to know of a world: triangles, weather, lamps; and the path that a vehicle drives in it."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

LENGTH_M = 300.0

Colour = tuple[float, float, float]


@dataclass(frozen=True)
class Weather:
    """Light, air and exposure. Colours are linear RGB; as it is made here, a clear day.

    Attributes:
        sun, sky, street: irradiance from the sun, from above, and from below.
        zenith, horizon, cloud, glow: radiance of the sky overhead, what is added at the horizon, that of clouds, and
            what is added around the sun.
        haze: radiance of the air.
        low: radiance of what shiny surfaces mirror from below the roofs.
        beam: intensity of each of the vehicle's two headlamps; 0 = off.
        wet: how wet level surfaces are, in [0, 1]; water darkens them and mirrors.
        exposure: factor on radiance before tone mapping.
        noise: standard deviation of the sensor's noise, white = 1.
    """

    sun: Colour = (2.3, 2.1, 1.75)
    sky: Colour = (0.62, 0.72, 0.9)
    street: Colour = (0.34, 0.31, 0.28)
    zenith: Colour = (0.25, 0.45, 0.95)
    horizon: Colour = (0.65, 0.55, 0.15)
    cloud: float = 1.15
    glow: Colour = (0.8, 0.7, 0.5)
    haze: Colour = (0.75, 0.82, 0.9)
    low: float = 0.16
    beam: float = 0.0
    wet: float = 0.0
    exposure: float = 0.62
    noise: float = 0.008


@dataclass(frozen=True, eq=False)
class Scene:
    """A world and its weather.

    Attributes:
        corners_m: (F, 3, 3) corner positions in the world.
        uv_m: (F, 3, 2) texture coordinates: along and up a wall, along and left on the ground.
        material: (F,) Material.
        colour: (F, 3) linear RGB albedo; of a lamp, radiance.
        style: (F, 7) numbers for the texture of the material, see `texture.py`.
        sun: unit vector towards the sun.
        haze_m: distance at which haze hides 63 % of a surface.
        cloud: cloud cover in [0, 1].
        weather: light, air and exposure.
        lamps_m: (L, 3) positions of lamps that are on.
    """

    corners_m: Float[np.ndarray, "F 3 3"]
    uv_m: Float[np.ndarray, "F 3 2"]
    material: Int[np.ndarray, " F"]
    colour: Float[np.ndarray, "F 3"]
    style: Float[np.ndarray, "F 7"]
    sun: Float[np.ndarray, " 3"]
    haze_m: float
    cloud: float
    weather: Weather
    lamps_m: Float[np.ndarray, "L 3"]


class Path:
    """A centre line with its heading (radians, counterclockwise from x) and height."""

    def __init__(self, swing_rad: float, phase_rad: float, period_m: float = 260.0, rise_m: float = 0.0) -> None:
        self._along_m = np.arange(-100.0, LENGTH_M + 101.0)
        self._heading_rad = swing_rad * (np.sin(2 * np.pi * self._along_m / period_m + phase_rad) - np.sin(phase_rad))
        self._x_m, self._y_m = np.cumsum(np.cos(self._heading_rad)), np.cumsum(np.sin(self._heading_rad))
        self._height_m = rise_m * np.sin(2 * np.pi * self._along_m / (0.8 * period_m) + 2 * phase_rad)
        self._slope_rad = np.arctan(np.gradient(self._height_m))

    @property
    def line_m(self) -> Float[np.ndarray, "N 3"]:
        """Points of the centre line, one a metre, of which the hundredth lies at 0 m."""
        return np.stack([self._x_m, self._y_m, self._height_m], axis=-1)

    def heading_rad(self, along_m: float) -> float:
        """Heading at this distance."""
        return float(np.interp(along_m, self._along_m, self._heading_rad))

    def slope_rad(self, along_m: float) -> float:
        """Slope at this distance, uphill positive."""
        return float(np.interp(along_m, self._along_m, self._slope_rad))

    def bend(self, points_m: Float[np.ndarray, "*N 3"]) -> Float[np.ndarray, "*N 3"]:
        """Street coordinates (along, left, up) to world coordinates."""
        along, left, up = np.moveaxis(points_m, -1, 0)
        heading, x, y, height = (
            np.interp(along, self._along_m, f) for f in (self._heading_rad, self._x_m, self._y_m, self._height_m)
        )
        return np.stack([x - left * np.sin(heading), y + left * np.cos(heading), up + height], axis=-1)

    def pose(
        self, along_m: float, left_m: float, yaw_rad: float = 0.0, *, level: bool = False
    ) -> Float[np.ndarray, "4 4"]:
        """Pose of something that stands here, turned by yaw; it lies on the slope, or is level."""
        # Not a bare minus, so that a level path has no negative zero.
        pitch_rad = 0.0 if level else (0.0 - self.slope_rad(along_m)) * np.cos(yaw_rad)
        pose = turned(self.heading_rad(along_m) + yaw_rad, pitch_rad)
        pose[:3, 3] = self.bend(np.array([along_m, left_m, 0.0]))
        return pose


@dataclass(frozen=True, eq=False)
class Plan:
    """The centre line and lane width of a road, known before its world is built."""

    path: Path
    lane_m: float


def turned(yaw_rad: float, pitch_rad: float) -> Float[np.ndarray, "4 4"]:
    """Pose that rotates by pitch about the left axis (nose down positive), then by yaw about up (counterclockwise)."""
    c, s, cp, sp = np.cos(yaw_rad), np.sin(yaw_rad), np.cos(pitch_rad), np.sin(pitch_rad)
    pose = np.eye(4)
    pose[:3, :3] = [[c * cp, -s, c * sp], [s * cp, c, s * sp], [-sp, 0.0, cp]]
    return pose
