"""The page that compares two reports."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from markupsafe import Markup

from data_cache.files import count_text, write_atomically
from pipeline.report.baseline import is_supervised
from pipeline.report.compare import measured_how, read_comparable, results_of, run_names
from pipeline.report.markdown import Table
from pipeline.report.page import Headline, Section, page, table_section
from pipeline.report.pictures_file import read_frames
from pipeline.report.results_file import ReportFile
from pipeline.report.strips import compared_strip, frame_section, lead_strip, middle_frame
from pipeline.report.tables import DENSE_TRUTH, NO_VALUE, better, number, pixels_text, plain_text, time_text, title
from stages.evaluation.metrics import DepthErrors
from stages.evaluation.results import EvaluateReport, Latency

COMPARED = {"abs_rel": "AbsRel", "rmse": "RMSE m", "d1": "d1"}
HIGHER_IS_BETTER = {"d1"}
T = TypeVar("T")


def write_comparison(first: Path, second: Path, out: Path | None = None) -> Path:
    """Write a page that compares two runs: numbers, differences, and the frames that both show.

    Args:
        first, second: run folders, or report.json files.
        out: file to write; without it, compare-SECOND.html beside the report of the first.

    Returns:
        The path of the page.

    Raises:
        SourceError: if a report is missing, or a file is damaged.
        RecipeError: if the reports differ in anything that their numbers depend on.
    """
    files = read_comparable([first, second])
    path = out or files[0].path.parent / f"compare-{files[1].name}.html"
    write_atomically(path, html_comparison(files[0], files[1]))
    return path


def html_comparison(first: ReportFile, second: ReportFile) -> str:
    """The page of `write_comparison`."""
    short = run_names([first, second])
    names, labels = (short[0], short[1]), _labels(first, second, short)
    reports = (first.report, second.report)
    sections = [table_section(results_of([first, second], labels), "results")]
    sections += [table_section(table, name) for name, table in _differences(names, reports).items()]
    frames, lead = _frames(names, (first, second))
    sections += frames
    sections.append(table_section(_provenance(names, (first, second)), "provenance"))
    pair = f"{labels[1]} against {labels[0]}"
    summary = f"{measured_how(first.report)} Each difference is that of {pair}."
    return page(f"{pair}: {title(first.report)}", summary, _headlines(names, *reports), sections, lead)


def _labels(first: ReportFile, second: ReportFile, names: Sequence[str]) -> list[str]:
    """Names of two runs that also say which one was taught by LiDAR alone."""
    return [
        f"{name} (supervised)" if is_supervised(file.path.parent / "recipe.toml") else name
        for name, file in zip(names, (first, second), strict=True)
    ]


def _headlines(names: tuple[str, str], first: EvaluateReport, second: EvaluateReport) -> list[Headline]:
    """The numbers of the second run to read first, and how they differ from those of the first."""

    def headline(label: str, before: float, after: float, change: str) -> Headline:
        return Headline(label, number(after), f"{change}; {names[0]}: {number(before)}")

    found = []
    if first.student is not None and second.student is not None:
        for name in ("abs_rel", "d1"):
            a, b = getattr(first.student.metric.mean, name), getattr(second.student.metric.mean, name)
            found.append(headline(COMPARED[name], a, b, better(b, a, higher=name in HIGHER_IS_BETTER)))
    elif first.disagreement is not None and second.disagreement is not None:
        a, b = first.disagreement.mean.abs_rel, second.disagreement.mean.abs_rel
        found.append(headline("Disagreement with the teacher", a, b, _more(b, a)))
    before, after = first.consistency.overlap_abs_rel, second.consistency.overlap_abs_rel
    if before is not None and after is not None:
        found.append(headline("Neighbours", before, after, better(after, before)))
    if first.latency is not None and second.latency is not None:
        found.append(_latency(names[0], first.latency, second.latency))
    return [headline for headline in found if headline.value != NO_VALUE]


def _latency(name: str, first: Latency, second: Latency) -> Headline:
    """The time of the second run; how it differs from the first if both had the same to do."""
    times = [time_text(latency.student_ms_per_rig) for latency in (first, second)]
    work = [
        f"{count_text(latency.images_per_rig, 'image')} at {pixels_text(latency.input)}, {latency.precision} on"
        f" {latency.device}"
        for latency in (first, second)
    ]
    if work[0] == work[1]:
        change = better(second.student_ms_per_rig, first.student_ms_per_rig)
        return Headline("Latency", times[1], f"{change}; {name}: {times[0]}; {work[0]}")
    return Headline("Latency", times[1], f"{work[1]}; {name}: {times[0]}, {work[0]}")


def _more(value: float, base: float) -> str:
    """A difference that is neither good nor bad."""
    return better(value, base).replace("better", "less").replace("worse", "more")


def _differences(names: tuple[str, str], reports: tuple[EvaluateReport, EvaluateReport]) -> dict[str, Table]:
    tables = {}
    students = [report.student for report in reports]
    if students[0] is not None and students[1] is not None:
        before, after = students[0].metric, students[1].metric
        cameras = _joined(before.per_camera, after.per_camera) | {"mean of cameras": (before.mean, after.mean)}
        tables["per-camera"] = _difference("Per camera", "Student, metric.", "camera", names, cameras)
        bands = {f"{name} m": both for name, both in _joined(before.by_distance_m, after.by_distance_m).items()}
        note = "Student, metric, by true distance in metres."
        tables["by-distance"] = _difference("By distance", note, "distance", names, bands)
    truths = [report.dense_truth for report in reports]
    if truths[0] and truths[1]:
        regions = {name.replace("_", " "): (a.mean, b.mean) for name, (a, b) in _joined(truths[0], truths[1]).items()}
        note = f"Student, metric, at its input size. {DENSE_TRUTH}"
        tables["dense-truth"] = _difference("Dense truth", note, "where", names, regions)
    unlike = [report.disagreement for report in reports]
    if unlike[0] is not None and unlike[1] is not None:
        cameras = _joined(unlike[0].per_camera, unlike[1].per_camera)
        apart = {camera: (a.abs_rel, b.abs_rel) for camera, (a, b) in cameras.items()}
        note = "AbsRel between the teacher, after scale and shift, and each student. Neither of them is the truth."
        tables["disagreement"] = _pairs("Disagreement with the teacher", note, "camera", names, apart, _more)
    pairs = _joined(reports[0].consistency.pairs, reports[1].consistency.pairs)
    tables["overlap"] = _pairs(
        "Overlap consistency", "AbsRel between neighbouring cameras.", "pair", names, pairs, better
    )
    with_gross = _joined(reports[0].consistency.pairs_with_gross, reports[1].consistency.pairs_with_gross)
    if with_gross:
        note = "AbsRel between neighbouring cameras, also where one sees through the other's surface."
        tables["overlap-gross"] = _pairs("Overlap, gross differences too", note, "pair", names, with_gross, better)
    return tables


def _pairs(
    title: str,
    note: str,
    first: str,
    names: tuple[str, str],
    values: Mapping[str, tuple[float, float]],
    change: Callable[[float, float], str],
) -> Table:
    """One number of each run, and the difference."""
    rows = tuple((name, number(a), number(b), change(b, a)) for name, (a, b) in values.items())
    return Table(title, note, (first, *names, "difference"), rows)


def _joined(first: Mapping[str, T], second: Mapping[str, T]) -> dict[str, tuple[T, T]]:
    return {name: (value, second[name]) for name, value in first.items() if name in second}


def _difference(
    title: str, note: str, first: str, names: tuple[str, str], errors: Mapping[str, tuple[DepthErrors, DepthErrors]]
) -> Table:
    """Errors of both runs and the difference, metric by metric."""
    header = [first]
    for label in COMPARED.values():
        header += [f"{label}, {names[0]}", names[1], "difference"]
    rows = []
    for row, (before, after) in errors.items():
        cells = [row]
        for name in COMPARED:
            a, b = getattr(before, name), getattr(after, name)
            cells += [number(a), number(b), better(b, a, higher=name in HIGHER_IS_BETTER)]
        rows.append(tuple(cells))
    return Table(title, note, tuple(header), tuple(rows))


def _frames(names: tuple[str, str], files: tuple[ReportFile, ReportFile]) -> tuple[list[Section], Markup | None]:
    """The section of frames that both show, and the errors of the middle one; nothing if there is none."""
    first, second = (read_frames(file.path.parent) for file in files)
    theirs = {frame.frame_id: frame for frame in second}
    both = [frame for frame in first if frame.frame_id in theirs]
    if not both:
        return [], None
    range_m = files[0].report.range_m
    strips = [compared_strip(names, (frame, theirs[frame.frame_id])) for frame in both]
    lead = lead_strip("frames", strips, middle_frame(both), range_m, lambda layer: layer.kind == "error")
    return [frame_section("frames", "Frames that both show", strips, range_m)], lead


def _provenance(names: tuple[str, str], files: tuple[ReportFile, ReportFile]) -> Table:
    """The provenance of both runs, and whether each entry differs."""
    first, second = (file.provenance for file in files)
    rows = []
    for key in dict.fromkeys([*first, *second]):
        texts = [plain_text(found.get(key)) for found in (first, second)]
        rows.append((key, *texts, "the same" if texts[0] == texts[1] else "differs"))
    return Table("Provenance", "", ("what", *names, "both"), tuple(rows), numeric=False, empty="Not recorded.")
