"""The depth metrics: one definition of each."""

from collections.abc import Iterable
from dataclasses import dataclass, fields

import numpy as np
from jaxtyping import Float

CONSTANT_SHARE = 1e-5
"""A map that varies by less than this share of its mean counts as constant: the rest is rounding."""


@dataclass(frozen=True, kw_only=True)
class DepthErrors:
    """Depth errors over a set of pixels (Eigen et al. 2014).

    Attributes:
        abs_rel: mean |p - t| / t.
        sq_rel: mean (p - t)^2 / t, metres.
        rmse: sqrt(mean (p - t)^2), metres.
        rmse_log: sqrt(mean (log p - log t)^2).
        d1, d2, d3: share of pixels with max(p / t, t / p) below 1.25, 1.25^2, 1.25^3.
        images: number of images in the mean.
        pixels: number of pixels measured.
    """

    abs_rel: float
    sq_rel: float
    rmse: float
    rmse_log: float
    d1: float
    d2: float
    d3: float
    images: int
    pixels: int


def depth_errors(
    *, predicted_m: Float[np.ndarray, " N"], truth_m: Float[np.ndarray, " N"], images: int = 1
) -> DepthErrors:
    """Errors over the valid pixels of one image, or of several pooled images, in float64.

    Args:
        predicted_m, truth_m: depths > 0 in metres, at least one.
        images: number of images that the pixels come from.
    """
    predicted, truth = predicted_m.astype(np.float64), truth_m.astype(np.float64)
    difference = predicted - truth
    ratio = np.maximum(predicted / truth, truth / predicted)
    return DepthErrors(
        abs_rel=float(np.mean(np.abs(difference) / truth)),
        sq_rel=float(np.mean(difference**2 / truth)),
        rmse=float(np.sqrt(np.mean(difference**2))),
        rmse_log=float(np.sqrt(np.mean((np.log(predicted) - np.log(truth)) ** 2))),
        d1=float(np.mean(ratio < 1.25)),
        d2=float(np.mean(ratio < 1.25**2)),
        d3=float(np.mean(ratio < 1.25**3)),
        images=images,
        pixels=len(truth),
    )


def abs_rel(*, predicted_m: Float[np.ndarray, " N"], truth_m: Float[np.ndarray, " N"]) -> float:
    """Mean |p - t| / t."""
    return float(np.mean(np.abs(predicted_m.astype(np.float64) - truth_m) / truth_m))


def mean_errors(errors: Iterable[DepthErrors]) -> DepthErrors:
    """Mean of every error, with equal weight for each entry; images and pixels are summed.

    Raises:
        ValueError: if there is nothing to average.
    """
    entries = list(errors)
    if not entries:
        raise ValueError("no errors to average")
    means = {
        field.name: float(np.mean([getattr(entry, field.name) for entry in entries]))
        for field in fields(DepthErrors)
        if field.name not in ("images", "pixels")
    }
    return DepthErrors(**means, images=sum(e.images for e in entries), pixels=sum(e.pixels for e in entries))


def median_scale(*, predicted_m: Float[np.ndarray, " N"], truth_m: Float[np.ndarray, " N"]) -> float:
    """median(truth) / median(prediction), the factor on predictions in the median scaling of Zhou et al. 2017."""
    return float(np.median(truth_m)) / float(np.median(predicted_m))


@dataclass(frozen=True)
class AffineFit:
    """An affine fit: true disparity = scale * disparity + shift, in 1/m."""

    scale: float
    shift: float


def fit_affine_disparity(*, disparity: Float[np.ndarray, " N"], truth_m: Float[np.ndarray, " N"]) -> AffineFit:
    """Least-squares scale and shift of a relative disparity to 1 / truth (Ranftl et al. 2020, MiDaS, sec. 5).

    A disparity that is constant up to rounding gets scale 0, and the mean true disparity as its shift.
    """
    inverse = 1 / truth_m.astype(np.float64)
    mean = float(disparity.mean(dtype=np.float64))
    centred = disparity.astype(np.float64) - mean
    constant = np.abs(centred).max() <= CONSTANT_SHARE * abs(mean)
    scale = 0.0 if constant else float(centred @ inverse) / float(centred @ centred)
    return AffineFit(scale, float(inverse.mean()) - scale * mean)


def aligned_m(
    *, disparity: Float[np.ndarray, " N"], truth_m: Float[np.ndarray, " N"], range_m: tuple[float, float]
) -> Float[np.ndarray, " N"]:
    """Depth of a disparity after its own least-squares fit to truth, within the range."""
    return affine_depth_m(disparity, fit_affine_disparity(disparity=disparity, truth_m=truth_m), range_m)


def affine_depth_m(
    disparity: Float[np.ndarray, "*shape"], fit: AffineFit, range_m: tuple[float, float]
) -> Float[np.ndarray, "*shape"]:
    """Depth of a fitted disparity, clipped to the range; a fitted disparity at or below zero gives the far end."""
    inverse = fit.scale * disparity + fit.shift
    near = 1 / range_m[0] if range_m[0] else np.inf
    return 1 / np.clip(inverse, 1 / range_m[1], near)
