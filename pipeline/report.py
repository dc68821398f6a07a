"""The report of stage three: the same numbers as JSON for machines, Markdown for terminals and HTML for people."""

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import jinja2
import numpy as np
from jaxtyping import Float, UInt8

from data_cache.files import count_text, write_atomically
from pipeline.pictures import (
    draw_points,
    panel_depth,
    panel_image,
    panorama_order,
    scale_ticks,
    webp_uri,
)
from pipeline.tables import Table, markdown_table, markdown_text
from stages.checkpoint import Lineage
from stages.colours import DepthScale, colour_depth, depth_scale
from stages.evaluate import EvaluateReport, Evaluation, FramePictures
from stages.latency import Latency
from stages.metrics import DepthErrors
from stages.protocols import PROTOCOLS
from stages.regions import EDGE_RADIUS_PX
from stages.scores import Scores

ERROR_COLUMNS = ("AbsRel", "SqRel", "RMSE", "RMSElog", "d1", "d2", "d3", "images", "pixels")
COLUMN_GUIDE = "SqRel and RMSE in metres. AbsRel to RMSElog: lower is better; d1 to d3: higher is better."
TEACHER_NOTE = "aligned per image by least squares in disparity; not metric"
NO_VALUE = "-"
ZERO_SHOT_TITLE = "Zero-shot: a sanity check, not a benchmark"

Picture = UInt8[np.ndarray, "h w 3"]


@dataclass(frozen=True)
class Headline:
    """A number worth a large font."""

    label: str
    value: str
    detail: str


@dataclass(frozen=True)
class Panel:
    """One picture of a strip; without a picture, a box that says why."""

    text: str
    uri: str | None = None


@dataclass(frozen=True)
class Strip:
    """One kind of picture of a frame, left to right; None where the frame lacks the camera."""

    label: str
    note: str
    panels: tuple[Panel | None, ...]


@dataclass(frozen=True)
class Surround:
    """All pictures of a frame: strips over the same cameras."""

    frame_id: str
    abs_rel: str
    cameras: tuple[str, ...]
    strips: tuple[Strip, ...]


def report_table(report: EvaluateReport) -> str:
    """The table of results in Markdown, aligned for a terminal."""
    return markdown_table(_results(report))


def write_report(folder: Path, evaluation: Evaluation, provenance: Mapping[str, object]) -> Path:
    """Write report.json, report.md and report.html, each in one step.

    A number that is not finite becomes null in JSON and a dash in tables: JSON knows no NaN, and hours of measuring
    are not thrown away for one.

    Args:
        folder: where to; created if it is missing.
        evaluation: what was measured, with its pictures.
        provenance: where the numbers come from; values are texts, numbers, or mappings and lists of them.

    Returns:
        The path of report.html.
    """
    content = {**asdict(evaluation.report), "provenance": provenance}
    write_atomically(folder / "report.json", _json_text(content))
    write_atomically(folder / "report.md", markdown_report(evaluation.report, provenance))
    page = folder / "report.html"
    write_atomically(page, html_report(evaluation, provenance))
    return page


def zero_shot_table(trained_on: str, reports: Sequence[EvaluateReport]) -> str:
    """One row per target data set in Markdown, under a line that says what it is worth."""
    return f"{ZERO_SHOT_TITLE}\n\n{markdown_table(_zero_shot(trained_on, reports))}"


def write_zero_shot(
    folder: Path, lineage: Lineage, reports: Sequence[EvaluateReport], provenance: Mapping[str, object]
) -> Path:
    """Write zero_shot.json, with all that was measured, and zero_shot.md, one table.

    Args:
        folder: where to; created if it is missing.
        lineage: what the student has learnt from.
        reports: one per target.
        provenance: see `write_report`.

    Returns:
        The path of zero_shot.md.
    """
    content = {
        "title": ZERO_SHOT_TITLE,
        "trained_on": asdict(lineage),
        "targets": [asdict(report) for report in reports],
        "provenance": provenance,
    }
    write_atomically(folder / "zero_shot.json", _json_text(content))
    near_m, far_m = lineage.depth_range_m
    intro = (
        f"The student has learnt from {lineage.dataset} alone, {count_text(lineage.steps, 'step')}, LiDAR from"
        f" {near_m:g} to {far_m:g} m. It sees every target at the input size it was trained at, its depth scaled by"
        " focal length."
    )
    quarantined = _quarantined(zero_shot_quarantined(reports))
    tables = [_zero_shot(lineage.dataset, reports), quarantined, _provenance(provenance)]
    page = folder / "zero_shot.md"
    write_atomically(page, _markdown_page(ZERO_SHOT_TITLE, intro, tables))
    return page


