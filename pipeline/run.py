"""Runs of the stages: a recipe and a run folder in, files and a report out. No click here."""

import hashlib
import os
import platform
import subprocess
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import torch

from data_cache.errors import SourceError
from data_cache.files import file_sha256, write_atomically
from data_cache.reader import CacheReader, CacheStatus, cache_status, read_split_frames
from data_cache.schema import CacheError, Resolved, SplitFrames, load_description
from data_cache.sources import Source, open_source, select
from data_cache.writer import CacheWriter
from pipeline.config import Recipe, recipe_toml
from pipeline.errors import RecipeError
from pipeline.report import write_report
from pipeline.signals import preemption
from pipeline.weights import KNOWN, WeightFolder, fetch_weights
from stages.checkpoint import LoadedStudent, load_student
from stages.devices import place, resolve_device, resolve_precision
from stages.evaluate import EvaluateReport, evaluate, require_full_count
from stages.student.model import Student
from stages.teacher.transformers_depth import TransformersTeacher
from stages.teacher_cache import TeacherCacheReport, cache_identity, recipe_identity, teacher_cache
from stages.train_student import TrainStudentReport, train_student

UNKNOWN_LICENCE = "unknown: see the model card"
VERSIONED = ("surround-distill", "torch", "transformers", "zarr", "numpy")


@dataclass(frozen=True)
class RunFolder:
    """Where a run keeps its things."""

    root: Path

    @property
    def recipe(self) -> Path:
        """The resolved recipe."""
        return self.root / "recipe.toml"

    @property
    def cache(self) -> Path:
        """Stage one."""
        return self.root / "cache"

    @property
    def student(self) -> Path:
        """Stage two."""
        return self.root / "student"

    @property
    def eval(self) -> Path:
        """Stage three."""
        return self.root / "eval"


@dataclass(frozen=True)
class TeacherCacheRun:
    """What stage one did in this run, and how the whole cache stands."""

    report: TeacherCacheReport
    status: CacheStatus


def run_teacher_cache(
    recipe: Recipe, folder: RunFolder, *, part: tuple[int, int] = (1, 1), retry_quarantined: bool = False
) -> TeacherCacheRun:
    """Stage one: fill RUN/cache with what is missing of it."""
    source = _open(recipe)
    frames = SplitFrames(select(source, recipe.data.train), select(source, recipe.data.selection))
    with suppress(SourceError):  # the test split may live on another machine; eval looks again
        _refuse_leak(frames, select(source, recipe.data.test))
    teacher = _teacher(recipe)
    spec = recipe.teacher_cache
    identity = cache_identity(_decided(recipe), source.rig, frames, teacher)
    resolved = Resolved(teacher.precision, spec.batch_images, torch.get_num_threads())
    writer = CacheWriter(folder.cache, identity, resolved, frames)
    _keep_recipe(recipe, folder)
    with preemption() as should_stop:
        report = teacher_cache(
            source,
            teacher,
            writer,
            recipe.bins,
            batch_images=spec.batch_images,
            part=part,
            retry_quarantined=retry_quarantined,
            should_stop=should_stop,
        )
    return TeacherCacheRun(report, cache_status(folder.cache))


def run_train_student(recipe: Recipe, folder: RunFolder, *, fresh: bool = False) -> TrainStudentReport:
    """Stage two: train RUN/student from RUN/cache, continuing what is there unless `fresh`."""
    reader = CacheReader(folder.cache, expected=_decided(recipe))
    # The random parts of the student come from the recipe's seed, whatever ran in this process before.
    torch.manual_seed(recipe.train_student.seed)
    student = Student(recipe.student, recipe.bins, _encoder_weights(recipe))
    with preemption() as should_stop:
        return train_student(
            reader,
            student,
            reader.frames.train,
            reader.frames.selection,
            folder.student,
            recipe.train_student,
            recipe.losses,
            recipe.data.depth_range_m,
            fresh=fresh,
            on_accepted=lambda: _keep_recipe(recipe, folder),
            should_stop=should_stop,
        )


@dataclass(frozen=True)
class EvaluateRun:
    """What stage three measured and where the report is."""

    report: EvaluateReport
    html: Path


