"""Undistortion: images of distorted and fisheye lenses as a pinhole camera would have taken them.

The models are OpenCV's, in the coordinates of its documentation: x = X / Z, y = Y / Z, on the plane Z = 1.
Undistortion needs them in one direction only: from the ray of a pinhole pixel to its place in the photograph.
"""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Int32, UInt8

from data_cache.errors import FrameError
from data_cache.frames.images import load_rgb

COEFFICIENT_COUNTS = {"plumb_bob": (4, 5), "rational": (8,), "fisheye": (4,)}
"""How many coefficients each model takes: k1 k2 p1 p2 [k3]; k1 k2 p1 p2 k3 k4 k5 k6; k1 k2 k3 k4."""
ALIASES = {"radtan": "plumb_bob", "opencv": "plumb_bob", "rational_polynomial": "rational"}
ALIASES |= dict.fromkeys(("equi", "equidistant", "opencv_fisheye", "kannala_brandt"), "fisheye")
"""Names that Kalibr, ROS and COLMAP give to these models."""

_LARGEST_ZOOM = 2.0  # a real lens needs less than 1.3; beyond 2, most of the image would be lost unnoticed
_ZOOMS = np.geomspace(1.0, _LARGEST_ZOOM, 100)  # steps of 0.7 %


@dataclass(frozen=True)
class Lens:
    """The calibration of a distorted camera; hashable, so that results can be cached by lens.

    Attributes:
        model: one of COEFFICIENT_COUNTS.
        coefficients: in OpenCV's order.
        K_rows: (3, 3) intrinsics of the photograph in native pixels; pixel centres lie at half-integers.
        width_px, height_px: native image size.

    Raises:
        FrameError: if the model is unknown, or a coefficient is missing or not finite.
    """

    model: str
    coefficients: tuple[float, ...]
    K_rows: tuple[tuple[float, float, float], ...]
    width_px: int
    height_px: int

    def __post_init__(self) -> None:
        counts = COEFFICIENT_COUNTS.get(self.model)
        if counts is None:
            meant = ALIASES.get(self.model.lower())
            hint = f"; {self.model} is {meant} here" if meant else ""
            raise FrameError(
                f"unknown distortion model {self.model!r}; it is one of {', '.join(COEFFICIENT_COUNTS)}, or none{hint}"
            )
        if len(self.coefficients) not in counts or not np.isfinite(self.coefficients).all():
            raise FrameError(
                f"distortion {self.model}: expected {' or '.join(map(str, counts))} finite coefficients,"
                f" found {list(self.coefficients)}"
            )


def distort(
    lens: Lens, x: Float[np.ndarray, "*grid"], y: Float[np.ndarray, "*grid"]
) -> tuple[Float[np.ndarray, "*grid"], Float[np.ndarray, "*grid"]]:
    """Distort rays (x, y, 1): their positions on the plane z = 1, before the intrinsics are applied.

    plumb_bob and rational: OpenCV, `calib3d` module, detailed description; fisheye: its namespace `fisheye`
    (theta_d = theta (1 + k1 theta^2 + k2 theta^4 + k3 theta^6 + k4 theta^8)).
    """
    r2 = x * x + y * y
    if lens.model == "fisheye":
        k1, k2, k3, k4 = lens.coefficients
        r = np.sqrt(r2)
        theta = np.arctan(r)
        t2 = theta * theta
        theta_d = theta * (1 + t2 * (k1 + t2 * (k2 + t2 * (k3 + t2 * k4))))
        scale = np.divide(theta_d, r, out=np.ones_like(r), where=r > 0)
        return x * scale, y * scale
    k1, k2, p1, p2, k3, k4, k5, k6 = (*lens.coefficients, *[0.0] * 4)[:8]
    radial = (1 + r2 * (k1 + r2 * (k2 + r2 * k3))) / (1 + r2 * (k4 + r2 * (k5 + r2 * k6)))
    return (
        x * radial + 2 * p1 * x * y + p2 * (r2 + 2 * x * x),
        y * radial + p1 * (r2 + 2 * y * y) + 2 * p2 * x * y,
    )


@lru_cache(maxsize=256)
def pinhole_rows(lens: Lens) -> tuple[tuple[float, float, float], ...]:
    """Intrinsics, (3, 3) in native pixels, of the pinhole camera that images of a lens are undistorted to.

    They are the lens's own if every pixel of the pinhole image then lies inside the photograph. Otherwise the focal
    lengths are enlarged, in steps of 0.7 %, by the smallest factor for which this holds. Principal point and image size
    stay. So the centre keeps its resolution, there is no black border to learn from, and a wider field is cropped.

    Raises:
        FrameError: if no factor up to 2 suffices: the coefficients fold the image over itself or fit another model.
    """
    K = np.array(lens.K_rows)
    for zoom in _ZOOMS:
        zoomed: np.ndarray = K * (zoom, zoom, 1.0)
        if _is_covered(lens, zoomed):
            a, b, c = (tuple(row) for row in zoomed.tolist())
            return a, b, c
    raise FrameError(
        f"distortion {lens.model} {list(lens.coefficients)}: expected a lens that covers its {lens.width_px} x"
        f" {lens.height_px} px image without folding it, found that it does not, even with {_LARGEST_ZOOM:g} times the"
        " focal length; check the model, the order of the coefficients and the intrinsics"
    )