def zero_shot_quarantined(reports: Sequence[EvaluateReport]) -> dict[str, str]:
    """Why frames were left out, by data set and frame."""
    return {f"{r.dataset} {frame_id}": reason for r in reports for frame_id, reason in r.quarantined.items()}


def markdown_report(report: EvaluateReport, provenance: Mapping[str, object]) -> str:
    """All tables of the report in Markdown."""
    tables = [_results(report), *_details(report), _quarantined(report.quarantined), _provenance(provenance)]
    return _markdown_page(f"Depth of {_subject(report)}", _summary(report), tables)


def html_report(evaluation: Evaluation, provenance: Mapping[str, object]) -> str:
    """The report as one page that loads nothing: styles and pictures are inside."""
    report = evaluation.report
    scale = depth_scale(report.range_m)
    bar_m = np.geomspace(scale.near_m, scale.far_m, 256)[None]
    # The suffix of the template would not switch escaping on by itself, and frame ids come from strangers.
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.j2").render(
        subject=_subject(report),
        summary=_summary(report),
        headlines=_headlines(report),
        results=_results(report),
        details=_details(report),
        surrounds=[_surround(pictures, scale) for pictures in evaluation.pictures],
        bar_uri=webp_uri(colour_depth(bar_m, scale), lossless=True),
        ticks=scale_ticks(scale, report.range_m),
        quarantined=_quarantined(report.quarantined),
        provenance=_provenance(provenance),
    )


def _subject(report: EvaluateReport) -> str:
    return f"{report.dataset}, split {report.split}"


def _summary(report: EvaluateReport) -> str:
    near_m, far_m = report.range_m
    flip = ", with flip averaging" if report.flip else ""
    return (
        f"Protocol {report.protocol}{flip}, {near_m:g} to {far_m:g} m:"
        f" {count_text(report.frames, 'frame')}, {count_text(report.images, 'image')},"
        f" {count_text(report.valid_pixels, 'valid pixel')}.{_masks(report)}"
    )


def _masks(report: EvaluateReport) -> str:
    """What the report says about self-occlusion masks; nothing under a protocol that has none."""
    wish = PROTOCOLS[report.protocol].masks
    if wish == "ignored":
        return ""
    if report.masked_images == report.images:
        return " Self-occlusion masks on all images."
    used = f"on {report.masked_images:,} of them" if report.masked_images else "on none of them"
    expected = ", although the protocol expects them on all" if wish == "expected" else ""
    return f" Self-occlusion masks {used}{expected}."


def _headlines(report: EvaluateReport) -> list[Headline]:
    errors, latency = report.student.metric.mean, report.latency
    headlines = [
        Headline("AbsRel", _number(errors.abs_rel), "metric, lower is better"),
        Headline("d1", _number(errors.d1), "within 25 %, higher is better"),
        Headline("RMSE", f"{_number(errors.rmse, 2)} m", "metric, lower is better"),
        Headline("Overlap", _number(report.consistency.overlap_abs_rel), "difference of adjacent cameras"),
    ]
    if latency is not None:
        detail = f"per rig of {count_text(latency.images_per_rig, 'image')}, {latency.precision} on {latency.device}"
        headlines.append(Headline("Latency", f"{latency.student_ms_per_rig:.1f} ms", detail))
        if latency.speedup is not None:
            headlines.append(Headline("Speed-up", f"{latency.speedup:.1f}x", "faster than the teacher"))
    return headlines


