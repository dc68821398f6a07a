"""Pictures of depth for people: LiDAR returns large enough to see, images that fit into a web page."""

import base64
import io
import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from stages.compute.resize import resize_rgb
from stages.inference.colours import DepthScale, colour_depth

PANEL_WIDTH_PX = 400
POINT_RADIUS_PX = 1

BACKDROP_BRIGHTNESS = 0.3
WEBP_QUALITY = 82
WEBP_URI = "data:image/webp;base64,"

TICK_STEPS = (1, 2, 5)
TICK_GAP = 0.05


@dataclass(frozen=True)
class Tick:
    """A label of the colour bar.

    Attributes:
        fraction: place along the bar, 0 = near end.
        label: metres.
    """

    fraction: float
    label: str


def scale_ticks(scale: DepthScale, range_m: tuple[float, float]) -> tuple[Tick, ...]:
    """Labels at both ends and at round numbers between them; "≤" marks a near end that nearer depths share."""
    decades = range(math.floor(math.log10(scale.near_m)), math.ceil(math.log10(scale.far_m)) + 1)
    ticks = [Tick(0.0, f"{'≤ ' if range_m[0] < scale.near_m else ''}{scale.near_m:g}")]
    for round_m in (step * 10.0**decade for decade in decades for step in TICK_STEPS):
        fraction = float(scale.fraction(np.array(round_m)))
        if TICK_GAP < fraction < 1 - TICK_GAP:
            ticks.append(Tick(fraction, f"{round_m:g}"))
    return (*ticks, Tick(1.0, f"{scale.far_m:g}"))


def draw_points(
    image: UInt8[np.ndarray, "h w 3"], depth_m: Float[np.ndarray, "H W"], scale: DepthScale
) -> UInt8[np.ndarray, "h w 3"]:
    """Draw sparse depth as discs on the darkened, colourless image; where discs overlap, the nearest is on top."""
    size = (image.shape[0], image.shape[1])
    discs_m = _dilated(scattered(depth_m, size), POINT_RADIUS_PX)
    backdrop = (image.mean(axis=2, keepdims=True) * BACKDROP_BRIGHTNESS).astype(np.uint8)
    return np.where(np.isfinite(discs_m)[..., None], colour_depth(discs_m, scale), backdrop)


def panel_image(image: UInt8[np.ndarray, "H W 3"]) -> UInt8[np.ndarray, "h w 3"]:
    """A camera image at panel size."""
    return resize_rgb(image, _panel_size(image))


def nearest_at(depth_m: Float[np.ndarray, "H W"], size: tuple[int, int]) -> Float[np.ndarray, "h w"]:
    """A depth map at another size, by nearest neighbour: the mean of two depths is a surface that does not exist."""
    h, w = size
    rows = (np.arange(h) * 2 + 1) * depth_m.shape[0] // (2 * h)
    columns = (np.arange(w) * 2 + 1) * depth_m.shape[1] // (2 * w)
    return np.asarray(depth_m[rows[:, None], columns])


def panorama_order(view_count: int) -> tuple[int, ...]:
    """Views from left to right, as a driver sees them: the ring (clockwise, front first) cut open behind the car.

    The front is in the middle; of an even number it is left of the middle, and the back view is last.
    """
    return tuple((view_count // 2 + 1 + i) % view_count for i in range(view_count))


def webp_uri(rgb: UInt8[np.ndarray, "H W 3"], *, lossless: bool = False) -> str:
    """A picture as a data URI, for a page that loads nothing."""
    with io.BytesIO() as file:
        Image.fromarray(rgb).save(file, "WEBP", quality=WEBP_QUALITY, lossless=lossless)
        return f"{WEBP_URI}{base64.b64encode(file.getvalue()).decode()}"


def _panel_size(image: np.ndarray) -> tuple[int, int]:
    return max(1, round(PANEL_WIDTH_PX * image.shape[0] / image.shape[1])), PANEL_WIDTH_PX


def scattered(depth_m: Float[np.ndarray, "H W"], size: tuple[int, int]) -> Float[np.ndarray, "h w"]:
    """Sparse depth on another grid; where returns meet, the nearest stays. inf = no return."""
    scattered = np.full(size, np.inf)
    y, x = np.nonzero(depth_m > 0)
    rows = (2 * y + 1) * size[0] // (2 * depth_m.shape[0])
    columns = (2 * x + 1) * size[1] // (2 * depth_m.shape[1])
    np.minimum.at(scattered, (rows, columns), depth_m[y, x])
    return scattered


def _dilated(depth_m: Float[np.ndarray, "H W"], radius_px: int) -> Float[np.ndarray, "H W"]:
    """Grow every finite depth to a disc; the nearest wins."""
    H, W = depth_m.shape
    padded = np.pad(depth_m, radius_px, constant_values=np.inf)
    offsets = range(-radius_px, radius_px + 1)
    shifted = [
        padded[radius_px + dy : radius_px + dy + H, radius_px + dx : radius_px + dx + W]
        for dy in offsets
        for dx in offsets
        if dy * dy + dx * dx <= radius_px * radius_px
    ]
    return np.asarray(np.minimum.reduce(shifted))
