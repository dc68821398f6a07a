"""Whether a student's sigma is right: shares of errors inside it, and how it orders them, by camera and distance."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from jaxtyping import Float

from stages.student.checkpoint import Calibration
from stages.uncertainty.sparsification import BINS, Sparsification, bins_of, quantile, sparsification, summed

ONE_SIGMA = 0.68
"""The share of errors of log depth that lie inside one sigma of a calibrated student."""
LAPLACE_95 = math.log(1 - 0.95) / math.log(1 - ONE_SIGMA)
"""Sigmas that hold 95 % of errors of a Laplace distribution of which one sigma holds 68 %: 2.63.

Chosen on the selection drives of `evidence`: there 95 % of errors lie inside 2.8 to 3.0 sigma. Tails are heavier than
those of a Gauss distribution.
"""
GAUSS_95 = 1.96
"""The same for a Gauss distribution."""


@dataclass(frozen=True)
class Sureness:
    """How right sigma is over a set of pixels, pooled.

    Attributes:
        pixels: number of pixels.
        median_sigma: of log depth, calibrated; right to 0.5 %.
        inside_68: share of pixels with |log p - log t| <= sigma.
        inside_95: the same for LAPLACE_95 * sigma.
        inside_95_gauss: the same for GAUSS_95 * sigma.
        scale_68: factor on sigma with which 68 % would lie inside one sigma here; right to 0.5 %.
        abs_rel, rmse: how sigma orders these errors.
    """

    pixels: int
    median_sigma: float
    inside_68: float
    inside_95: float
    inside_95_gauss: float
    scale_68: float
    abs_rel: Sparsification
    rmse: Sparsification


@dataclass(frozen=True)
class SurenessScores:
    """Sureness over all pixels, those of each camera, and those of each band of true distance."""

    all: Sureness
    per_camera: dict[str, Sureness]
    by_distance_m: dict[str, Sureness]


@dataclass(frozen=True)
class Uncertainty:
    """The part of a report about sigma.

    Attributes:
        calibration: that of the student.
        lidar: at the pixels of the protocol; None if no frame has LiDAR.
        dense_truth: at the student's input size, by region; None if the source has no dense truth.
    """

    calibration: Calibration
    lidar: SurenessScores | None
    dense_truth: dict[str, SurenessScores] | None


class SurenessTable:
    """Sums over the pixels of a split, by camera and band of true distance; their size does not grow."""

    def __init__(self, edges_m: Sequence[int]):
        """Bands of true distance lie between neighbouring edges; pixels outside count for their camera only."""
        self._edges_m = edges_m
        self._cells: dict[tuple[str, int], _Cell] = {}

    def add(
        self,
        camera: str,
        predicted_m: Float[np.ndarray, " N"],
        truth_m: Float[np.ndarray, " N"],
        sigma: Float[np.ndarray, " N"],
    ) -> None:
        """Add pixels of one camera; all values are above 0."""
        band_of = np.digitize(truth_m, self._edges_m)
        for band in np.unique(band_of).tolist():
            values = (x[band_of == band].astype(np.float64) for x in (predicted_m, truth_m, sigma))
            self._cells.setdefault((camera, band), _Cell()).add(*values)

    def scores(self) -> SurenessScores | None:
        """The pooled table; None without a pixel, and bands without a pixel are left out."""
        if not self._cells:
            return None
        cameras = dict.fromkeys(camera for camera, _ in self._cells)
        bands = {i + 1: f"{near}-{far}" for i, (near, far) in enumerate(pairwise(self._edges_m))}
        found = {band for _, band in self._cells}
        return SurenessScores(
            _sureness(self._cells.values()),
            {name: _sureness(c for (camera, _), c in self._cells.items() if camera == name) for name in cameras},
            {
                name: _sureness(c for (_, number), c in self._cells.items() if number == band)
                for band, name in bands.items()
                if band in found
            },
        )


class _Cell:
    """Sums over the pixels of one camera and band."""

    def __init__(self) -> None:
        self.by_bin = np.zeros((8, BINS))
        self.inside = np.zeros(3)

    def add(
        self, predicted_m: Float[np.ndarray, " N"], truth_m: Float[np.ndarray, " N"], sigma: Float[np.ndarray, " N"]
    ) -> None:
        off_m = np.abs(predicted_m - truth_m)
        relative, square = off_m / truth_m, off_m**2
        ratio = np.abs(np.log(predicted_m / truth_m)) / sigma
        by_sigma, by_relative, by_square = bins_of(sigma), bins_of(relative), bins_of(off_m)
        self.by_bin += [
            summed(by_sigma),
            summed(by_sigma, relative),
            summed(by_sigma, square),
            summed(by_relative),
            summed(by_relative, relative),
            summed(by_square),
            summed(by_square, square),
            summed(bins_of(ratio)),
        ]
        self.inside += [(ratio <= limit).sum() for limit in (1.0, LAPLACE_95, GAUSS_95)]


def _sureness(cells: Iterable[_Cell]) -> Sureness:
    whole = list(cells)
    by_bin = np.sum([cell.by_bin for cell in whole], axis=0)
    count, relative, square, own_relative, relative_sum, own_square, square_sum, ratio = by_bin
    inside_68, inside_95, inside_95_gauss = (np.sum([cell.inside for cell in whole], axis=0) / count.sum()).tolist()
    return Sureness(
        int(count.sum()),
        quantile(count, 0.5),
        inside_68,
        inside_95,
        inside_95_gauss,
        quantile(ratio, ONE_SIGMA),
        sparsification(count, relative, own_relative, relative_sum, root=False),
        sparsification(count, square, own_square, square_sum, root=True),
    )
