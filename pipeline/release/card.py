"""The model card of a student: README.md in the metadata format of the model hub, from checkpoint, recipe and report.

It states what the files say and nothing else. What is not there is called not measured or not known.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from huggingface_hub import EvalResult, ModelCardData

from data_cache.files import file_sha256
from pipeline.errors import RecipeError
from pipeline.recipe.config import Recipe, load_recipe
from pipeline.recipe.run_folder import RunFolder
from pipeline.release.licences import all_licences, data_licence, starting_weights, student_licence
from pipeline.report.markdown import Table, markdown_table, markdown_text
from pipeline.report.results_file import ReportFile, find_report, read_report_file
from pipeline.report.tables import details, plain_text, results, summary
from pipeline.weights.catalog import HUB_LICENCES, KNOWN
from stages.evaluation.metrics import DepthErrors
from stages.evaluation.results import EvaluateReport
from stages.student.checkpoint import SUFFIX, LoadedStudent

CARD = "README.md"
LIBRARY = "surround-distill"
TAGS = ("metric-depth", "surround-view", "multi-camera", "knowledge-distillation", "onnx")
METRICS = {"abs_rel": "AbsRel", "rmse": "RMSE (m)", "d1": "delta < 1.25"}
"""Errors of the model index, with their names."""
HUB_LICENCE_IDS = ("apache-2.0", "bsd-3-clause", "mit", "cc-by-4.0", "cc-by-nc-4.0", "cc-by-nc-sa-4.0")
"""Identifiers of the model hub for licences that occur here; any other is `other` there."""
SHOWN_DETAILS = ("Per camera", "By distance", "Dense truth", "Latency")
NOT_MEASURED = "Not measured: there is no report of `surround eval` about this checkpoint."


@dataclass(frozen=True, eq=False)
class CardSources:
    """What a card takes from the files of a run.

    Attributes:
        weights: where the checkpoint lies beside the card.
        checkpoint_sha256: of the checkpoint.
        recipe: of the run that trained it; None if it lies in no run.
        report: what `surround eval` said of this very checkpoint; None if nothing.
    """

    weights: Path
    checkpoint_sha256: str
    recipe: Recipe | None
    report: ReportFile | None


@dataclass(frozen=True, eq=False)
class CardFacts:
    """What a card is made from.

    Attributes:
        name: of the student.
        loaded: the student and its lineage.
        sources: what the files of its run say.
        cameras: of the rig that it was exported for, clockwise from the front.
        graph: name of the exported ONNX file.
        parity: the exported files beside PyTorch, Markdown.
    """

    name: str
    loaded: LoadedStudent
    sources: CardSources
    cameras: tuple[str, ...]
    graph: str
    parity: str


def card_sources(checkpoint: Path, out: Path) -> CardSources:
    """Find what a card beside the ONNX file `out` needs; nothing is written.

    Raises:
        RecipeError: if another checkpoint, or a README.md that is no card, lies in the folder of `out`, or the recipe
            of the run cannot be used.
        SourceError: if the report of the run cannot be read.
    """
    inside = checkpoint.resolve().parent == out.resolve().parent
    weights = checkpoint if inside else out.with_suffix(SUFFIX)
    others = sorted(path.name for path in out.parent.glob(f"*{SUFFIX}") if path.name != weights.name)
    if others:
        raise RecipeError(
            f"--card: expected a folder for one checkpoint, {weights.name}, found {', '.join(others)} in {out.parent};"
            " name another folder in --out"
        )
    card = out.parent / CARD
    if card.is_file() and f"library_name: {LIBRARY}" not in card.read_text(encoding="utf-8", errors="replace"):
        raise RecipeError(
            f"--card: expected no {CARD} in {out.parent}, or a card of this program, found another one; name another"
            " folder in --out"
        )
    folder, sha256 = RunFolder.of_checkpoint(checkpoint), file_sha256(checkpoint)
    recipe = load_recipe(str(folder.recipe)) if folder.recipe.is_file() else None
    path = find_report(folder.root)
    report = read_report_file(path) if path.is_file() else None
    if report is not None and report.provenance.get("checkpoint_sha256") != sha256:
        report = None
    return CardSources(weights, sha256, recipe, report)


def model_card(facts: CardFacts) -> str:
    """The text of README.md: YAML metadata of the model hub, then Markdown."""
    sections = {
        "Trained on": _trained_on(facts),
        "Numbers": _numbers(facts),
        "Limits": "\n".join(f"- {line}" for line in _limits(facts)),
        "How to run": _how_to_run(facts),
        "Licences": _licences(facts),
    }
    body = "\n\n".join(f"## {title}\n\n{text}" for title, text in sections.items())
    return f"---\n{_metadata(facts).to_yaml()}\n---\n\n# {markdown_text(facts.name)}\n\n{_lead(facts)}\n\n{body}\n"


def _metadata(facts: CardFacts) -> ModelCardData:
    spec, lineage = facts.loaded.student.spec, facts.loaded.lineage
    licences = all_licences(spec, lineage)
    single = licences[0].lower() if licences is not None and len(licences) == 1 else ""
    plain = single in HUB_LICENCE_IDS
    measured = list(_eval_results(facts.sources.report.report)) if facts.sources.report is not None else []
    return ModelCardData(
        license=single if plain else "other",
        license_name=None if plain else " AND ".join(licences) if licences is not None else "see-licences",
        license_link=None if plain else CARD,
        library_name=LIBRARY,
        pipeline_tag="depth-estimation",
        tags=list(TAGS),
        datasets=[lineage.dataset],
        base_model=_base_models(facts) or None,
        metrics=list(dict.fromkeys(one.metric_type for one in measured)) or None,
        model_name=facts.name if measured else None,
        eval_results=measured or None,
    )


def _base_models(facts: CardFacts) -> list[str]:
    """Hub ids of the teacher and of the weights the encoder started from, as far as they are known there."""
    teacher = facts.loaded.lineage.teacher
    ids = [one for one in HUB_LICENCES if one.partition("/")[2] == teacher.partition("@")[0]]
    for name in (teacher, starting_weights(facts.loaded.student.spec)):
        hub = KNOWN[name].hub if name in KNOWN else None
        ids += [hub.id] if hub is not None else []
    return list(dict.fromkeys(ids))


def _eval_results(report: EvaluateReport) -> Iterator[EvalResult]:
    """The student's metric depth against LiDAR, and at every pixel where the data set knows it."""
    against = {}
    if report.student is not None:
        against[f"against LiDAR, protocol {report.protocol}"] = report.student.metric.mean
    if report.dense_truth is not None and "all" in report.dense_truth:
        against["against dense truth"] = report.dense_truth["all"].mean
    for what, errors in against.items():
        for metric, value in _finite(errors):
            yield EvalResult(
                task_type="depth-estimation",
                task_name="Metric depth",
                dataset_type=report.dataset,
                dataset_name=report.dataset,
                dataset_config=what,
                dataset_split=report.split,
                dataset_args={"range_m": list(report.range_m)},
                metric_type=metric,
                metric_name=METRICS[metric],
                metric_value=round(value, 4),
            )


