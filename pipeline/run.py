"""Runs of the stages: a recipe and a run folder in, files and a report out. No click here."""

import hashlib
import os
import platform
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import torch

from data_cache.errors import FrameError, SourceError
from data_cache.files import file_sha256, size_text, write_atomically
from data_cache.images import larger
from data_cache.reader import CacheReader, CacheStatus, cache_status, read_split_frames, verify_files
from data_cache.schema import (
    ENCODINGS,
    CacheError,
    SplitFrames,
    load_description,
)
from data_cache.sources import Source, select
from data_cache.store import CacheStore, open_store
from data_cache.writer import CachePlan
from pipeline import cluster
from pipeline.config import Recipe, load_recipe, recipe_toml
from pipeline.errors import RecipeError
from pipeline.folders import RunFolder, cache_location
from pipeline.report import write_report
from pipeline.signals import preemption
from pipeline.stage_one import decided_identity, open_recipe_source, open_stage_one, open_teacher, refuse_leak
from pipeline.weights import KNOWN, fetch_weights
from stages.cache_size import PredictedSize, SampledFrame, predict_size, sample_frames
from stages.checkpoint import LoadedStudent, load_student
from stages.devices import place, resolve_device, resolve_precision
from stages.evaluate import ZERO_SHOT, EvaluateReport, evaluate, require_full_count
from stages.progress import progress_bar
from stages.student.model import Student
from stages.teacher_cache import TeacherCacheReport
from stages.train_student import TrainStudentReport, train_student
from stages.verify import Recomputed, content_faults, recompute

VERSIONED = ("surround-distill", "torch", "transformers", "zarr", "numpy")


@dataclass(frozen=True)
class TeacherCacheRun:
    """What stage one did in this run, and how the whole cache stands."""

    location: str
    plan: CachePlan
    report: TeacherCacheReport
    seconds: float
    status: CacheStatus


def run_teacher_cache(
    recipe: Recipe,
    folder: RunFolder,
    *,
    scheduler: str = "threads",
    part: tuple[int, int] = (1, 1),
    retry_quarantined: bool = False,
    say: Callable[[str], object] = lambda _: None,
) -> TeacherCacheRun:
    """Stage one: fill the cache with what is missing of it.

    Args:
        recipe, folder: of the run.
        scheduler: threads, local, slurm or the address of a dask scheduler.
        part: (I, N), every N-th shard from the I-th.
        retry_quarantined: try quarantined frames again.
        say: tells the user the plan, and why nothing is happening.
    """
    cluster.require_scheduler(scheduler)
    stage = open_stage_one(recipe)
    location = cache_location(recipe, folder)
    writer = stage.writer(location)
    _keep_recipe(recipe, folder)
    plan = writer.plan(part=part, retry_quarantined=retry_quarantined)
    if plan.pending:
        say(_announcement(plan, writer.store))
    begin = time.perf_counter()
    frames = {shard: len(writer.frame_range(shard)) for shard in plan.pending}
    with preemption() as should_stop, progress_bar(sum(frames.values()), 0, "teacher-cache", "frame") as bar:
        if scheduler == "threads" or not plan.pending:
            report = stage.write(
                writer,
                plan.pending,
                retry_quarantined=retry_quarantined,
                on_frame=bar.update,
                should_stop=should_stop,
            )
        else:
            report = cluster.write_on_cluster(
                scheduler,
                recipe.cluster,
                cluster.ShardJob(recipe_toml(_portable(recipe)), location, retry_quarantined),
                plan.pending,
                logs=folder.slurm_logs.absolute(),
                on_shard=lambda shard: bar.update(frames[shard]),
                say=say,
                should_stop=should_stop,
            )
            writer.plan(part=part)  # clears away what workers that were killed on the way have left
    return TeacherCacheRun(writer.store.location, plan, report, time.perf_counter() - begin, cache_status(location))


@dataclass(frozen=True)
class PredictedSizes:
    """What each encoding of a recipe's cache would take."""

    frame_count: int
    sampled_count: int
    sizes: tuple[PredictedSize, ...]
    location: str
    free_bytes: int | None


