"""The one colour scale of depth, for every picture of it."""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, UInt8

# Lightness of plasma falls from near to far, for every kind of colour vision. Its far end is so dark that points would
# vanish on the darkened image.
DEPTH_COLOURS, FAR_COLOUR, NEAR_COLOUR = "plasma", 0.06, 0.94
NO_DEPTH_RGB = (128, 128, 128)

# A car sees nothing nearer than this; spending colours on it would leave half of them for the street.
NEAREST_COLOUR_M = 1.0


@dataclass(frozen=True)
class DepthScale:
    """The one mapping from metres to colour, logarithmic: near is warm and light, far is cold and dark.

    Attributes:
        near_m, far_m: where the colours begin and end; what lies outside has the colour of that end.
    """

    near_m: float
    far_m: float

    def fraction(self, depth_m: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
        """0 at the near end, 1 at the far end, equal steps for equal ratios. Depths must be > 0."""
        inside = np.clip(depth_m, self.near_m, self.far_m, dtype=np.float64)
        return np.asarray(np.log(inside / self.near_m) / math.log(self.far_m / self.near_m))


def depth_scale(range_m: tuple[float, float]) -> DepthScale:
    """The scale for depths of a protocol's range; the first metre shares one colour."""
    near_m, far_m = range_m
    return DepthScale(NEAREST_COLOUR_M if near_m < NEAREST_COLOUR_M < far_m else near_m, far_m)


def colour_depth(depth_m: Float[np.ndarray, "H W"], scale: DepthScale) -> UInt8[np.ndarray, "H W 3"]:
    """Colour a depth map; pixels without a depth (0, negative, not finite) are grey, which the scale never is."""
    from matplotlib import colormaps

    known = np.isfinite(depth_m) & (depth_m > 0)
    fraction = scale.fraction(np.where(known, depth_m, scale.far_m))
    rgb = colormaps[DEPTH_COLOURS](NEAR_COLOUR + (FAR_COLOUR - NEAR_COLOUR) * fraction, bytes=True)[..., :3]
    return np.asarray(np.where(known[..., None], rgb, np.array(NO_DEPTH_RGB, np.uint8)))


def error_colours(count: int) -> UInt8[np.ndarray, "count 3"]:
    """Colours of relative errors from the lowest, too near, to the highest, too far; what is right is dark.

    Crameri's managua: orange to blue, apart for every kind of colour vision.
    """
    from matplotlib import colormaps

    return np.asarray(colormaps["managua"](np.linspace(0, 1, count), bytes=True)[:, :3])
