"""One table of several reports, where their numbers compare."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_cache.errors import SourceError
from data_cache.files import count_text
from pipeline.errors import RecipeError
from pipeline.report_file import read_report
from pipeline.tables import Table, markdown_table, markdown_text
from stages.protocols import PROTOCOLS

SAME = ("dataset", "split", "protocol", "flip", "range_m", "frames", "images", "masked_images")
"""What reports must have in common, as report.json calls it."""
ALIGNMENTS = {"metric": "metric", "median_scaled": "median-scaled", "affine_invariant": "affine-invariant"}
ERRORS = {
    "abs_rel": "AbsRel",
    "sq_rel": "SqRel",
    "rmse": "RMSE",
    "rmse_log": "RMSElog",
    "d1": "d1",
    "d2": "d2",
    "d3": "d3",
}


@dataclass(frozen=True, eq=False)
class _Report:
    """A report.json: where it lies, what is common to a table, and its mean errors by alignment."""

    path: Path
    common: Mapping[str, Any]
    errors: Mapping[str, Mapping[str, float | None]]
    valid_pixels: int
    overlap: float | None


def compare(paths: Sequence[Path]) -> str:
    """A Markdown table of the student's errors in several reports, a line above it saying how they were measured.

    The rows of each report are those that its protocol is about.

    Args:
        paths: run folders, or report.json files.

    Raises:
        SourceError: if there is no report, or a file is none.
        RecipeError: if reports differ in anything that their numbers depend on, naming each difference.
    """
    reports = [_read(path) for path in paths]
    first = reports[0].common
    differences = [
        f"  {key}: {first[key]} in {reports[0].path}, {report.common[key]} in {report.path}"
        for report in reports[1:]
        for key in SAME
        if report.common[key] != first[key]
    ]
    if differences:
        raise RecipeError("these reports do not compare:\n" + "\n".join(differences) + "\nmake a table of each kind")
    names = _names([report.path for report in reports])
    rows = tuple(
        (
            name,
            ALIGNMENTS[alignment],
            *(_number(report.errors[alignment][key]) for key in ERRORS),
            _number(report.overlap),
            f"{report.valid_pixels:,}",
        )
        for name, report in zip(names, reports, strict=True)
        for alignment in PROTOCOLS[first["protocol"]].headline
    )
    header = ("run", "student", *ERRORS.values(), "overlap", "pixels")
    near_m, far_m = first["range_m"]
    masks = f", self-occlusion masks on {first['masked_images']:,} of them" if first["masked_images"] else ""
    flip = ", with flip averaging" if first["flip"] else ""
    intro = (
        f"{first['dataset']}, split {first['split']}, protocol {first['protocol']}{flip}, {near_m:g} to {far_m:g} m:"
        f" {count_text(first['frames'], 'frame')}, {count_text(first['images'], 'image')}{masks}."
    )
    return f"{markdown_text(intro)}\n\n{markdown_table(Table('', '', header, rows))}"


def _read(path: Path) -> _Report:
    file = path / "eval" / "report.json" if path.is_dir() else path
    content = read_report(file, ALIGNMENTS, ERRORS)
    # Reports from before there were masks do not name them.
    common = {key: content[key] for key in SAME if key != "masked_images"}
    common["masked_images"] = content.get("masked_images", 0)
    student = content["student"]
    errors = {name: {key: student[name]["mean"][key] for key in ERRORS} for name in ALIGNMENTS}
    report = _Report(file, common, errors, content["valid_pixels"], content["consistency"]["overlap_abs_rel"])
    if common["protocol"] not in PROTOCOLS:
        raise SourceError(f"{file}: protocol {common['protocol']!r} is none of {', '.join(PROTOCOLS)}")
    return report


def _names(files: Sequence[Path]) -> list[str]:
    """The run folder of each report, or its whole path where two are called the same."""
    short = [file.resolve().parents[1].name for file in files]
    return [name if short.count(name) == 1 else str(file) for name, file in zip(short, files, strict=True)]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