def _finite(errors: DepthErrors) -> Iterator[tuple[str, float]]:
    for metric in METRICS:
        value = getattr(errors, metric)
        if math.isfinite(value):
            yield metric, value


def _lead(facts: CardFacts) -> str:
    spec = facts.loaded.student.spec
    height, width = spec.input_size
    names = markdown_text(", ".join(facts.cameras))
    return (
        f"Metric depth for a ring of {len(facts.cameras)} cameras ({names}). In: one image of each camera, stretched to"
        f" {height} x {width} (h x w), and its focal length. Out: depth along the optical axis, in metres, per pixel. A"
        f" student of {LIBRARY} with the encoder {spec.encoder}, distilled from the depth foundation model"
        f" {markdown_text(facts.loaded.lineage.teacher)} and LiDAR."
    )


def _trained_on(facts: CardFacts) -> str:
    spec, lineage = facts.loaded.student.spec, facts.loaded.lineage
    near_m, far_m = lineage.depth_range_m
    rows = [("data set", lineage.dataset)]
    if facts.sources.recipe is not None:
        data, training = facts.sources.recipe.data, facts.sources.recipe.train_student
        rows += [("recipe", facts.sources.recipe.name), ("drives", data.named(data.train))]
        rows += [("drives with LiDAR", data.named(data.lidar_drives))] if data.lidar_drives else []
        rows += [("checkpoint chosen on", data.named(data.selection))] if data.selection else []
        rows += [("share of the LiDAR points", f"{training.lidar_share:g}")] if training.lidar_share < 1 else []
    rows += [
        ("LiDAR depths", f"{near_m:g} to {far_m:g} m"),
        ("optimiser steps", str(lineage.steps)),
        ("teacher", lineage.teacher),
        ("encoder started from", starting_weights(spec) or "random weights"),
        ("cache", lineage.cache_id),
        ("checkpoint, sha256", facts.sources.checkpoint_sha256),
    ]
    return markdown_table(Table("", "", ("what", "value"), tuple(rows), numeric=False))


