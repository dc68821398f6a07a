"""One table of several reports, if their numbers compare."""

from collections.abc import Sequence
from pathlib import Path

from data_cache.files import count_text
from pipeline.errors import RecipeError
from pipeline.report.markdown import Table, markdown_table, markdown_text
from pipeline.report.results_file import ReportFile, find_report, read_report_file
from pipeline.report.tables import ERRORS, NO_LIDAR, number
from stages.evaluation.metrics import DepthErrors
from stages.evaluation.protocols import PROTOCOLS
from stages.evaluation.results import EvaluateReport, StudentScores
from stages.evaluation.scores import Scores

SAME = ("dataset", "split", "protocol", "flip", "range_m", "frames", "images", "masked_images")
"""Keys of report.json that must be equal in reports that compare."""
OVERLAP = ("overlap", "overlap, gross", "compared")
"""Headings of the agreement of neighbours: AbsRel, AbsRel with gross differences, share of points in the first."""
ALIGNMENTS = {"metric": "metric", "median_scaled": "median-scaled", "affine_invariant": "affine-invariant"}


def read_comparable(paths: Sequence[Path]) -> list[ReportFile]:
    """Read several reports whose numbers compare.

    Args:
        paths: run folders, or report.json files.

    Raises:
        SourceError: if a report is missing, or a file is no report.
        RecipeError: if reports differ in anything that their numbers depend on, naming each difference.
    """
    files = [read_report_file(find_report(path)) for path in paths]
    first = files[0]
    differences = [
        f"  {key}: {expected} in {first.path}, {found} in {file.path}"
        for file in files[1:]
        for key in SAME
        if (found := getattr(file.report, key)) != (expected := getattr(first.report, key))
    ]
    if differences:
        raise RecipeError("these reports do not compare:\n" + "\n".join(differences) + "\nmake one table per kind")
    return files


def run_names(files: Sequence[ReportFile]) -> list[str]:
    """The name of each report's run folder, or the whole path if two have the same name."""
    short = [file.name for file in files]
    return [name if short.count(name) == 1 else str(file.path) for name, file in zip(short, files, strict=True)]


def compare(paths: Sequence[Path]) -> str:
    """A Markdown table of the student's errors in several reports, under a line that says how they were measured.

    Each report has the rows that its protocol asks for; without LiDAR, the numbers that need none.

    Args:
        paths: run folders, or report.json files.

    Raises:
        SourceError, RecipeError: see `read_comparable`.
    """
    files = read_comparable(paths)
    first = files[0].report
    return f"{markdown_text(measured_how(first))}\n\n{markdown_table(results_of(files, run_names(files)))}"


def measured_how(report: EvaluateReport) -> str:
    """How reports that compare were measured."""
    near_m, far_m = report.range_m
    flip = ", with flip averaging" if report.flip else ""
    how = (
        f"{report.dataset}, split {report.split}, protocol {report.protocol}{flip}, {near_m:g} to {far_m:g} m:"
        f" {count_text(report.frames, 'frame')}"
    )
    if report.student is None:
        return f"{how}. {NO_LIDAR}"
    masks = f", self-occlusion masks on {report.masked_images:,} of them" if report.masked_images else ""
    return f"{how}, {count_text(report.images, 'image')}{masks}."


def results_of(files: Sequence[ReportFile], names: Sequence[str]) -> Table:
    """The rows of each report that its protocol asks for; without LiDAR, the numbers that need none."""
    return _results(files, names) if files[0].report.student is not None else _without_lidar(files, names)


def _results(files: Sequence[ReportFile], names: Sequence[str]) -> Table:
    rows = [
        (
            name,
            ALIGNMENTS[alignment],
            *(number(getattr(_mean(file.report.student, alignment), key)) for key in ERRORS),
            *_overlap(file.report),
            f"{file.report.valid_pixels:,}",
        )
        for name, file in zip(names, files, strict=True)
        for alignment in PROTOCOLS[file.report.protocol].headline
    ]
    return Table("Results", "", ("run", "student", *ERRORS.values(), *OVERLAP, "pixels"), tuple(rows))


def _mean(student: StudentScores | None, alignment: str) -> DepthErrors:
    # Reports that compare have the same number of images: all of them have scores, or none.
    assert student is not None
    scores: Scores = getattr(student, alignment)
    return scores.mean


def _without_lidar(files: Sequence[ReportFile], names: Sequence[str]) -> Table:
    rows = []
    for name, file in zip(names, files, strict=True):
        unlike = file.report.disagreement
        values = (unlike.mean.abs_rel, unlike.mean.d1) if unlike is not None else (None, None)
        rows.append((name, *map(number, values), *_overlap(file.report)))
    return Table("Results", "", ("run", "disagreement with the teacher", "d1", *OVERLAP), tuple(rows))


def _overlap(report: EvaluateReport) -> tuple[str, ...]:
    """The cells under OVERLAP."""
    found = report.consistency
    return tuple(map(number, (found.overlap_abs_rel, found.overlap_with_gross, found.overlap_share)))