def load_undistorted(path: Path, lens: Lens, at_least: tuple[int, int] | None = None) -> UInt8[np.ndarray, "H W 3"]:
    """Decode a photograph with `load_rgb` and undistort it; raises FrameError as `load_rgb` does."""
    return undistorted(load_rgb(path, (lens.height_px, lens.width_px), at_least), lens)


def undistorted(rgb: UInt8[np.ndarray, "H W 3"], lens: Lens) -> UInt8[np.ndarray, "H W 3"]:
    """Undistort a photograph, at native or reduced size, to the pinhole camera of `pinhole_rows`.

    Each pixel is interpolated bilinearly between four pixels of the photograph.
    """
    return _sample(rgb, _source_pixels(lens, rgb.shape[:2]))


@dataclass(frozen=True, eq=False)
class _SourcePixels:
    """For each output pixel, row by row: the index of the upper left of four source pixels, and offsets in [0, 1]."""

    index: Int32[np.ndarray, " P"]
    right: Float[np.ndarray, " P"]
    down: Float[np.ndarray, " P"]


# Room for two sizes (teacher and evaluation) of eight cameras. An entry takes 12 bytes per pixel: 25 MB in full HD.
@lru_cache(maxsize=16)
def _source_pixels(lens: Lens, size: tuple[int, int]) -> _SourcePixels:
    """Where the pixels of the pinhole image lie in the photograph, both decoded at (H, W) `size`."""
    height, width = size
    shrink = np.array([width / lens.width_px, height / lens.height_px])
    v, u = np.mgrid[0:height, 0:width] + 0.5
    u, v = _photographed(lens, np.array(pinhole_rows(lens)), u / shrink[0], v / shrink[1])
    u = np.clip(u * shrink[0] - 0.5, 0, width - 1).ravel()
    v = np.clip(v * shrink[1] - 0.5, 0, height - 1).ravel()
    left = np.minimum(u.astype(np.int32), max(width - 2, 0))
    top = np.minimum(v.astype(np.int32), max(height - 2, 0))
    return _SourcePixels(top * width + left, (u - left).astype(np.float32), (v - top).astype(np.float32))


def _photographed(
    lens: Lens, K_px: Float[np.ndarray, "3 3"], u_px: Float[np.ndarray, "*grid"], v_px: Float[np.ndarray, "*grid"]
) -> tuple[Float[np.ndarray, "*grid"], Float[np.ndarray, "*grid"]]:
    """Native pixels of the photograph that show what a pinhole camera K_px sees at (u_px, v_px)."""
    y = (v_px - K_px[1, 2]) / K_px[1, 1]
    x = (u_px - K_px[0, 2] - K_px[0, 1] * y) / K_px[0, 0]
    x, y = distort(lens, x, y)
    (fx, skew, cx), (_, fy, cy), _ = lens.K_rows
    return fx * x + skew * y + cx, fy * y + cy


def _is_covered(lens: Lens, K_px: Float[np.ndarray, "3 3"]) -> bool:
    """Whether a grid over the pinhole image lies in the photograph, within half a pixel, and is not folded there."""
    u, v = np.meshgrid(np.linspace(0, lens.width_px, 65), np.linspace(0, lens.height_px, 65))
    with np.errstate(all="ignore"):
        u, v = _photographed(lens, K_px, u, v)
        inside: Bool[np.ndarray, "65 65"] = (
            (u >= -0.5) & (u <= lens.width_px + 0.5) & (v >= -0.5) & (v <= lens.height_px + 0.5)
        )
        right_u, right_v = np.diff(u, axis=1)[:-1], np.diff(v, axis=1)[:-1]
        down_u, down_v = np.diff(u, axis=0)[:, :-1], np.diff(v, axis=0)[:, :-1]
        return bool(inside.all() and (right_u * down_v - right_v * down_u > 0).all())


def _sample(rgb: UInt8[np.ndarray, "H W 3"], at: _SourcePixels) -> UInt8[np.ndarray, "H W 3"]:
    height, width, _ = rgb.shape
    out = np.empty((height * width, 3), np.uint8)
    beside, below = min(1, width - 1), width if height > 1 else 0
    for c in range(3):
        channel = rgb[..., c].astype(np.float32).ravel()
        rows = []
        for start in (at.index, at.index + below):
            left = channel.take(start)
            rows.append(left + (channel.take(start + beside) - left) * at.right)
        out[:, c] = rows[0] + (rows[1] - rows[0]) * at.down + 0.5
    return out.reshape(rgb.shape)
