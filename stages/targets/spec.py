"""How depth order is cut into bins: the section `bins` of a recipe."""

import math
from dataclasses import dataclass

from data_cache.shards.encodings import ENCODINGS

STRATEGIES = ("affine", "fitted", "local", "metric")
"""Names of the ways in which a teacher's map becomes u; stages/targets/binning.py has a class for each."""
TEACHER_FIELDS = ("encoding", "window", "strategy", "fit_frames", "metric_range_m")
"""Fields of BinSpec for storage and for the teacher's side of the bins; a student does not depend on them."""


@dataclass(frozen=True, kw_only=True)
class BinSpec:
    """How depth order is cut into bins, and how the bins are stored.

    Changing any of these makes a cache stale, except count, sigma and window with the encoding closed_form, and the
    settings of a strategy that is not in use.

    Attributes:
        count: K.
        sigma: width of the closed-form assignment, in bins.
        encoding: what the cache stores: window, closed_form or dense (data_cache/FORMAT.md gives the cost of each).
        window: consecutive probabilities stored per pixel in the window encoding.
        prob_stride: the student's input size divided by the size of the probability maps.
        strategy: where the teacher's bins lie: affine (in the disparity range of each image), fitted (the same,
            followed by a map that `surround fit-bins` fits to LiDAR), local (as affine, in a map that the frame's LiDAR
            has corrected, targets/local_fit.py), or metric (in the metres of a metric teacher).
        fit_frames: number of training frames for fit-bins.
        metric_range_m: depths of the outer edges of the nearest and the farthest bin, for metric.
    """

    count: int = 64
    sigma: float = 1.0
    encoding: str = "window"
    window: int = 7
    prob_stride: int = 4
    strategy: str = "affine"
    fit_frames: int = 32
    metric_range_m: tuple[float, float] = (1.0, 100.0)

    def __post_init__(self) -> None:
        if not 2 <= self.count <= 256:
            raise ValueError(f"count: expected 2 to 256 bins, got {self.count}")
        if not 0 < self.sigma < math.inf:
            raise ValueError(f"sigma: expected a positive number of bins, got {self.sigma}")
        if self.encoding not in ENCODINGS:
            raise ValueError(f"encoding: expected one of {', '.join(ENCODINGS)}, got {self.encoding!r}")
        if self.encoding == "window" and not 1 <= self.window <= self.count:
            raise ValueError(f"window: expected 1 to count = {self.count}, got {self.window}")
        if self.prob_stride not in (2, 4):
            raise ValueError(f"prob_stride: expected 2 or 4, got {self.prob_stride}")
        if self.strategy not in STRATEGIES:
            raise ValueError(f"strategy: expected one of {', '.join(STRATEGIES)}, got {self.strategy!r}")
        if self.fit_frames < 1:
            raise ValueError(f"fit_frames: expected at least 1, got {self.fit_frames}")
        near_m, far_m = self.metric_range_m
        if not 0 < near_m < far_m < math.inf:
            raise ValueError(f"metric_range_m: expected 0 < near < far, got [{near_m}, {far_m}]")
