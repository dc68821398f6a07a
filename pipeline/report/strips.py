"""The strips of a report: camera, LiDAR, teacher, student and error, with metres at every pixel."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
from jaxtyping import UInt8
from markupsafe import Markup

from data_cache.files import count_text
from pipeline.report.drawing import Tick, scale_ticks, webp_uri
from pipeline.report.page import Section, asset, render
from pipeline.report.pictures_file import LOG_STEP, NEAREST_M, Grid, ShownFrame, ShownView
from pipeline.report.tables import number
from stages.inference.colours import NO_DEPTH_RGB, DepthScale, colour_depth, depth_scale, error_colours

COLOUR_COUNT = 256
ERROR_LIMIT = 0.5
"""Larger relative errors have the colour of this one."""


@dataclass(frozen=True)
class Layer:
    """One picture of a view, drawn from depth.

    Attributes:
        label: on the picture.
        kind: depth of one grid, error of one grid against another, or sigma.
        of, against: names of the grids.
        note: what it shows, as a tooltip.
        absent: why there is no picture, in its place.
    """

    label: str
    kind: str = ""
    of: str = ""
    against: str = ""
    note: str = ""
    absent: str = ""


@dataclass(frozen=True)
class ViewStrip:
    """All pictures of one camera in a frame; `image` is None if the camera is missing."""

    camera: str
    image: str | None
    aspect: str
    layers: tuple[Layer, ...]
    grids: Mapping[str, Grid]


@dataclass(frozen=True)
class FrameStrip:
    """All pictures of a frame, its views from left to right.

    Attributes:
        frame_id: which.
        place: its rank and error, in words.
        note: what holds for all of its pictures; may be empty.
        views: one per camera of the rig.
    """

    frame_id: str
    place: str
    note: str
    views: tuple[ViewStrip, ...]

    @property
    def grids(self) -> list[dict[str, object]]:
        """The depth grids of each view, by name, for JSON."""
        return [{name: asdict(grid) for name, grid in view.grids.items()} for view in self.views]


def frame_section(name: str, title: str, frames: Sequence[FrameStrip], range_m: tuple[float, float]) -> Section:
    """A section of frames in order, under colour bars in metres and in percent."""
    scale = depth_scale(range_m)
    colours = {
        "depth": _depth_colours(scale).tolist(),
        "error": error_colours(COLOUR_COUNT).tolist(),
        "none": NO_DEPTH_RGB,
        "near_m": scale.near_m,
        "far_m": scale.far_m,
        "error_limit": ERROR_LIMIT,
        "nearest_m": NEAREST_M,
        "log_step": LOG_STEP,
    }
    body = render("frames.html.j2", name=name, bars=_colour_bars(range_m), colours=colours, frames=frames)
    return Section(name, title, body, (asset("frames.css"),), (asset("frames.js"),))


def lead_strip(
    name: str,
    frames: Sequence[FrameStrip],
    index: int,
    range_m: tuple[float, float],
    shown: Callable[[Layer], bool],
) -> Markup:
    """A few pictures of one frame for the top of a page that has `frame_section(name, ..., frames, ...)`.

    The section brings styles, script and depth, which are not repeated.

    Args:
        name, frames, range_m: of that section.
        index: of the frame.
        shown: whether a layer is.
    """
    frame = frames[index]
    views = tuple(replace(view, layers=tuple(filter(shown, view.layers))) for view in frame.views)
    kinds = {layer.kind for view in views for layer in view.layers}
    bars = [bar for bar in _colour_bars(range_m) if bar["kind"] in kinds]
    lead = replace(frame, views=views, note="")
    return render("lead.html.j2", frame=lead, grids=f"{name}-{index + 1}-grids", bars=bars)


def middle_frame(frames: Sequence[ShownFrame]) -> int:
    """Index of the frame whose rank is nearest to the median; of the first frame if none is ranked."""
    return min(range(len(frames)), key=lambda i: _from_median(frames[i]))


def _from_median(frame: ShownFrame) -> float:
    return abs(frame.rank - _median_rank(frame)) if frame.rank else math.inf


def _median_rank(frame: ShownFrame) -> int:
    return (frame.ranked + 1) // 2


def _depth_colours(scale: DepthScale) -> UInt8[np.ndarray, "N 3"]:
    return np.asarray(colour_depth(np.geomspace(scale.near_m, scale.far_m, COLOUR_COUNT)[None], scale)[0])


def _colour_bars(range_m: tuple[float, float]) -> list[dict[str, object]]:
    scale = depth_scale(range_m)
    ticks = scale_ticks(scale, range_m)
    limit = f"{ERROR_LIMIT:.0%}".replace("%", " %")
    return [
        {
            "kind": "depth",
            "text": "Depth in metres, on one logarithmic scale for all pictures. Grey: no depth.",
            "uri": webp_uri(_depth_colours(scale)[None], lossless=True),
            "alt": f"Colour bar from yellow, {ticks[0].label} m, to dark blue, {ticks[-1].label} m",
            "ticks": ticks,
        },
        {
            "kind": "error",
            "text": "Error: how much too near (-) or too far (+). Dark: right.",
            "uri": webp_uri(error_colours(COLOUR_COUNT)[None], lossless=True),
            "alt": f"Colour bar from orange, {limit} too near, over dark, right, to light blue, {limit} too far",
            "ticks": _error_ticks(),
        },
    ]


def report_strip(frame: ShownFrame) -> FrameStrip:
    """The strip of a frame of one report."""
    fitted = {view.teacher_on_lidar for view in frame.views if view.teacher is not None}
    fits = {
        frozenset({True}): "to LiDAR",
        frozenset({False}): "to the student, as there is no LiDAR",
        frozenset({True, False}): "to LiDAR if there is any, else to the student",
    }
    note = f"Teacher: fitted per image, by scale and shift of disparity, {fits[frozenset(fitted)]}." if fitted else ""
    if any(view.sigma is not None for view in frame.views):
        sigma = "Sigma: how sure the student is, in the colour of an error of that size; 68 % of errors are smaller."
        note = f"{note} {sigma}".strip()
    lidar = any(view.lidar is not None for view in frame.views)
    views = tuple(_report_view(view, lidar=lidar) for view in frame.views)
    return FrameStrip(frame.frame_id, _place(frame), note, views)


def compared_strip(names: tuple[str, str], frames: tuple[ShownFrame, ShownFrame]) -> FrameStrip:
    """The strip of a frame that two reports show; image, LiDAR and teacher are those of the first."""
    place = "; ".join(f"{name}: {_place(frame)}" for name, frame in zip(names, frames, strict=True))
    second = {view.camera: view for view in frames[1].views}
    views = tuple(_compared_view(names, view, second[view.camera]) for view in frames[0].views if view.camera in second)
    return FrameStrip(frames[0].frame_id, place, "", views)


def _report_view(view: ShownView, *, lidar: bool) -> ViewStrip:
    """All pictures of a view; `lidar` says whether any view of the frame has some."""
    grids = _grids(view, {"student": view.student})
    layers = [_lidar(grids)] if lidar else []
    if "teacher" in grids:
        fit = "LiDAR" if view.teacher_on_lidar else "the student"
        layers.append(Layer("Teacher", "depth", "teacher", note=f"fitted to {fit}"))
    layers += [Layer("Student", "depth", "student", note="metric"), _error("Error", "student", grids)]
    if view.sigma is not None:
        grids["sigma"] = view.sigma
        layers.append(
            Layer("Sigma", "sigma", "sigma", note="68 % of errors are smaller; in the colour of such an error")
        )
    return _strip(view, grids, layers)


def _compared_view(names: tuple[str, str], view: ShownView, other: ShownView) -> ViewStrip:
    grids = _grids(view, {"first": view.student, "second": other.student})
    layers = [_lidar(grids), *([Layer("Teacher", "depth", "teacher")] if "teacher" in grids else [])]
    if len(grids.keys() & {"first", "second"}) == 2:
        keys = dict(zip(("first", "second"), names, strict=True))
        layers += [Layer(name, "depth", key) for key, name in keys.items()]
        layers += [_error(f"Error, {name}", key, grids) for key, name in keys.items() if "lidar" in grids]
        layers.append(Layer(f"{names[1]} against {names[0]}", "error", "second", "first"))
    return _strip(view, grids, layers)


def _grids(view: ShownView, students: Mapping[str, Grid | None]) -> dict[str, Grid]:
    grids = {"lidar": view.lidar, "teacher": view.teacher, **students}
    return {name: grid for name, grid in grids.items() if grid is not None}


def _strip(view: ShownView, grids: Mapping[str, Grid], layers: Sequence[Layer]) -> ViewStrip:
    sizes = [grid for name, grid in grids.items() if name != "lidar"]
    aspect = f"{sizes[0].width} / {sizes[0].height}" if sizes else "16 / 9"
    return ViewStrip(view.camera, view.image, aspect, tuple(layers), grids)


def _lidar(grids: Mapping[str, Grid]) -> Layer:
    return (
        Layer("LiDAR", "depth", "lidar", note="returns, enlarged")
        if "lidar" in grids
        else Layer("LiDAR", absent="no LiDAR")
    )


def _error(label: str, of: str, grids: Mapping[str, Grid]) -> Layer:
    if "lidar" in grids:
        return Layer(label, "error", of, "lidar", note="against LiDAR, at the nearest return")
    if "teacher" in grids:
        return Layer("Against teacher", "error", of, "teacher", note="there is no LiDAR")
    return Layer(label, absent="nothing to compare with")


def _place(frame: ShownFrame) -> str:
    known = []
    if frame.abs_rel is not None:
        known.append(f"AbsRel {number(frame.abs_rel)}")
    elif frame.disagreement is not None:
        known.append(f"disagreement with the teacher {number(frame.disagreement)}")
    if not frame.rank:
        return ", ".join(["not ranked", *known])
    names = {_median_rank(frame): "median", frame.ranked: "best", 1: "worst"}
    of = f"of {count_text(frame.ranked, 'frame')}"
    place = f"{names[frame.rank]} {of}" if frame.rank in names else f"number {frame.rank} {of}, from the worst"
    return ", ".join([place, *known])


def _error_ticks() -> tuple[Tick, ...]:
    ends = f"{ERROR_LIMIT * 100:.0f} %"
    half = f"{ERROR_LIMIT * 50:.0f} %"
    return (
        Tick(0.0, f"≤ -{ends}"),
        Tick(0.25, f"-{half}"),
        Tick(0.5, "0"),
        Tick(0.75, f"+{half}"),
        Tick(1.0, f"≥ +{ends}"),
    )
