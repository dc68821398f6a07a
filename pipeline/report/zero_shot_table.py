"""The table of `surround zero-shot`, as JSON and Markdown."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from data_cache.files import count_text, write_atomically
from pipeline.report.markdown import Table, markdown_page, markdown_table
from pipeline.report.results_file import json_text
from pipeline.report.tables import number, provenance_table, quarantined_table
from stages.evaluation.results import EvaluateReport, against_lidar
from stages.student.checkpoint import Lineage

ZERO_SHOT_TITLE = "Zero-shot: a sanity check, not a benchmark"


def zero_shot_table(trained_on: str, reports: Sequence[EvaluateReport]) -> str:
    """One row per target data set in Markdown, under a title that says what it is worth.

    Raises:
        EvaluationError: if a report has no scores against LiDAR.
    """
    return f"{ZERO_SHOT_TITLE}\n\n{markdown_table(_zero_shot(trained_on, reports))}"


def write_zero_shot(
    folder: Path, lineage: Lineage, reports: Sequence[EvaluateReport], provenance: Mapping[str, object]
) -> Path:
    """Write zero_shot.json, with all that was measured, and zero_shot.md, one table.

    Args:
        folder: to write to; created if it is missing.
        lineage: what the student has learnt from.
        reports: one per target.
        provenance: where the numbers come from, see `write_report`.

    Returns:
        The path of zero_shot.md.
    """
    content = {
        "title": ZERO_SHOT_TITLE,
        "trained_on": asdict(lineage),
        "targets": [asdict(report) for report in reports],
        "provenance": provenance,
    }
    write_atomically(folder / "zero_shot.json", json_text(content))
    near_m, far_m = lineage.depth_range_m
    intro = (
        f"The student has learnt from {lineage.dataset} alone, {count_text(lineage.steps, 'step')}, LiDAR from"
        f" {near_m:g} to {far_m:g} m. It sees every target at the input size of its training; its depth is"
        " scaled by focal length."
    )
    tables = [
        _zero_shot(lineage.dataset, reports),
        quarantined_table(zero_shot_quarantined(reports)),
        provenance_table(provenance),
    ]
    page = folder / "zero_shot.md"
    write_atomically(page, markdown_page(ZERO_SHOT_TITLE, intro, tables))
    return page


def zero_shot_quarantined(reports: Sequence[EvaluateReport]) -> dict[str, str]:
    """The reasons of frames that were left out, by data set and frame."""
    return {f"{r.dataset} {frame_id}": reason for r in reports for frame_id, reason in r.quarantined.items()}


def _zero_shot(trained_on: str, reports: Sequence[EvaluateReport]) -> Table:
    rows: list[tuple[str, ...]] = []
    dense = any(report.dense_truth for report in reports)
    for report in reports:
        student = against_lidar(report)
        metric, affine = student.metric.mean, student.affine_invariant.mean
        near_m, far_m = report.range_m
        counts = (f"{count:,}" for count in (report.frames, report.images, report.valid_pixels))
        errors = (metric.abs_rel, metric.rmse, metric.d1, affine.abs_rel)
        name = f"{trained_on} to {report.dataset} {report.split}"
        row = (name, *counts, f"{near_m:g}-{far_m:g}", *map(number, errors))
        rows.append((*row, *_dense(report)) if dense else row)
    note = (
        "Mean of the cameras. AbsRel, RMSE (metres) and d1 are of the metric depth; affine-invariant:"
        " aligned per image by least squares in disparity."
    )
    header = ("source to target", "frames", "images", "valid pixels", "range m", "AbsRel", "RMSE", "d1")
    more = ("dense AbsRel", "dense AbsRel affine-invariant") if dense else ()
    return Table("Results", note, (*header, "AbsRel affine-invariant", *more), tuple(rows))


def _dense(report: EvaluateReport) -> tuple[str, str]:
    """AbsRel against dense truth, metric and affine-invariant; dashes without dense truth."""
    metric, affine = (report.dense_truth or {}).get("all"), report.dense_affine_invariant
    return number(metric.mean.abs_rel if metric else None), number(affine.mean.abs_rel if affine else None)
