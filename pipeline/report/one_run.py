"""The report of stage three: the same numbers as JSON for machines, Markdown for terminals and HTML for people."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from markupsafe import Markup

from data_cache.files import count_text, write_atomically
from pipeline.recipe.run_folder import RunFolder
from pipeline.report.baseline import Supervised, supervised_baseline
from pipeline.report.markdown import markdown_page, markdown_table
from pipeline.report.page import Headline, Section, page, table_section
from pipeline.report.pictures_file import ShownFrame, read_frames, shown_frame, write_frames
from pipeline.report.results_file import NAME, ReportFile, read_report_file, write_report_file
from pipeline.report.strips import frame_section, lead_strip, middle_frame, report_strip
from pipeline.report.tables import (
    NO_LIDAR,
    NO_VALUE,
    against_teacher,
    better,
    details,
    number,
    pixels_text,
    provenance_table,
    quarantined_table,
    results,
    summary,
    time_text,
    title,
)
from pipeline.viewers.cloud_page import cloud_section, viewer_script
from stages.evaluation.results import EvaluateReport, Evaluation, Latency
from stages.inference.point_cloud import PointCloud

HTML, CLOUD = "report.html", "cloud.html"
HEADLINE_LIMIT = 4


def report_table(report: EvaluateReport) -> str:
    """The table of results in Markdown, aligned for a terminal; without LiDAR, the numbers that need none."""
    table = markdown_table(results(report))
    return table if report.student is not None else f"{NO_LIDAR}\n\n{table}"


def write_report(
    folder: Path, evaluation: Evaluation, provenance: Mapping[str, object], cloud: tuple[str, PointCloud] | None = None
) -> Path:
    """Write report.json, pictures.json, cloud.html, report.md and report.html, each in one step.

    A number that is not finite becomes null in JSON, which has no NaN, and a dash in tables: one such number does not
    lose hours of measuring.

    Args:
        folder: RUN/eval; created if it is missing.
        evaluation: what was measured, with its pictures.
        provenance: where the numbers come from; values are texts, numbers, or mappings and lists of them.
        cloud: name of a frame and its points, for the point viewer of the page.

    Returns:
        The path of report.html.
    """
    if cloud is not None:
        label = f"The ring of frame {cloud[0]} as the student sees it"
        write_atomically(folder / CLOUD, cloud_section(cloud[1].points_m, cloud[1].rgb, label, with_script=False))
    else:
        (folder / CLOUD).unlink(missing_ok=True)
    write_report_file(folder, evaluation.report, provenance)
    write_frames(folder, [shown_frame(pictures) for pictures in evaluation.pictures])
    write_atomically(folder / "report.md", markdown_report(evaluation.report, provenance))
    return rewrite_html(folder)


def rewrite_html(folder: Path, out: Path | None = None) -> Path:
    """Make report.html from the files of stage three, report.json, pictures.json, cloud.html, and the run's ablation.

    Args:
        folder: RUN/eval.
        out: file to write instead of report.html.

    Returns:
        The path of the page.

    Raises:
        SourceError: if there is no report, or a file is damaged.
    """
    file = read_report_file(folder / NAME)
    baseline = supervised_baseline(RunFolder(folder.parent), file.report)
    path = out or folder / HTML
    write_atomically(path, html_report(file, read_frames(folder), baseline, _cloud_sections(folder)))
    return path


def _cloud_sections(folder: Path) -> list[Section]:
    if not (folder / CLOUD).is_file():
        return []
    body = Markup((folder / CLOUD).read_text(encoding="utf-8"))
    return [Section("point-cloud", "Point cloud", body, scripts=(viewer_script(),))]


def markdown_report(report: EvaluateReport, provenance: Mapping[str, object]) -> str:
    """All tables of the report in Markdown."""
    tables = [
        results(report),
        *details(report),
        quarantined_table(report.quarantined),
        provenance_table(provenance),
    ]
    return markdown_page(title(report), summary(report), tables)


def html_report(
    file: ReportFile, frames: Sequence[ShownFrame], baseline: Supervised | None, more: Sequence[Section] = ()
) -> str:
    """The report as one page that loads nothing: styles, scripts and pictures are inside.

    It begins with the median frame, then the numbers to read first.

    Args:
        file: what was measured.
        frames: to show, worst first.
        baseline: from the ablation of the same run, for the headline.
        more: sections that come after the frames.
    """
    report = file.report
    tables = {"results": results(report), **{_anchor(table.title): table for table in details(report)}}
    pictures, lead = [], None
    if frames:
        strips = [report_strip(frame) for frame in frames]
        pictures.append(frame_section("frames", "Frames, worst first", strips, report.range_m))
        lead = lead_strip("frames", strips, middle_frame(frames), report.range_m, lambda layer: layer.of == "student")
    sections = [
        *(table_section(table, name) for name, table in tables.items()),
        *pictures,
        *more,
        table_section(quarantined_table(report.quarantined), "quarantined"),
        table_section(provenance_table(file.provenance), "provenance"),
    ]
    return page(title(report), summary(report), headlines(report, baseline), sections, lead)


def headlines(report: EvaluateReport, baseline: Supervised | None) -> list[Headline]:
    """The numbers to read first, HEADLINE_LIMIT at most; what was not measured has none."""
    found = []
    if report.student is not None:
        errors = report.student.metric.mean
        found += [
            Headline("AbsRel", number(errors.abs_rel), "metric depth at LiDAR returns, lower is better"),
            _gain(errors.abs_rel, baseline)
            if baseline is not None
            else Headline("d1", number(errors.d1), "within 25 % at LiDAR returns, higher is better"),
        ]
    elif report.disagreement is not None:
        unlike = number(report.disagreement.mean.abs_rel)
        found.append(Headline("Disagreement", unlike, "AbsRel between student and teacher, after scale and shift"))
    neighbours = number(report.consistency.overlap_abs_rel)
    found.append(Headline("Neighbours", neighbours, "difference of depth between adjacent cameras, lower is better"))
    if report.latency is not None:
        found.append(_latency(report.latency))
    if report.student is not None:
        found.append(Headline("RMSE", f"{number(report.student.metric.mean.rmse, 2)} m", "lower is better"))
    return [headline for headline in found if not headline.value.startswith(NO_VALUE)][:HEADLINE_LIMIT]


def _gain(abs_rel: float, baseline: Supervised) -> Headline:
    spread = f" ±{baseline.deviation:.3f}" if baseline.deviation is not None else ""
    how = f"{count_text(baseline.steps, 'step')}, {count_text(baseline.seeds, 'seed')}"
    detail = f"AbsRel when LiDAR alone teaches: {number(baseline.abs_rel)}{spread}, {how}"
    return Headline("Against LiDAR alone", better(abs_rel, baseline.abs_rel), detail)


def _latency(latency: Latency) -> Headline:
    images = count_text(latency.images_per_rig, "image")
    detail = f"per rig of {images} at {pixels_text(latency.input)}, {latency.precision} on {latency.device}"
    if latency.teacher_ms_per_rig is not None:
        detail += f"; {against_teacher(latency, latency.teacher_ms_per_rig)}"
    return Headline("Latency", time_text(latency.student_ms_per_rig), detail)


def _anchor(title: str) -> str:
    return title.lower().replace(" ", "-")
