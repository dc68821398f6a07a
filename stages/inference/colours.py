"""The colour scale of depth, the same in every picture."""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, UInt8

# The lightness of plasma falls from near to far, for every kind of colour vision. Its darkest end is not used: points
# would vanish on the darkened image.
DEPTH_COLOURS, FAR_COLOUR, NEAR_COLOUR = "plasma", 0.06, 0.94
NO_DEPTH_RGB = (128, 128, 128)

# A car sees nothing nearer than this; colours for smaller depths would leave only half of them for the street.
NEAREST_COLOUR_M = 1.0


@dataclass(frozen=True)
class DepthScale:
    """The logarithmic mapping from metres to colour: near is warm and light, far is cold and dark.

    Attributes:
        near_m, far_m: depths of the two ends of the scale; depths outside get the colour of the nearer end.
    """

    near_m: float
    far_m: float

    def fraction(self, depth_m: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
        """Position on the scale: 0 at the near end, 1 at the far end, linear in log depth. Depths must be > 0."""
        inside = np.clip(depth_m, self.near_m, self.far_m, dtype=np.float64)
        return np.asarray(np.log(inside / self.near_m) / math.log(self.far_m / self.near_m))


def depth_scale(range_m: tuple[float, float]) -> DepthScale:
    """The scale for a protocol's range of depths; all depths below 1 m share one colour."""
    near_m, far_m = range_m
    return DepthScale(NEAREST_COLOUR_M if near_m < NEAREST_COLOUR_M < far_m else near_m, far_m)


def colour_depth(depth_m: Float[np.ndarray, "H W"], scale: DepthScale) -> UInt8[np.ndarray, "H W 3"]:
    """Colour a depth map; pixels without depth (0, negative, not finite) are grey, a colour that the scale lacks."""
    from matplotlib import colormaps

    known = np.isfinite(depth_m) & (depth_m > 0)
    fraction = scale.fraction(np.where(known, depth_m, scale.far_m))
    rgb = colormaps[DEPTH_COLOURS](NEAR_COLOUR + (FAR_COLOUR - NEAR_COLOUR) * fraction, bytes=True)[..., :3]
    return np.asarray(np.where(known[..., None], rgb, np.array(NO_DEPTH_RGB, np.uint8)))


def error_colours(count: int) -> UInt8[np.ndarray, "count 3"]:
    """Colours of relative errors, from too near to too far; zero error is dark.

    Crameri's managua, orange to blue, which every kind of colour vision can tell apart.
    """
    from matplotlib import colormaps

    return np.asarray(colormaps["managua"](np.linspace(0, 1, count), bytes=True)[:, :3])