def run_cache_size(recipe: Recipe, folder: RunFolder, sample_count: int) -> PredictedSizes:
    """Predict the size of the cache of a recipe from a few frames, spread evenly; nothing is written."""
    stage = open_stage_one(recipe)
    frame_ids = stage.frames.ordered
    step = len(frame_ids) / min(sample_count, len(frame_ids))
    chosen = [frame_ids[int((i + 0.5) * step)] for i in range(min(sample_count, len(frame_ids)))]
    identity = stage.identity
    with progress_bar(len(chosen), 0, "cache size", "frame") as bar:
        samples: list[SampledFrame] = []
        for frame_id in chosen:
            with suppress(FrameError):  # teacher-cache will quarantine it
                samples += sample_frames(
                    stage.source, stage.teacher, [frame_id], identity.image_size, identity.prob_size
                )
            bar.update()
    if not samples:
        raise SourceError(f"none of the {len(chosen)} sampled frames can be read; see `surround teacher-cache`")
    sizes = []
    for encoding in ENCODINGS:
        variant = replace(stage, recipe=replace(recipe, bins=replace(recipe.bins, encoding=encoding)))
        sizes.append(predict_size(samples, variant.identity, variant.recipe.bins))
    store = open_store(cache_location(recipe, folder))
    return PredictedSizes(len(frame_ids), len(samples), tuple(sizes), store.location, store.free_bytes())


@dataclass(frozen=True)
class VerifiedCache:
    """What verification looked at, what it found wrong, a line each, and the reasons of quarantined frames."""

    shard_count: int
    shards_done: int
    frames_checked: int
    faults: tuple[str, ...]
    quarantined: dict[str, str]

    @property
    def complete(self) -> bool:
        """Whether every shard is done."""
        return self.shards_done == self.shard_count


def run_cache_verify(location: str) -> VerifiedCache:
    """Check every receipt, checksum and value of the shards that are done."""
    status = cache_status(location)
    identity = status.identity
    reader = CacheReader(location, complete=False)
    faults: list[str] = []
    frames_checked = 0
    with progress_bar(identity.shard_count, 0, "verify", "shard") as bar:
        for shard, damages in verify_files(location):
            faults += damages
            if shard >= 0:
                bar.update()
            if shard < 0 or damages:
                continue
            for frame_id in reader.usable(tuple(reader.frames.ordered[i] for i in identity.shard_range(shard))):
                faults += content_faults(reader, frame_id, status.notes.get(frame_id, ""))
                frames_checked += 1
    return VerifiedCache(identity.shard_count, status.shards_done, frames_checked, tuple(faults), status.quarantined)


def run_recompute(
    target: str, location: str, frame_count: int, data: Path | None, run: Path | None = None
) -> tuple[Recomputed, ...]:
    """Ask the teacher again about random frames of a cache.

    Args:
        target: the run or cache folder, whose recorded recipe is taken, or the recipe itself.
        location: of the cache.
        frame_count: how many frames.
        data: data set folder, where it has moved.
        run: run folder, whose recorded recipe is taken before that of the target.

    Raises:
        StaleCacheError: if recipe or weights are not those of the cache.
    """
    folders = (run or Path(target), Path(target).parent)
    recorded = next((path for folder in folders if (path := RunFolder(folder).recipe).is_file()), None)
    recipe = load_recipe(str(recorded) if recorded is not None else target, data=data)
    stage = open_stage_one(recipe)
    reader = CacheReader(location, expected=asdict(stage.identity))
    seed = int.from_bytes(os.urandom(4))
    with progress_bar(frame_count, 0, "recompute", "frame") as bar:
        done = []
        for frame in recompute(reader, stage.source, stage.teacher, frame_count, seed):
            done.append(frame)
            bar.update()
    return tuple(done)


