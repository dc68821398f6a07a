"""The fitted binning strategy: one increasing map per teacher, fitted to the LiDAR of training frames."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64, Int64
from torch.nn.functional import interpolate

from data_cache.errors import FrameError, SettingError, SurroundError
from data_cache.files import write_atomically
from data_cache.shards.records import unpack_depth_m
from data_cache.sources.base import Source
from stages.caching.products import look
from stages.caching.teacher_input import prepare_frame
from stages.compute.preemption import Preempted
from stages.student.checkpoint import difference_lines
from stages.targets.binning import AffineBinning, bend
from stages.teacher.base import Teacher

KNOT_COUNT = 33
QUANTILE_COUNT = 64
IMAGE_POINTS = 512
"""Points taken per image, spread evenly over its returns: neighbouring returns add little."""
LEAST_IMAGE_POINTS = 32
ROUNDS = 20
LEAST_SLOPE = 0.1
"""Share of the identity in the map: where LiDAR shows no difference, the teacher's own order is kept."""


class FitError(SurroundError):
    """A map cannot be fitted, or belongs to another recipe."""


@dataclass(frozen=True, eq=False)
class ImagePoints:
    """Pixels of one image where LiDAR returns.

    Attributes:
        u: the teacher's closed-form position there, in (0, 1).
        nearness: -log of the depth in metres.
    """

    u: Float64[np.ndarray, " N"]
    nearness: Float64[np.ndarray, " N"]


@dataclass(frozen=True)
class FittedBins:
    """The result of `surround fit-bins`: the map, the data it was fitted to, and its residuals.

    Attributes:
        made_with: teacher, frames and sizes it belongs to; compared before use.
        precision, runtime: those of the teacher, for the record.
        frames: training frames used.
        skipped: frames that could not be read, reason by frame id.
        images, points: numbers of images and points in the fit.
        residual_before, residual_after: root mean square error of log depth after the best scale and shift of u per
            image, for the closed form and for the fitted map; every image has equal weight.
        knots: see `stages.targets.binning.FittedBinning`.
    """

    made_with: Mapping[str, Any]
    precision: str
    frames: tuple[str, ...]
    skipped: Mapping[str, str]
    images: int
    points: int
    residual_before: float
    residual_after: float
    knots: tuple[float, ...]
    runtime: str = "torch"


def save_fitted(path: Path, fitted: FittedBins) -> None:
    """Write bins.json in one step. Raises WriteError."""
    write_atomically(path, json.dumps(asdict(fitted), indent=1, sort_keys=True) + "\n")


def load_fitted(path: Path) -> FittedBins:
    """Read bins.json.

    Raises:
        SettingError: if it does not exist.
        FitError: if it cannot be read.
    """
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
        table["knots"] = tuple(float(knot) for knot in table["knots"])
        table["frames"] = tuple(table["frames"])
        return FittedBins(**table)
    except FileNotFoundError as error:
        raise SettingError(
            f'bins.strategy = "fitted" needs a fitted map, and {path} is not there; run `surround fit-bins` with the'
            " same recipe, data and run folder first"
        ) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FitError(f"{path} cannot be read ({error!r}); delete it and run fit-bins again") from error


def require_made_with(path: Path, fitted: FittedBins, expected: Mapping[str, Any]) -> None:
    """Raise FitError, naming each difference, if a fitted map belongs to another teacher or recipe."""
    lines = difference_lines(fitted.made_with, expected, path.name)
    if lines:
        raise FitError(
            "\n".join(
                [
                    f"{path} was fitted under another recipe:",
                    *lines,
                    "Point --run at another folder, restore these values, or delete it and run fit-bins again.",
                ]
            )
        )