def _results(report: EvaluateReport) -> Table:
    student = report.student
    scores = {
        "student metric": student.metric,
        "student median-scaled": student.median_scaled,
        "student affine-invariant": student.affine_invariant,
    }
    if report.teacher is not None:
        scores["teacher affine-invariant"] = report.teacher.affine_invariant
    absent = "" if report.teacher is not None else " The teacher was not measured."
    note = f"Mean of the cameras. {COLUMN_GUIDE}{absent}"
    return _error_table("Results", note, "estimate", {name: entry.mean for name, entry in scores.items()})


def _details(report: EvaluateReport) -> list[Table]:
    metric, consistency = report.student.metric, report.consistency
    pairs = [*consistency.pairs.items(), ("mean of pairs", consistency.overlap_abs_rel)]
    return [
        _error_table(
            "Per camera",
            "Student, metric.",
            "camera",
            {**metric.per_camera, "mean of cameras": metric.mean},
        ),
        _error_table(
            "By distance",
            "Student, metric, by true distance in metres.",
            "distance",
            {f"{band} m": errors for band, errors in metric.by_distance_m.items()},
        ),
        *([_dense(report.dense_truth)] if report.dense_truth else []),
        Table(
            "Overlap consistency",
            "Student: relative difference of depth where two adjacent cameras see the same surface; lower is better.",
            ("pair", "AbsRel"),
            tuple((name, _number(value)) for name, value in pairs) if consistency.pairs else (),
            empty="No adjacent cameras see the same surface.",
        ),
        _latency_table(report.latency),
    ]


def _dense(scores: Mapping[str, Scores]) -> Table:
    names = {
        "all": "all pixels",
        "edges": f"within {EDGE_RADIUS_PX} px of a depth edge",
        "above_lidar": "above the LiDAR's highest beam",
        "at_lidar": "at LiDAR returns",
    }
    errors = {names[name]: entry.mean for name, entry in scores.items()}
    return _error_table(
        "Dense truth", "Student, metric, at its input size, where the source knows all.", "where", errors
    )


def _error_table(title: str, note: str, first: str, errors: Mapping[str, DepthErrors]) -> Table:
    rows = tuple((name, *_error_cells(entry)) for name, entry in errors.items())
    return Table(title, note, (first, *ERROR_COLUMNS), rows)


def _error_cells(errors: DepthErrors) -> tuple[str, ...]:
    values = (errors.abs_rel, errors.sq_rel, errors.rmse, errors.rmse_log, errors.d1, errors.d2, errors.d3)
    return (*(_number(value) for value in values), f"{errors.images:,}", f"{errors.pixels:,}")


def _latency_table(latency: Latency | None) -> Table:
    header = ("model", "ms per rig (p50)", "ms per rig (p95)", "rigs per second", "input (h x w)")
    if latency is None:
        return Table("Latency", "", header, (), empty="Not measured.")
    rows = [
        _latency_row("student", latency.student_ms_per_rig, latency.student_p95_ms_per_rig, latency.input),
    ]
    note = f"One rig of {count_text(latency.images_per_rig, 'image')}, {latency.precision} on {latency.device}."
    if latency.teacher_ms_per_rig is not None:
        rows.append(
            _latency_row("teacher", latency.teacher_ms_per_rig, latency.teacher_p95_ms_per_rig, latency.teacher_input)
        )
        note += f" The student is {_number(latency.speedup, 1)} times as fast as the teacher."
    return Table("Latency", note, header, tuple(rows))


def _latency_row(name: str, p50_ms: float, p95_ms: float | None, size: tuple[int, int] | None) -> tuple[str, ...]:
    pixels = f"{size[0]} x {size[1]}" if size is not None else NO_VALUE
    return (name, _number(p50_ms, 1), _number(p95_ms, 1), _number(1e3 / p50_ms, 1), pixels)


