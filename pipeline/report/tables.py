"""The numbers of a report as tables of texts, for any format."""

import math
import re
from collections.abc import Mapping, Sequence

from data_cache.files import count_text
from data_cache.frames.geometry import OCCLUSION_RATIO
from data_cache.sources.selectors import LIST
from pipeline.report.markdown import Table
from stages.evaluation.metrics import DepthErrors
from stages.evaluation.protocols import PROTOCOLS
from stages.evaluation.regions import EDGE_RADIUS_PX
from stages.evaluation.results import Consistency, EvaluateReport, Latency, StudentScores
from stages.evaluation.scores import Scores
from stages.uncertainty.coverage import GAUSS_95, LAPLACE_95, Sureness, SurenessScores, Uncertainty

ERRORS = {
    "abs_rel": "AbsRel",
    "sq_rel": "SqRel",
    "rmse": "RMSE",
    "rmse_log": "RMSElog",
    "d1": "d1",
    "d2": "d2",
    "d3": "d3",
}
"""Errors in the order of every table, with their headings."""
ERROR_COLUMNS = (*ERRORS.values(), "images", "pixels")
COLUMN_GUIDE = "SqRel and RMSE in metres. AbsRel to RMSElog: lower is better; d1 to d3: higher is better."
DISAGREEMENT_NOTE = (
    "how far the teacher, aligned to the student per image by least squares in disparity, is from the student at every"
    " pixel of its input size. It needs no LiDAR; it says how alike the two are, not which one is right."
)
NO_LIDAR = "No frame has a LiDAR point in range: nothing is measured in metres."
DENSE_TRUTH = "The data set knows the depth of every pixel."
NO_VALUE = "-"
_REGIONS = {
    "all": "all pixels",
    "edges": f"within {EDGE_RADIUS_PX} px of a depth edge",
    "above_lidar": "above the LiDAR's highest beam",
    "at_lidar": "at LiDAR returns",
}
_SURE_COLUMNS = (
    "where",
    "median sigma",
    "in 1 sigma",
    f"in {LAPLACE_95:.2f}",
    f"in {GAUSS_95}",
    "factor",
    "AbsRel AUSE",
    "of random",
    "AURG",
    "RMSE AUSE",
    "RMSE of random",
    "RMSE AURG",
    "pixels",
)

_DATA_SETS = {
    "synthetic": "the synthetic street",
    "synthetic_town": "the synthetic town",
    "ddad": "DDAD",
    "nuscenes": "nuScenes",
    "pandaset": "PandaSet",
    "rig_folder": "a rig folder",
}
_SPLITS = {
    "train": "training drives",
    "val": "validation drives",
    "selection": "selection drives",
    "test": "test drives",
    "mini_train": "training drives of the mini release",
    "mini_val": "validation drives of the mini release",
}
_LIMITS = re.compile(r" \(first [^()]*\)$")
_SLICE = re.compile(r"\[[-\d:]*\]$")
_NAMED_DRIVES = 3


def number(value: float | None, digits: int = 3) -> str:
    """A number as tables show it; a dash for None and for numbers that are not finite."""
    return NO_VALUE if value is None or not math.isfinite(value) else f"{value:.{digits}f}"


def better(value: float, base: float, *, higher: bool = False) -> str:
    """Say by how much a value is better or worse than another one; a dash if that cannot be said.

    Args:
        value, base: the value that is judged, and the one it is compared with.
        higher: whether higher is better.
    """
    if not base or not math.isfinite(value) or not math.isfinite(base):
        return NO_VALUE
    change = 100 * (value - base) / abs(base)
    gain = change if higher else -change
    if f"{abs(gain):.1f}" == "0.0":
        return "the same"
    return f"{abs(gain):.1f} % {'better' if gain > 0 else 'worse'}"


def title(report: EvaluateReport) -> str:
    """What was measured, in words: 8 frames of the synthetic street, test drives."""
    data_set = _DATA_SETS.get(report.dataset, report.dataset)
    return f"{count_text(report.frames, 'frame')} of {data_set}, {_split_words(report.split)}"


