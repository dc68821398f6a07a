"""`surround zero-shot`: measures a student on data sets that it has not learnt from, as a sanity check."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from data_cache.errors import SourceError
from data_cache.files import write_atomically
from data_cache.sources.base import Source
from pipeline.errors import RecipeError
from pipeline.recipe.config import SUFFIX, Recipe, load_recipe, recipe_toml
from pipeline.recipe.run_folder import RunFolder
from pipeline.report.zero_shot_table import write_zero_shot
from pipeline.runs.evaluate import student_provenance
from pipeline.runs.splits import frames_to_test, open_data
from stages.compute.devices import place, resolve_device, resolve_precision
from stages.compute.preemption import preemption
from stages.evaluate import evaluate
from stages.evaluation.protocols import ZERO_SHOT
from stages.evaluation.results import EvaluateReport, against_lidar
from stages.evaluation.spec import EvaluateSpec
from stages.student.checkpoint import Lineage, load_student
from stages.student.fold import folded
from stages.student.model import Student


@dataclass(frozen=True)
class ZeroShotRun:
    """The reports, one per target, and the page with the table."""

    trained_on: str
    reports: tuple[EvaluateReport, ...]
    page: Path


@dataclass(frozen=True, eq=False)
class _Target:
    """An open data set to measure on; `name` is that of the recipe's file."""

    name: str
    recipe: Recipe
    source: Source
    frame_ids: tuple[str, ...]


def run_zero_shot(
    checkpoint: Path, targets: Sequence[str], overrides: Sequence[str] = (), out: Path | None = None
) -> ZeroShotRun:
    """Measure the student of `checkpoint` on the test split of every target and write one table.

    Input size and bins are the student's own; range and device are those of each target. All targets are opened before
    the first one is measured.

    Args:
        checkpoint: file of a student.
        targets: RECIPE or RECIPE=DATA, a recipe and its data folder.
        overrides: RECIPE.section.key=value.
        out: folder for the table; None for RUN/zero_shot.

    Raises:
        CheckpointError: if there is no usable student.
        RecipeError: if a target cannot be used, or is the data set that the student has learnt from.
        SourceError: if the data of a target is not there.
        EvaluationError: if a target has nothing to measure.
    """
    loaded = load_student(checkpoint)
    student = folded(loaded.student)
    recipes = _recipes(targets, overrides)
    for name, recipe in recipes.items():
        _refuse_same_source(name, recipe, loaded.lineage)
    opened = [_open(name, recipe) for name, recipe in recipes.items()]
    folder = out if out is not None else RunFolder.of_checkpoint(checkpoint).zero_shot
    # Written first, so that a read-only folder fails before hours are spent.
    for target in opened:
        write_atomically(folder / f"{target.name}{SUFFIX}", recipe_toml(target.recipe))
    reports = []
    with preemption() as should_stop:
        for target in opened:
            reports.append(measure_zero_shot(student, target.recipe, target.source, target.frame_ids, should_stop))
            against_lidar(reports[-1])  # a table of dashes says nothing
    sha256 = {target.name: hashlib.sha256(recipe_toml(target.recipe).encode()).hexdigest() for target in opened}
    provenance = {"recipe_sha256": sha256} | student_provenance(loaded, checkpoint)
    page = write_zero_shot(folder, loaded.lineage, reports, provenance)
    return ZeroShotRun(loaded.lineage.dataset, tuple(reports), page)


def measure_zero_shot(
    student: Student,
    recipe: Recipe,
    source: Source,
    frame_ids: Sequence[str],
    should_stop: Callable[[], bool] = lambda: False,
) -> EvaluateReport:
    """Measure a folded student on frames of a data set that it has not learnt from.

    Args:
        student: sees the frames at its own input size.
        recipe: of the data set: how it names its test frames, device and precision.
        source, frame_ids: the frames.
        should_stop: asked between two frames.
    """
    device = resolve_device(recipe.eval.device)
    place(student, device)
    return evaluate(
        source,
        frame_ids,
        recipe.data.named(recipe.data.test),
        student,
        None,
        EvaluateSpec(protocol=ZERO_SHOT.name, teacher=False, latency=False, pictures=0),
        device=device,
        precision=resolve_precision(recipe.eval.precision, device),
        decode_size=student.spec.input_size,
        should_stop=should_stop,
    ).report


def _recipes(targets: Sequence[str], overrides: Sequence[str]) -> dict[str, Recipe]:
    """The recipe of every target with its own overrides, by the name of its file."""
    parsed: dict[str, tuple[str, Path | None]] = {}
    for target in targets:
        recipe, _, data = target.partition("=")
        name = Path(recipe).name.removesuffix(SUFFIX)
        if name in parsed:
            raise RecipeError(f"--on {target}: there is a target {name} already; copy one recipe to another file name")
        parsed[name] = (recipe, Path(data) if data else None)
    own: dict[str, list[str]] = {name: [] for name in parsed}
    for override in overrides:
        name = next((name for name in sorted(parsed, key=len, reverse=True) if override.startswith(f"{name}.")), "")
        if not name:
            raise RecipeError(
                f"--set {override!r}: expected RECIPE.SECTION.KEY=VALUE, RECIPE one of {', '.join(parsed)}"
            )
        own[name].append(override.removeprefix(f"{name}."))
    return {name: load_recipe(recipe, own[name], data) for name, (recipe, data) in parsed.items()}


def _refuse_same_source(name: str, recipe: Recipe, lineage: Lineage) -> None:
    if recipe.data.source == lineage.dataset:
        raise RecipeError(
            f"target {name}: not zero-shot: the student has learnt from {lineage.dataset} (cache"
            f" {lineage.cache_id[:12]}); measure it there with `surround eval`"
        )


def _open(name: str, recipe: Recipe) -> _Target:
    try:
        source = open_data(recipe.data)
        measured = replace(recipe, eval=replace(recipe.eval, protocol=ZERO_SHOT.name))
        return _Target(name, recipe, source, frames_to_test(measured, source))
    except SourceError as error:
        raise SourceError(
            f"target {name}: {error}. For a target, give the folder as --on {name}=DIR and values as"
            f" --set {name}.SECTION.KEY=VALUE"
        ) from error