def _numbers(facts: CardFacts) -> str:
    parts = [NOT_MEASURED]
    if facts.sources.report is not None:
        report, provenance = facts.sources.report.report, facts.sources.report.provenance
        when = ", ".join(plain_text(provenance[key]) for key in ("date", "machine") if provenance.get(key))
        parts = [markdown_text(summary(report)) + (f" Measured: {markdown_text(when)}." if when else "")]
        parts += _tables([results(report), *(one for one in details(report) if one.title in SHOWN_DETAILS)])
        parts.append("Numbers of another protocol, split or range of depth cannot be compared with these.")
    return "\n\n".join([*parts, f"### The exported files\n\n{facts.parity}"])


def _tables(tables: Sequence[Table]) -> Iterator[str]:
    for table in tables:
        yield f"### {table.title}"
        if table.note:
            yield markdown_text(table.note)
        yield markdown_table(table) if table.rows else table.empty


def _limits(facts: CardFacts) -> Iterator[str]:
    spec, lineage = facts.loaded.student.spec, facts.loaded.lineage
    near_m, far_m = lineage.depth_range_m
    yield f"LiDAR taught it depths of {near_m:g} to {far_m:g} m; beyond them, as in the sky, nothing taught it metres."
    if lineage.dataset == "synthetic":
        yield "It has seen rendered drives alone: what it says of photographs is not known."
    else:
        yield (
            f"It has seen the drives of {markdown_text(lineage.dataset)} named above. Of other places, weather, light,"
            " cameras and mounts nothing is known."
        )
    found = facts.loaded.calibration
    if found is None:
        yield "It has no calibration: how sure it is of a depth (sigma) is not known."
    else:
        yield (
            f"Sigma, the standard deviation of log depth, was calibrated at {found.pixels:,} LiDAR returns of"
            f" {markdown_text(f'{found.dataset} {found.split}')}: 68 % of the errors there lie inside it. Elsewhere it"
            " may be too small."
        )
    yield "Depth is proportional to the focal length that it is given: an error of 1 % in one is 1 % in the other."
    yield (
        "It expects images free of distortion. `surround predict --rig` and the Python API undistort them; the exported"
        " graph does not."
    )
    if spec.attention_width:
        yield "Each camera also looks at its neighbours: the order of the ring matters, and so does a missing camera."
    yield "It was not tested for any use on which somebody's safety depends."


def _how_to_run(facts: CardFacts) -> str:
    photos = " ".join(f"{name}=FX:{name}.jpg" for name in facts.cameras)
    return f"""With {LIBRARY} {version(LIBRARY)} installed, and this folder as `FOLDER`:

```python
from pipeline.api import load_rig, load_student

rig = load_rig("rig.json")  # of your vehicle
student = load_student("FOLDER")
depths_m = student.predict([f"{{camera}}.jpg" for camera in rig.cameras], rig)  # float32 (H, W), metres
```

    surround predict FOLDER front.jpg right.jpg ... --rig rig.json --out seen

Without PyTorch and without this program, by `examples/deploy/depth.py` or `depth.cpp` (FX: focal length in pixels):

    python depth.py {facts.graph} --out seen {photos}"""


def _licences(facts: CardFacts) -> str:
    spec, lineage = facts.loaded.student.spec, facts.loaded.lineage
    rows = (
        ("this program, and the weights the encoder started from", student_licence(spec)),
        (f"teacher {lineage.teacher}", lineage.teacher_licence),
        (f"data set {lineage.dataset}", data_licence(lineage) or "not known here: ask the owner of the recordings"),
    )
    table = markdown_table(Table("", "", ("what it was made from", "licence"), rows, numeric=False))
    return (
        f"{table}\n\nA student inherits the licence questions of its teacher and of its data. Whether it is bound by"
        " their licences is an open question, above all where one of them forbids commercial use (NC)."
    )