def _split_words(split: str) -> str:
    """The drives that the selectors of a split name; slices and limits are left to the exact text below the title."""
    names = dict.fromkeys(_SLICE.sub("", selector) for selector in _LIMITS.sub("", split).split(", "))
    drives = [name.removeprefix("drive-") for name in names if name not in _SPLITS and not name.startswith(LIST)]
    words = [_SPLITS[name] for name in names if name in _SPLITS]
    words += [f"the list {name.removeprefix(LIST)}" for name in names if name.startswith(LIST)]
    if len(drives) > _NAMED_DRIVES:
        words.append(count_text(len(drives), "drive"))
    elif drives:
        words.append(f"{'drive' if len(drives) == 1 else 'drives'} {', '.join(drives)}")
    return " and ".join(words)


def summary(report: EvaluateReport) -> str:
    """Which selectors were measured, how, and on how many frames, images and pixels."""
    near_m, far_m = report.range_m
    flip = ", with flip averaging" if report.flip else ""
    how = (
        f"Data set {report.dataset}, split {report.split}. Protocol {report.protocol}{flip}, {near_m:g} to {far_m:g} m:"
        f" {count_text(report.frames, 'frame')}"
    )
    if report.student is None:
        return f"{how}. {NO_LIDAR}"
    pixels = count_text(report.valid_pixels, "valid pixel")
    return f"{how}, {count_text(report.images, 'image')}, {pixels}.{_masks(report)}"


def _masks(report: EvaluateReport) -> str:
    """What to say about self-occlusion masks; nothing under a protocol that ignores them."""
    wish = PROTOCOLS[report.protocol].masks
    if wish == "ignored":
        return ""
    if report.masked_images == report.images:
        return " Self-occlusion masks on all images."
    used = f"on {report.masked_images:,} of them" if report.masked_images else "on none of them"
    expected = ", although the protocol expects them on all" if wish == "expected" else ""
    return f" Self-occlusion masks {used}{expected}."


def results(report: EvaluateReport) -> Table:
    """Student and teacher under each alignment; without LiDAR, the two numbers that need none."""
    student = report.student
    if student is None:
        return _without_lidar(report)
    scores = {
        "student metric": student.metric,
        "student median-scaled": student.median_scaled,
        "student affine-invariant": student.affine_invariant,
    }
    if report.teacher is not None:
        scores["teacher affine-invariant"] = report.teacher.affine_invariant
    absent = "" if report.teacher is not None else " The teacher was not measured."
    note = f"Mean of the cameras. {COLUMN_GUIDE}{absent}"
    return error_table("Results", note, "estimate", {name: entry.mean for name, entry in scores.items()})


def _without_lidar(report: EvaluateReport) -> Table:
    rows = []
    if report.disagreement is not None:
        rows.append(("disagreement of student and teacher", number(report.disagreement.mean.abs_rel)))
    rows.append(("difference of neighbouring cameras", number(report.consistency.overlap_abs_rel)))
    rows.append(("the same with gross differences", number(report.consistency.overlap_with_gross)))
    return Table("Results", NO_LIDAR, ("mean of cameras, or of their pairs", "AbsRel"), tuple(rows))


def details(report: EvaluateReport) -> list[Table]:
    """The tables behind the results."""
    return [
        *(_against_lidar(report.student) if report.student is not None else ()),
        *([_teacher(report)] if report.teacher is not None or report.disagreement is not None else ()),
        *([_dense(report.dense_truth)] if report.dense_truth else ()),
        *(_sureness(report.uncertainty) if report.uncertainty is not None else ()),
        _overlap(report.consistency),
        _latency(report.latency),
    ]


def _overlap(found: Consistency) -> Table:
    note = (
        "Student: relative difference of depth where two neighbours see the same surface (depths within a factor of"
        f" {OCCLUSION_RATIO:g}); with gross differences, also where one sees through the other's surface. Lower is"
        " better. Compared: of the points that land in the neighbour's image, the share that AbsRel is of."
    )
    each = (found.pairs, found.pairs_with_gross, found.pairs_share)
    rows = [(name, *(number(values.get(name)) for values in each)) for name in {**found.pairs, **found.pairs_share}]
    total = (found.overlap_abs_rel, found.overlap_with_gross, found.overlap_share)
    return Table(
        "Overlap consistency",
        note,
        ("pair", "AbsRel", "with gross differences", "compared"),
        (*rows, ("mean of pairs", *map(number, total))) if rows else (),
        empty="No neighbouring cameras see the same surface.",
    )