def _announcement(plan: CachePlan, store: CacheStore) -> str:
    text = (
        f"teacher-cache: {len(plan.pending)} of {plan.in_part} shards to write to {store.location},"
        f" {'about' if plan.exact else 'at most'} {size_text(plan.needed_bytes)}"
    )
    free_bytes = store.free_bytes()
    if free_bytes is None:
        return text
    text += f", {size_text(free_bytes)} free"
    return text + ("; that is NOT ENOUGH" if plan.exact and free_bytes < plan.needed_bytes else "")


def _portable(recipe: Recipe) -> Recipe:
    """The recipe as a worker with another working folder understands it."""
    spec = recipe.teacher_cache
    if spec.weights in KNOWN:
        return recipe
    return replace(recipe, teacher_cache=replace(spec, weights=str(Path(spec.weights).absolute())))


def run_train_student(recipe: Recipe, folder: RunFolder, *, fresh: bool = False) -> TrainStudentReport:
    """Stage two: train RUN/student from RUN/cache, continuing what is there unless `fresh`."""
    reader = CacheReader(cache_location(recipe, folder), expected=decided_identity(recipe))
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
    if recipe.eval.protocol == ZERO_SHOT:
        raise RecipeError(f"protocol: {ZERO_SHOT} is for other data sets; see `surround zero-shot --help`")
    if checkpoint is None:
        checkpoint = folder.student / ("best.safetensors" if recipe.data.selection else "last.safetensors")
    loaded = load_student(checkpoint, expected=recipe.student, expected_bins=recipe.bins)
    source = open_recipe_source(recipe)
    frame_ids = frames_to_test(recipe, source)
    refuse_leak(_learnt_from(recipe, folder, source), frame_ids)
    # What is measured here; written first, so that a folder that cannot be written is known before the hours are spent.
    write_atomically(folder.eval / "recipe.toml", recipe_toml(recipe))
    device = resolve_device(recipe.eval.device)
    precision = resolve_precision(recipe.eval.precision, device)
    student = loaded.student
    place(student, device)
    teacher = open_teacher(recipe) if recipe.eval.teacher else None
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
            decode_size=larger(recipe.teacher_cache.input_size, recipe.student.input_size),
            should_stop=should_stop,
        )
    html = write_report(folder.eval, evaluation, _provenance(recipe, loaded, checkpoint))
    return EvaluateRun(evaluation.report, html)


def frames_to_test(recipe: Recipe, source: Source) -> tuple[str, ...]:
    """Ids of the frames that a recipe tests on; a published split must be whole."""
    frame_ids = select(source, recipe.data.test)
    if len(recipe.data.test) == 1:
        require_full_count(source, recipe.data.test[0], len(frame_ids))
    return frame_ids


def _learnt_from(recipe: Recipe, folder: RunFolder, source: Source) -> SplitFrames:
    """Frames that this run's student has seen: as its cache says, else as the recipe says, if its splits are here."""
    try:
        store = open_store(cache_location(recipe, folder))
        identity, _ = load_description(store)
        return read_split_frames(store, identity)
    except CacheError:
        with suppress(SourceError):
            return SplitFrames(select(source, recipe.data.train), select(source, recipe.data.selection))
    return SplitFrames((), ())


def _encoder_weights(recipe: Recipe) -> Path | None:
    if not recipe.student.pretrained:
        return None
    return fetch_weights(recipe.student.encoder).path


def _keep_recipe(recipe: Recipe, folder: RunFolder) -> None:
    text = recipe_toml(recipe)
    if not folder.recipe.exists() or folder.recipe.read_text(encoding="utf-8") != text:
        write_atomically(folder.recipe, text)


def _provenance(recipe: Recipe, loaded: LoadedStudent, checkpoint: Path) -> dict[str, object]:
    named = {"recipe": recipe.name, "recipe_sha256": hashlib.sha256(recipe_toml(recipe).encode()).hexdigest()}
    return named | student_provenance(loaded, checkpoint)


def student_provenance(loaded: LoadedStudent, checkpoint: Path) -> dict[str, object]:
    """Where the numbers of a student come from: itself, this program, this machine, this moment."""
    lineage = loaded.lineage
    return {
        "versions": {name: metadata.version(name) for name in VERSIONED} | {"python": platform.python_version()},
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