def _zero_shot(trained_on: str, reports: Sequence[EvaluateReport]) -> Table:
    rows = []
    for report in reports:
        metric, affine = report.student.metric.mean, report.student.affine_invariant.mean
        near_m, far_m = report.range_m
        counts = (f"{count:,}" for count in (report.frames, report.images, report.valid_pixels))
        errors = (metric.abs_rel, metric.rmse, metric.d1, affine.abs_rel)
        name = f"{trained_on} to {report.dataset} {report.split}"
        rows.append((name, *counts, f"{near_m:g}-{far_m:g}", *map(_number, errors)))
    note = (
        "Mean of the cameras. AbsRel, RMSE (metres) and d1 of the student's metres as they are; affine-invariant:"
        " aligned per image by least squares in disparity."
    )
    header = ("source to target", "frames", "images", "valid pixels", "range m", "AbsRel", "RMSE", "d1")
    return Table("Results", note, (*header, "AbsRel affine-invariant"), tuple(rows))


def _quarantined(quarantined: Mapping[str, str]) -> Table:
    return Table(
        "Quarantined frames",
        "Frames that could not be read; they are in none of the numbers." if quarantined else "",
        ("frame", "reason"),
        tuple(quarantined.items()),
        numeric=False,
    )


def _provenance(provenance: Mapping[str, object]) -> Table:
    rows = tuple((str(name), _plain_text(value)) for name, value in provenance.items())
    return Table("Provenance", "", ("what", "value"), rows, numeric=False, empty="Not recorded.")


def _surround(pictures: FramePictures, scale: DepthScale) -> Surround:
    def draw_image(i: int) -> Picture:
        return panel_image(pictures.image[i])

    def draw_lidar(i: int) -> Picture | None:
        depth_m = pictures.lidar_depth_m[i]
        return draw_points(draw_image(i), depth_m, scale) if depth_m.any() else None

    def draw_depth(depth_m: Float[np.ndarray, "H W"]) -> Picture | None:
        return colour_depth(panel_depth(depth_m), scale) if depth_m.any() else None

    strips = [
        _strip(pictures, "Camera", "", draw_image),
        _strip(pictures, "LiDAR", "points enlarged", draw_lidar, absent="no LiDAR point"),
    ]
    teacher_m, student_m = pictures.teacher_depth_m, pictures.student_depth_m
    if teacher_m is not None:
        absent = "no LiDAR point to align to"
        strips.append(_strip(pictures, "Teacher", TEACHER_NOTE, lambda i: draw_depth(teacher_m[i]), absent=absent))
    strips.append(_strip(pictures, "Student", "metric", lambda i: draw_depth(student_m[i])))
    order = panorama_order(len(pictures.camera_names))
    cameras = tuple(pictures.camera_names[i] for i in order)
    return Surround(pictures.frame_id, _number(pictures.student_abs_rel), cameras, tuple(strips))


def _strip(
    pictures: FramePictures, label: str, note: str, draw: Callable[[int], Picture | None], absent: str = "no depth"
) -> Strip:
    """Draw one strip; where the camera is there but nothing can be drawn, a box says what is absent."""

    def panel(i: int) -> Panel | None:
        if not pictures.view_valid[i]:
            return None
        picture = draw(i)
        if picture is None:
            return Panel(absent)
        return Panel(f"{label}, {pictures.camera_names[i]}", webp_uri(picture))

    return Strip(label, note, tuple(panel(i) for i in panorama_order(len(pictures.camera_names))))


def _markdown_page(title: str, intro: str, tables: Iterable[Table]) -> str:
    parts = [f"# {markdown_text(title)}", markdown_text(intro)]
    for table in tables:
        parts += [f"## {table.title}", markdown_text(table.note), markdown_table(table) if table.rows else table.empty]
    return "\n\n".join(part for part in parts if part) + "\n"


def _number(value: float | None, digits: int = 3) -> str:
    return NO_VALUE if value is None or not math.isfinite(value) else f"{value:.{digits}f}"


def _plain_text(value: object) -> str:
    if value is None:
        return NO_VALUE
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_plain_text(entry)}" for name, entry in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_plain_text, value))
    return str(value)


def _json_text(content: Mapping[str, object]) -> str:
    return json.dumps(_json_safe(content), indent=2, allow_nan=False) + "\n"


def _json_safe(value: object) -> object:
    """The same value in what JSON knows; other types as text."""
    if isinstance(value, Mapping):
        return {str(name): _json_safe(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_json_safe(entry) for entry in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, bool | int | str) else str(value)
