"""Sparsification: does the error of what is left fall when the pixels that a student is least sure of are removed?

Pixels are put in order by histograms, so that a split of any size takes the same memory. Bins go from SMALLEST to
LARGEST in equal steps of the logarithm, 0.9 % wide. At the borders of bins a curve is exact; within a bin, where keys
differ by less than 0.9 %, the order counts as random.
"""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

BINS = 2048
SMALLEST, LARGEST = 1e-5, 1e3
"""Keys outside count as these ends: no error of depth in metres or as a share of it, and no sigma, comes near them."""
_STEP = math.log(LARGEST / SMALLEST) / BINS
REMOVED = np.arange(100) / 100
"""Shares of pixels that are removed, one after the other."""


@dataclass(frozen=True)
class Sparsification:
    """The areas around the sparsification curve of one error, as shares of the error of all pixels.

    The curve is the error of the pixels that are left when the share r of least sure ones is removed, r = 0, 0.01, ...,
    0.99. The oracle removes the pixels with the largest errors first, a random order leaves the error as it is.

    Attributes:
        ause: mean distance of the curve above the oracle's, 0 for a perfect order (area under the sparsification error,
            Ilg et al. 2018, arXiv 1802.07095, who divide by the error of all pixels, too).
        aurg: mean distance of the curve below that of a random order, below 0 if the order is worse (area under the
            random gain, Poggi et al. 2020, arXiv 2005.06209; there in the unit of the error).
        of_random: ause / (ause + aurg): 0 for the oracle, 1 for a random order.
    """

    ause: float
    aurg: float
    of_random: float


def bins_of(keys: Float[np.ndarray, " N"]) -> Int[np.ndarray, " N"]:
    """The bin of each key."""
    inside = np.clip(keys, SMALLEST, LARGEST)
    found: np.ndarray = np.minimum((np.log(inside / SMALLEST) / _STEP).astype(np.int64), BINS - 1)
    return found


def summed(bins: Int[np.ndarray, " N"], values: Float[np.ndarray, " N"] | None = None) -> Float[np.ndarray, " BINS"]:
    """The sum of the values in each bin; without values, their number."""
    return np.bincount(bins, values, BINS).astype(np.float64)


def quantile(count: Float[np.ndarray, " BINS"], share: float) -> float:
    """The key below which a share of all pixels lies, right to 0.5 %; NaN without pixels."""
    if not count.any():
        return math.nan
    at = float(np.interp(share * count.sum(), np.concatenate([[0], np.cumsum(count)]), np.arange(BINS + 1)))
    return SMALLEST * math.exp(at * _STEP)


def sparsification(
    count: Float[np.ndarray, " BINS"],
    error: Float[np.ndarray, " BINS"],
    own_count: Float[np.ndarray, " BINS"],
    own_error: Float[np.ndarray, " BINS"],
    *,
    root: bool,
) -> Sparsification:
    """Compare the order by sigma with that by the error itself.

    Args:
        count, error: number of pixels, and sum of their errors, by sigma.
        own_count, own_error: the same by the error.
        root: errors are squares, and the error of a set is the root of their mean.
    """
    curve, oracle = _left(count, error), _left(own_count, own_error)
    if root:
        curve, oracle = np.sqrt(curve), np.sqrt(oracle)
    start = curve[0]
    if not start > 0:
        return Sparsification(math.nan, math.nan, math.nan)
    ause, aurg = float(np.mean(curve - oracle) / start), float(np.mean(start - curve) / start)
    return Sparsification(ause, aurg, ause / (ause + aurg) if ause + aurg > 0 else math.nan)


def _left(count: Float[np.ndarray, " BINS"], error: Float[np.ndarray, " BINS"]) -> Float[np.ndarray, " R"]:
    """Mean error of the pixels with the smallest keys that are left after each of REMOVED."""
    kept = (1 - REMOVED) * count.sum()
    below, total = (np.concatenate([[0.0], np.cumsum(values)]) for values in (count, error))
    left: np.ndarray = np.interp(kept, below, total) / np.maximum(kept, 1e-300)
    return left