def _against_lidar(student: StudentScores) -> list[Table]:
    metric = student.metric
    cameras = {**metric.per_camera, "mean of cameras": metric.mean}
    bands = {f"{band} m": errors for band, errors in metric.by_distance_m.items()}
    return [
        error_table("Per camera", "Student, metric.", "camera", cameras),
        error_table("By distance", "Student, metric, by true distance in metres.", "distance", bands),
    ]


def _teacher(report: EvaluateReport) -> Table:
    """AbsRel of both where they compare, by camera and by distance, and their disagreement."""
    student, teacher, unlike = report.student, report.teacher, report.disagreement
    columns = {
        "student": student.metric if student is not None else None,
        "student, aligned": student.affine_invariant if student is not None else None,
        "teacher, aligned": teacher.affine_invariant if teacher is not None else None,
        "disagreement": unlike,
    }
    there = {name: scores for name, scores in columns.items() if scores is not None}
    cameras = dict.fromkeys(camera for scores in there.values() for camera in scores.per_camera)
    rows = [(camera, *(_abs_rel(scores.per_camera.get(camera)) for scores in there.values())) for camera in cameras]
    rows.append(("mean of cameras", *(_abs_rel(scores.mean) for scores in there.values())))
    bands = student.metric.by_distance_m if student is not None else {}
    for band in bands:
        # The disagreement goes by the distance that the student predicts, not by the true one.
        found = (None if name == "disagreement" else scores.by_distance_m.get(band) for name, scores in there.items())
        rows.append((f"{band} m", *map(_abs_rel, found)))
    aligned = " Aligned: per image by least squares in disparity, to LiDAR." if student is not None else ""
    note = f"AbsRel.{aligned}{f' Disagreement: {DISAGREEMENT_NOTE}' if unlike is not None else ''}"
    return Table("Student and teacher", note, ("camera or distance", *there), tuple(rows))


def _abs_rel(errors: DepthErrors | None) -> str:
    return number(errors.abs_rel if errors is not None else None)


def _dense(scores: Mapping[str, Scores]) -> Table:
    errors = {_REGIONS[name]: entry.mean for name, entry in scores.items()}
    note = f"Student, metric, at its input size. {DENSE_TRUTH}"
    return error_table("Dense truth", note, "where", errors)


def _sureness(found: Uncertainty) -> list[Table]:
    """Whether sigma is right: shares of errors inside it, and how it orders the errors."""
    calibrated = found.calibration
    note = (
        "Sigma: the student's standard deviation of log depth. Share of pixels with an error of log depth inside one"
        f" sigma (aim 68 %) and inside {LAPLACE_95:.2f} and {GAUSS_95} sigma (95 % of a Laplace and of a Gauss"
        " distribution); the factor with which 68 % would lie inside. AUSE: area between the error of the pixels that"
        " are left when the least sure are removed, and that of a perfect order, as a share of the error of all; of"
        " random:"
        " the same as a share of that of a random order, 0 is perfect, 1 says nothing. AURG: area below a random order."
        f" Calibrated on {count_text(calibrated.pixels, 'LiDAR return')} of {calibrated.dataset} {calibrated.split}."
    )
    tables = []
    if found.lidar is not None:
        tables.append(Table("Confidence at LiDAR returns", note, _SURE_COLUMNS, _sure_rows(found.lidar)))
    regions = found.dense_truth or {}
    if regions:
        rows = [_sure_row(_REGIONS[name], scores.all) for name, scores in regions.items() if name != "all"]
        rows = [*(_sure_rows(regions["all"]) if "all" in regions else ()), *rows]
        more = DENSE_TRUTH if found.lidar is not None else f"{DENSE_TRUTH} {note}"
        tables.append(Table("Confidence on dense truth", more, _SURE_COLUMNS, tuple(rows)))
    return tables