def run_evaluate(recipe: Recipe, folder: RunFolder, *, checkpoint: Path | None = None) -> EvaluateRun:
    """Stage three: measure the student on the test split and write RUN/eval."""
    if checkpoint is None:
        checkpoint = folder.student / ("best.safetensors" if recipe.data.selection else "last.safetensors")
    loaded = load_student(checkpoint, expected=recipe.student, expected_bins=recipe.bins)
    source = _open(recipe)
    frame_ids = select(source, recipe.data.test)
    if len(recipe.data.test) == 1:
        require_full_count(source, recipe.data.test[0], len(frame_ids))
    _refuse_leak(_learnt_from(recipe, folder, source), frame_ids)
    # What is measured here; written first, so that a folder that cannot be written is known before the hours are spent.
    write_atomically(folder.eval / "recipe.toml", recipe_toml(recipe))
    device = resolve_device(recipe.eval.device)
    precision = resolve_precision(recipe.eval.precision, device)
    student = loaded.student
    place(student, device)
    teacher = _teacher(recipe) if recipe.eval.teacher else None
    with preemption() as should_stop:
        evaluation = evaluate(
            source,
            frame_ids,
            ", ".join(recipe.data.test),
            student,
            teacher,
            recipe.eval,
            device=device,
            precision=precision,
            should_stop=should_stop,
        )
    html = write_report(folder.eval, evaluation, _provenance(recipe, loaded, checkpoint))
    return EvaluateRun(evaluation.report, html)


def _open(recipe: Recipe) -> Source:
    return open_source(recipe.data.source, Path(recipe.data.root) if recipe.data.root else None, recipe.data.version)


def _decided(recipe: Recipe) -> dict[str, object]:
    data = recipe.data
    return recipe_identity(
        data.source, data.train, data.selection, recipe.teacher_cache, recipe.bins, recipe.student.input_size
    )


def _learnt_from(recipe: Recipe, folder: RunFolder, source: Source) -> SplitFrames:
    """Frames that this run's student has seen: as its cache says, else as the recipe says, if its splits are here."""
    try:
        identity, _ = load_description(folder.cache)
        return read_split_frames(folder.cache, identity)
    except CacheError:
        with suppress(SourceError):
            return SplitFrames(select(source, recipe.data.train), select(source, recipe.data.selection))
    return SplitFrames((), ())


def _refuse_leak(frames: SplitFrames, test: tuple[str, ...]) -> None:
    shared = set(frames.ordered) & set(test)
    if shared:
        raise RecipeError(
            f"data: {len(shared)} frames are both learnt from and tested on, {min(shared)!r} among them;"
            " make test disjoint from train and selection"
        )


def _weights(name: str) -> WeightFolder:
    """Known weights by name, else a folder of the user's."""
    if name in KNOWN:
        return fetch_weights(name)
    folder = Path(name)
    file = folder / "model.safetensors"
    if not file.is_file():
        raise RecipeError(f"weights {name!r}: neither one of {', '.join(KNOWN)} nor a folder with model.safetensors")
    return WeightFolder(folder, file_sha256(file), UNKNOWN_LICENCE, "folder in the recipe")


def _teacher(recipe: Recipe) -> TransformersTeacher:
    spec = recipe.teacher_cache
    weights = _weights(spec.weights)
    device = resolve_device(spec.device)
    return TransformersTeacher(
        weights.path,
        name=Path(spec.weights).name,
        licence=weights.licence,
        weights_sha256=weights.sha256,
        input_size=spec.input_size,
        device=device,
        precision=resolve_precision(spec.precision, device),
    )


def _encoder_weights(recipe: Recipe) -> Path | None:
    if not recipe.student.pretrained:
        return None
    return fetch_weights(recipe.student.encoder).path


def _keep_recipe(recipe: Recipe, folder: RunFolder) -> None:
    text = recipe_toml(recipe)
    if not folder.recipe.exists() or folder.recipe.read_text(encoding="utf-8") != text:
        write_atomically(folder.recipe, text)


def _provenance(recipe: Recipe, loaded: LoadedStudent, checkpoint: Path) -> dict[str, object]:
    lineage = loaded.lineage
    return {
        "versions": {name: metadata.version(name) for name in VERSIONED} | {"python": platform.python_version()},
        "recipe": recipe.name,
        "recipe_sha256": hashlib.sha256(recipe_toml(recipe).encode()).hexdigest(),
        "cache_id": lineage.cache_id,
        "checkpoint": checkpoint.name,
        "checkpoint_sha256": file_sha256(checkpoint),
        "steps": lineage.steps,
        "git_commit": _git_commit(),
        "teacher": lineage.teacher,
        "teacher_licence": lineage.teacher_licence,
        "machine": f"{_processor()}, {os.cpu_count()} cores"
        + (f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _git_commit() -> str | None:
    """Commit of this program's checkout, with a mark if it was changed; None when installed otherwise."""
    here = Path(__file__).parent
    try:
        top = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=True)
        dirty = subprocess.run(["git", "status", "--porcelain"], cwd=here, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return top.stdout.strip() + ("+changes" if dirty.stdout.strip() else "")


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