def fit_bins(
    source: Source,
    teacher: Teacher,
    frame_ids: Sequence[str],
    made_with: Mapping[str, Any],
    partials: Path,
    *,
    image_size: tuple[int, int],
    prob_size: tuple[int, int],
    depth_range_m: tuple[float, float],
    batch_images: int,
    on_frame: Callable[[], object] = lambda: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> FittedBins:
    """Pair the teacher's u with LiDAR in training frames and fit the map.

    Args:
        source, teacher: the data set and the model.
        frame_ids: frames to use.
        made_with: recorded in the result.
        partials: folder with one file per finished frame; a frame whose file exists is not processed again.
        image_size: the student's input size, at which LiDAR is projected.
        prob_size: (h, w) of the probabilities.
        depth_range_m: returns outside are left out.
        batch_images: images per forward pass.
        on_frame: called after each frame.
        should_stop: called before each frame.

    Raises:
        Preempted: if `should_stop` returns True; finished frames are kept.
        FitError: if no image has enough returns.
        WriteError: if a partial file cannot be written.
    """
    images: list[ImagePoints] = []
    skipped: dict[str, str] = {}
    for index, frame_id in enumerate(frame_ids):
        if should_stop():
            raise Preempted(f"stopped after {index} of {len(frame_ids)} frames; they are kept")
        path = partials / f"{index:06d}.json"
        if not path.is_file():
            try:
                seen = sample_points(source, teacher, frame_id, image_size, prob_size, depth_range_m, batch_images)
                _save_partial(path, seen, "")
            except FrameError as error:
                _save_partial(path, [], str(error))
        table = json.loads(path.read_text(encoding="utf-8"))
        images += [ImagePoints(np.array(image["u"]), np.array(image["nearness"])) for image in table["images"]]
        if table["reason"]:
            skipped[frame_id] = table["reason"]
        on_frame()
    if not images:
        raise FitError(
            f"none of the {len(frame_ids)} frames has an image with {LEAST_IMAGE_POINTS} LiDAR returns within"
            f" {depth_range_m[0]:g} to {depth_range_m[1]:g} m that the teacher orders"
            + (f"; {len(skipped)} could not be read, first: {next(iter(skipped.values()))}" if skipped else "")
        )
    knots = fit_knots(images)
    return FittedBins(
        made_with=dict(made_with),
        precision=teacher.precision,
        frames=tuple(frame_ids),
        skipped=skipped,
        images=len(images),
        points=sum(len(image.u) for image in images),
        residual_before=residual(images, None),
        residual_after=residual(images, knots),
        knots=knots,
        runtime=teacher.runtime,
    )


def sample_points(
    source: Source,
    teacher: Teacher,
    frame_id: str,
    image_size: tuple[int, int],
    prob_size: tuple[int, int],
    depth_range_m: tuple[float, float],
    batch_images: int,
) -> list[ImagePoints]:
    """Run the teacher on one frame and sample its u at LiDAR returns; see `fit_bins`. Raises FrameError.

    Images with few returns, or in which the teacher is constant or not finite, are left out, as are pixels where u is
    clipped.
    """
    frame = prepare_frame(source, frame_id, teacher.input_size, image_size)
    batches = range(0, len(frame.teacher_images), batch_images)
    seen = [
        view
        for begin in batches
        for view in look(teacher, frame.teacher_images[begin : begin + batch_images], prob_size, AffineBinning())
    ]
    points = []
    for i, view in zip(np.flatnonzero(frame.view_valid).tolist(), seen, strict=True):
        depth_m = unpack_depth_m(frame.lidar_depth[i])
        u = interpolate(view.u[None, None], size=image_size, mode="bilinear")[0, 0].numpy()
        chosen = (depth_m > depth_range_m[0]) & (depth_m < depth_range_m[1]) & (u > 0) & (u < 1)
        count = int(chosen.sum())
        if count >= LEAST_IMAGE_POINTS and view.finite and not view.constant:
            spread = np.linspace(0, count - 1, min(count, IMAGE_POINTS)).round().astype(np.int64)
            points.append(
                ImagePoints(u[chosen][spread].astype(np.float64), -np.log(depth_m[chosen][spread].astype(np.float64)))
            )
    return points


def fit_knots(images: Sequence[ImagePoints]) -> tuple[float, ...]:
    """Fit the increasing map f of [0, 1] onto itself for which f(u) is as linear as possible in log depth, per image.

    Each image has its own scale and shift. They and f are updated in turn: alternating conditional expectations
    (Breiman and Friedman 1985), where the expectation over u is an isotonic regression (pool adjacent violators) of
    means over quantiles of u. Every image has equal weight, however many returns it has.

    Returns:
        Values of f at KNOT_COUNT even positions, with a slope of at least LEAST_SLOPE; the identity if it fits no
        worse.
    """
    u = np.concatenate([image.u for image in images])
    weight = np.concatenate([np.full(len(image.u), 1 / len(image.u)) for image in images])
    edges = np.unique(np.quantile(u, np.linspace(0, 1, QUANTILE_COUNT + 1)[1:-1]))
    group = np.searchsorted(edges, u)
    mass = np.bincount(group, weight)
    there = mass > 0
    center = (np.bincount(group, weight * u)[there]) / mass[there]
    f, value = u, center
    starts = np.cumsum([len(image.u) for image in images])[:-1]
    for _ in range(ROUNDS):
        target = np.concatenate(
            [_line(image.nearness, at) for image, at in zip(images, np.split(f, starts), strict=True)]
        )
        value = isotonic(np.bincount(group, weight * target)[there] / mass[there], mass[there])
        # The scale and shift of f itself are arbitrary: its values at both ends of the data are kept fixed.
        rise = value[-1] - value[0]
        share = (value - value[0]) / rise if rise > 0 else np.linspace(0, 1, len(center))
        value = center[0] + (center[-1] - center[0]) * share
        f = np.interp(u, center, value)
    even = np.linspace(0, 1, KNOT_COUNT)
    fitted = np.interp(even, np.concatenate([[0.0], center, [1.0]]), np.concatenate([[0.0], value, [1.0]]))
    knots = tuple(np.round((1 - LEAST_SLOPE) * fitted + LEAST_SLOPE * even, 6).tolist())
    return knots if residual(images, knots) < residual(images, None) else tuple(np.round(even, 6).tolist())


def isotonic(value: Float64[np.ndarray, " N"], weight: Float64[np.ndarray, " N"]) -> Float64[np.ndarray, " N"]:
    """The non-decreasing sequence nearest to `value` in weighted least squares (pool adjacent violators)."""
    pools: list[tuple[float, float, int]] = []
    for v, w in zip(value.tolist(), weight.tolist(), strict=True):
        mean, mass, length = v, w, 1
        while pools and pools[-1][0] >= mean:
            other_mean, other_mass, other_length = pools.pop()
            mean = (mean * mass + other_mean * other_mass) / (mass + other_mass)
            mass, length = mass + other_mass, length + other_length
        pools.append((mean, mass, length))
    lengths: Int64[np.ndarray, " P"] = np.array([pool[2] for pool in pools], np.int64)
    fitted: Float64[np.ndarray, " N"] = np.repeat([pool[0] for pool in pools], lengths)
    return fitted


def residual(images: Sequence[ImagePoints], knots: tuple[float, ...] | None) -> float:
    """Root mean square error of log depth after the best scale and shift of u per image; see `FittedBins`."""
    squares = []
    for image in images:
        f = image.u if knots is None else bend(torch.from_numpy(image.u), knots).numpy()
        squares.append(float(((image.nearness - _line(f, image.nearness)) ** 2).mean()))
    return float(np.sqrt(np.mean(squares)))


def _line(x: Float64[np.ndarray, " N"], y: Float64[np.ndarray, " N"]) -> Float64[np.ndarray, " N"]:
    """Values at x of the least-squares line y(x); a negative slope is set to 0."""
    centered = x - x.mean()
    variance = float((centered**2).mean())
    slope = max(0.0, float((centered * (y - y.mean())).mean()) / variance) if variance > 0 else 0.0
    line: Float64[np.ndarray, " N"] = y.mean() + slope * centered
    return line


def _save_partial(path: Path, images: Sequence[ImagePoints], reason: str) -> None:
    table = {"images": [{k: v.tolist() for k, v in vars(image).items()} for image in images], "reason": reason}
    write_atomically(path, json.dumps(table) + "\n")
