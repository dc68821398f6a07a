"""The report of stage three: the same numbers as JSON for machines, Markdown for terminals and HTML for people."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
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
from pipeline.report_file import write_report_file
from pipeline.report_tables import (
    NO_LIDAR,
    details,
    number,
    provenance_table,
    quarantined_table,
    results,
    subject,
    summary,
    without_lidar,
)
from pipeline.tables import markdown_page, markdown_table
from stages.colours import DepthScale, colour_depth, depth_scale
from stages.results import EvaluateReport, Evaluation, FramePictures

TEACHER_NOTE = "aligned per image by least squares in disparity; not metric"

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
    """The table of results in Markdown, aligned for a terminal; without LiDAR, what can be told without."""
    if report.student is not None:
        return markdown_table(results(report))
    return f"{NO_LIDAR}\n\n{markdown_table(without_lidar(report))}"


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
    write_report_file(folder, evaluation.report, provenance)
    write_atomically(folder / "report.md", markdown_report(evaluation.report, provenance))
    page = folder / "report.html"
    write_atomically(page, html_report(evaluation, provenance))
    return page


def markdown_report(report: EvaluateReport, provenance: Mapping[str, object]) -> str:
    """All tables of the report in Markdown."""
    tables = [
        results(report),
        *details(report),
        quarantined_table(report.quarantined),
        provenance_table(provenance),
    ]
    return markdown_page(f"Depth of {subject(report)}", summary(report), tables)


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
        subject=subject(report),
        summary=summary(report),
        headlines=_headlines(report),
        results=results(report),
        details=details(report),
        surrounds=[_surround(pictures, scale) for pictures in evaluation.pictures],
        bar_uri=webp_uri(colour_depth(bar_m, scale), lossless=True),
        ticks=scale_ticks(scale, report.range_m),
        quarantined=quarantined_table(report.quarantined),
        provenance=provenance_table(provenance),
    )


def _headlines(report: EvaluateReport) -> list[Headline]:
    latency, headlines = report.latency, []
    if report.student is not None:
        errors = report.student.metric.mean
        headlines += [
            Headline("AbsRel", number(errors.abs_rel), "metric, lower is better"),
            Headline("d1", number(errors.d1), "within 25 %, higher is better"),
            Headline("RMSE", f"{number(errors.rmse, 2)} m", "metric, lower is better"),
        ]
    if report.disagreement is not None:
        unlike = number(report.disagreement.mean.abs_rel)
        headlines.append(Headline("Disagreement", unlike, "of student and teacher, after scale and shift"))
    headlines.append(
        Headline("Overlap", number(report.consistency.overlap_abs_rel), "difference of adjacent cameras"),
    )
    if latency is not None:
        detail = f"per rig of {count_text(latency.images_per_rig, 'image')}, {latency.precision} on {latency.device}"
        headlines.append(Headline("Latency", f"{latency.student_ms_per_rig:.1f} ms", detail))
        if latency.speedup is not None:
            headlines.append(Headline("Speed-up", f"{latency.speedup:.1f}x", "faster than the teacher"))
    return headlines


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
        note = TEACHER_NOTE if all(pictures.teacher_on_lidar) else f"{TEACHER_NOTE}; to the student where without LiDAR"
        strips.append(_strip(pictures, "Teacher", note, lambda i: draw_depth(teacher_m[i])))
    strips.append(_strip(pictures, "Student", "metric", lambda i: draw_depth(student_m[i])))
    order = panorama_order(len(pictures.camera_names))
    cameras = tuple(pictures.camera_names[i] for i in order)
    return Surround(pictures.frame_id, number(pictures.student_abs_rel), cameras, tuple(strips))


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