def _sure_rows(scores: SurenessScores) -> tuple[tuple[str, ...], ...]:
    bands = {f"{band} m": found for band, found in scores.by_distance_m.items()}
    rows = {"all pixels": scores.all, **scores.per_camera, **bands}
    return tuple(_sure_row(name, found) for name, found in rows.items())


def _sure_row(name: str, found: Sureness) -> tuple[str, ...]:
    shares = (found.median_sigma, found.inside_68, found.inside_95, found.inside_95_gauss)
    orders = [(order.ause, order.of_random, order.aurg) for order in (found.abs_rel, found.rmse)]
    return (
        name,
        *(NO_VALUE if not math.isfinite(share) else f"{100 * share:.1f} %" for share in shares),
        number(found.scale_68, 2),
        *(number(value) for order in orders for value in order),
        f"{found.pixels:,}",
    )


def _latency(latency: Latency | None) -> Table:
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
        student = f"{time_text(latency.student_ms_per_rig)} at {pixels_text(latency.input)}"
        note += f" Student {student}; {against_teacher(latency, latency.teacher_ms_per_rig)}."
    return Table("Latency", note, header, tuple(rows))


def against_teacher(latency: Latency, teacher_ms: float) -> str:
    """How many times as fast as the teacher the student is; of unlike input sizes, the teacher's time and size."""
    runtime = f" in {latency.teacher_runtime}" if latency.teacher_runtime is not None else ""
    if latency.speedup is not None and latency.input == latency.teacher_input:
        return f"{number(latency.speedup, 1)} times as fast as the teacher{runtime} at the same input size"
    return f"teacher {time_text(teacher_ms)} at {pixels_text(latency.teacher_input)}{runtime}"


def time_text(ms: float) -> str:
    """A time as a person reads it: 52.0 ms, 3.9 s."""
    return f"{ms:.1f} ms" if ms < 1000 else f"{ms / 1e3:.1f} s"


def pixels_text(size: tuple[int, int] | None) -> str:
    """Height and width in pixels."""
    return f"{size[0]} x {size[1]}" if size is not None else "an unknown size"


def _latency_row(name: str, p50_ms: float, p95_ms: float | None, size: tuple[int, int] | None) -> tuple[str, ...]:
    pixels = f"{size[0]} x {size[1]}" if size is not None else NO_VALUE
    return (name, number(p50_ms, 1), number(p95_ms, 1), f"{1e3 / p50_ms:.3g}", pixels)


def quarantined_table(quarantined: Mapping[str, str]) -> Table:
    """Frames that could not be read, with their reasons."""
    return Table(
        "Quarantined frames",
        "These frames could not be read; no number includes them." if quarantined else "",
        ("frame", "reason"),
        tuple(quarantined.items()),
        numeric=False,
    )


def provenance_table(provenance: Mapping[str, object]) -> Table:
    """Where the numbers come from."""
    rows = tuple((str(name), plain_text(value)) for name, value in provenance.items())
    return Table("Provenance", "", ("what", "value"), rows, numeric=False, empty="Not recorded.")


def error_table(title: str, note: str, first: str, errors: Mapping[str, DepthErrors]) -> Table:
    """One row of errors per entry; `first` is the heading over their names."""
    rows = tuple((name, *error_cells(entry)) for name, entry in errors.items())
    return Table(title, note, (first, *ERROR_COLUMNS), rows, bars=_bars([entry.abs_rel for entry in errors.values()]))


def _bars(values: Sequence[float]) -> tuple[float, ...]:
    """Each error as a share of the largest one."""
    known = [value if math.isfinite(value) else 0.0 for value in values]
    return tuple(value / (max(known) or 1.0) for value in known)


def error_cells(errors: DepthErrors) -> tuple[str, ...]:
    """The cells of one row, under ERROR_COLUMNS."""
    return (*(number(getattr(errors, name)) for name in ERRORS), f"{errors.images:,}", f"{errors.pixels:,}")


def plain_text(value: object) -> str:
    """A value of a provenance in one line."""
    if value is None:
        return NO_VALUE
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {plain_text(entry)}" for name, entry in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(plain_text, value))
    return str(value)
