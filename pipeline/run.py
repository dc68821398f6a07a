"""Runs of the stages: a recipe and a run folder in, files and a report out. No click here."""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from data_cache.errors import FrameError, SourceError
from data_cache.files import file_sha256, size_text, write_atomically
from data_cache.images import larger
from data_cache.reader import CacheReader, CacheStatus, cache_status, read_split_frames
from data_cache.schema import (
    CacheError,
    SplitFrames,
    load_description,
)
from data_cache.sources import Source, select, spread
from data_cache.staging import stage_cache
from data_cache.store import CacheStore, open_store
from data_cache.writer import CachePlan
from pipeline import cluster
from pipeline.api import SurroundStudent
from pipeline.config import Recipe, recipe_toml
from pipeline.errors import RecipeError
from pipeline.folders import RunFolder, cache_location
from pipeline.hub import PREFIX
from pipeline.provenance import surroundings
from pipeline.report import write_report
from pipeline.signals import preemption
from pipeline.stage_one import (
    chosen,
    decided_identity,
    fit_settings,
    frames_to_learn,
    open_data,
    open_run_stage_one,
    open_stage_one,
    open_teacher,
    refuse_leak,
)
from pipeline.weights import KNOWN, fetch_weights
from stages.checkpoint import LoadedStudent, load_student
from stages.devices import place, resolve_device, resolve_precision
from stages.evaluate import evaluate
from stages.fit_bins import FittedBins, fit_bins, load_fitted, require_made_with, save_fitted
from stages.parallel import joined, leads
from stages.point_cloud import PointCloud, frame_cloud
from stages.predictions import open_predictions
from stages.progress import Preempted, progress_bar
from stages.protocols import PROTOCOLS, ZERO_SHOT, measured_frames, require_full_count
from stages.results import EvaluateReport, Evaluation
from stages.student.encoder import ENCODERS
from stages.student.fold import folded
from stages.student.model import Student
from stages.teacher_cache import TeacherCacheReport
from stages.train_spec import TrainStudentSpec
from stages.train_student import TrainStudentReport, train_student
from stages.training_job import TrainingJob
from stages.training_plan import TrainingPlan, plan_training


@dataclass(frozen=True)
class FitBinsRun:
    """What fit-bins has fitted, now or before, and where it is."""

    fitted: FittedBins
    path: Path
    already_done: bool


def run_fit_bins(recipe: Recipe, folder: RunFolder) -> FitBinsRun:
    """Fit the map of the binning strategy `fitted` to LiDAR of training frames and write RUN/bins.json.

    Raises:
        FitError: if the one there belongs to another teacher or recipe, or there is nothing to fit to.
    """
    stage = open_stage_one(replace(recipe, bins=replace(recipe.bins, strategy="affine")))
    made_with = fit_settings(stage)
    if folder.bins.is_file():
        fitted = load_fitted(folder.bins)
        require_made_with(folder.bins, fitted, made_with)
        return FitBinsRun(fitted, folder.bins, already_done=True)
    frame_ids = spread(stage.frames.train, recipe.bins.fit_frames)
    # Frames looked at under another recipe are not these: each recipe has a folder of its own.
    key = hashlib.sha256(json.dumps([made_with, stage.teacher.precision, frame_ids]).encode()).hexdigest()[:16]
    identity = stage.identity
    with preemption() as should_stop, progress_bar(len(frame_ids), 0, "fit-bins", "frame") as bar:
        fitted = fit_bins(
            stage.source,
            stage.teacher,
            frame_ids,
            made_with,
            folder.fit_partials / key,
            image_size=identity.image_size,
            prob_size=identity.prob_size,
            depth_range_m=recipe.data.depth_range_m,
            batch_images=stage.batch_images,
            on_frame=bar.update,
            should_stop=should_stop,
        )
    save_fitted(folder.bins, fitted)
    shutil.rmtree(folder.fit_partials)
    return FitBinsRun(fitted, folder.bins, already_done=False)


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
    stage = open_run_stage_one(recipe, folder)
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
                cluster.ShardJob(recipe_toml(_portable(recipe)), location, retry_quarantined, stage.knots),
                plan.pending,
                logs=folder.slurm_logs.absolute(),
                on_shard=lambda shard: bar.update(frames[shard]),
                say=say,
                should_stop=should_stop,
            )
            writer.plan(part=part)  # clears away what workers that were killed on the way have left
    return TeacherCacheRun(writer.store.location, plan, report, time.perf_counter() - begin, cache_status(location))


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
    if spec.weights in KNOWN or spec.weights.startswith(PREFIX):
        return recipe
    return replace(recipe, teacher_cache=replace(spec, weights=str(Path(spec.weights).absolute())))


def run_train_student(recipe: Recipe, folder: RunFolder, *, fresh: bool = False) -> TrainStudentReport:
    """Stage two: train RUN/student from RUN/cache, continuing what is there unless `fresh`."""
    # A signal ends those that still wait for the others at once: nothing has begun.
    with joined(recipe.train_student.device) as device, preemption() as should_stop:
        return train_recipe(recipe, folder, device, fresh=fresh, should_stop=should_stop)


def train_recipe(
    recipe: Recipe, folder: RunFolder, device: torch.device, *, fresh: bool = False, should_stop: Callable[[], bool]
) -> TrainStudentReport:
    """`run_train_student` for a caller that minds signals and devices itself."""
    stage_to = _stage_to(recipe.train_student)
    return train_student(
        _training_job(recipe, folder, device, fresh=fresh),
        staged=lambda reader: _staged(reader, stage_to, should_stop),
        on_accepted=lambda: _keep_recipe(recipe, folder),
        should_stop=should_stop,
    )


def run_plan_training(recipe: Recipe, folder: RunFolder, *, fresh: bool = False) -> TrainingPlan:
    """What stage two would do and cost; writes nothing."""
    _stage_to(recipe.train_student)
    with joined(recipe.train_student.device) as device:
        return plan_training(_training_job(recipe, folder, device, fresh=fresh))


def _training_job(recipe: Recipe, folder: RunFolder, device: torch.device, *, fresh: bool) -> TrainingJob:
    reader = CacheReader(cache_location(recipe, folder), expected=decided_identity(recipe))
    return TrainingJob(
        reader,
        _new_student(recipe),
        reader.frames.train,
        reader.frames.selection,
        folder.student,
        recipe.train_student,
        recipe.losses,
        recipe.data.depth_range_m,
        device,
        fresh,
    )


def _stage_to(spec: TrainStudentSpec) -> Path | None:
    """The folder on a disk of this machine that the recipe names, its variables filled in."""
    if not spec.stage_to:
        return None
    folder = Path(os.path.expandvars(spec.stage_to)).expanduser()
    if "$" in str(folder):
        raise RecipeError(f"train_student.stage_to: {spec.stage_to!r} names a variable that is not set here; set it")
    return folder


def _staged(reader: CacheReader, folder: Path | None, should_stop: Callable[[], bool]) -> CacheReader:
    """A copy there of what is learnt from."""
    if folder is None:
        return reader
    with progress_bar(1, 0, "stage", "B", quiet=not leads(), unit_scale=True) as bar:

        def show(done: int, total: int) -> None:
            if should_stop():
                raise Preempted("stopped while the cache was copied; what is copied stays")
            bar.total = total
            bar.update(done - bar.n)

        return stage_cache(reader, reader.frames.ordered, folder, on_bytes=show)


def _new_student(recipe: Recipe) -> Student:
    # The random parts of the student come from the recipe's seed, whatever ran in this process before.
    torch.manual_seed(recipe.train_student.seed)
    return Student(recipe.student, recipe.bins, _encoder_weights(recipe))


@dataclass(frozen=True)
class EvaluateRun:
    """What stage three measured and where the report is."""

    report: EvaluateReport
    html: Path


def run_evaluate(
    recipe: Recipe, folder: RunFolder, *, checkpoint: Path | None = None, predictions: Path | None = None
) -> EvaluateRun:
    """Stage three: measure the student on the test split and write RUN/eval.

    Args:
        recipe, folder: of the run.
        checkpoint: of another student than the run's own.
        predictions: a folder of depth maps that are measured in place of a student; neither student nor teacher is
            loaded then.
    """
    if predictions is not None:
        if recipe.eval.flip:
            raise RecipeError("eval.flip: depth maps of a folder cannot be averaged with flipped ones; leave it out")
        return _evaluate_predictions(recipe, folder, predictions)
    if recipe.eval.protocol == ZERO_SHOT.name:
        raise RecipeError(f"protocol: {ZERO_SHOT.name} is for other data sets; see `surround zero-shot --help`")
    checkpoint = checkpoint or own_checkpoint(recipe, folder)
    loaded = load_student(checkpoint, expected=recipe.student, expected_bins=recipe.bins)
    source = open_data(recipe.data)
    frame_ids = frames_to_test(recipe, source)
    refuse_leak(learnt_from(recipe, folder, source), frame_ids)
    _keep_eval_recipe(recipe, folder)
    device = resolve_device(recipe.eval.device)
    precision = resolve_precision(recipe.eval.precision, device)
    student = folded(loaded.student)
    place(student, device)
    teacher = open_teacher(recipe) if recipe.eval.teacher else None
    with preemption() as should_stop:
        evaluation = evaluate(
            source,
            frame_ids,
            recipe.data.named(recipe.data.test),
            student,
            teacher,
            recipe.eval,
            device=device,
            precision=precision,
            decode_size=larger(recipe.teacher_cache.input_size, recipe.student.input_size),
            save_to=folder.predictions,
            should_stop=should_stop,
        )
    seen_by = SurroundStudent(student, loaded.lineage, device, precision)
    html = write_report(
        folder.eval,
        evaluation,
        _recipe_provenance(recipe) | student_provenance(loaded, checkpoint),
        _cloud(source, evaluation, seen_by),
    )
    return EvaluateRun(evaluation.report, html)


def _cloud(source: Source, evaluation: Evaluation, student: SurroundStudent) -> tuple[str, PointCloud] | None:
    """The first frame that the report shows, as points; None where nobody knows how the cameras sit on the vehicle."""
    if not evaluation.pictures:
        return None
    frame = source.frame(evaluation.pictures[0].frame_id)
    with suppress(FrameError):
        range_m, stride = student.lineage.depth_range_m, student.network.bins.prob_stride
        return frame.id, frame_cloud(frame, student.look(frame), range_m, stride)
    return None


def _evaluate_predictions(recipe: Recipe, folder: RunFolder, predictions: Path) -> EvaluateRun:
    source = open_data(recipe.data)
    frame_ids = frames_to_test(recipe, source)
    opened = open_predictions(predictions, source, frame_ids, recipe.student.input_size)
    _keep_eval_recipe(recipe, folder)
    with preemption() as should_stop:
        evaluation = evaluate(
            source,
            frame_ids,
            recipe.data.named(recipe.data.test),
            opened,
            None,
            recipe.eval,
            device=torch.device("cpu"),
            precision="fp32",
            decode_size=recipe.student.input_size,
            should_stop=should_stop,
        )
    provenance = _recipe_provenance(recipe) | {"predictions": str(predictions), **surroundings()}
    return EvaluateRun(evaluation.report, write_report(folder.eval, evaluation, provenance))


def _keep_eval_recipe(recipe: Recipe, folder: RunFolder) -> None:
    # What is measured here; written first, so that a folder that cannot be written is known before the hours are spent.
    write_atomically(folder.eval / "recipe.toml", recipe_toml(recipe))


def own_checkpoint(recipe: Recipe, folder: RunFolder) -> Path:
    """The student of a run that counts: the best on the selection split, where the recipe names one, else the last."""
    best = recipe.data.selection and recipe.train_student.keep_best
    return folder.student / ("best.safetensors" if best else "last.safetensors")


def frames_to_test(recipe: Recipe, source: Source) -> tuple[str, ...]:
    """Ids of the frames that a recipe tests on and its protocol measures.

    A published split must be whole, unless the recipe limits it.
    """
    protocol = PROTOCOLS[recipe.eval.protocol]
    selected = chosen(recipe.data, source, recipe.data.test)
    frame_ids = measured_frames(protocol, source, selected)
    if not frame_ids:
        raise RecipeError(
            f"data.test: protocol {protocol.name} measures none of its {len(selected)} frames: it leaves out the first"
            " and the last one of each drive"
        )
    if selected == select(source, recipe.data.test):
        require_full_count(protocol, source, recipe.data.test, frame_ids)
    return frame_ids


def learnt_from(recipe: Recipe, folder: RunFolder, source: Source) -> SplitFrames:
    """Frames that this run's student has seen: as its cache says, else as the recipe says, if its splits are here."""
    try:
        store = open_store(cache_location(recipe, folder))
        identity, _ = load_description(store)
        return read_split_frames(store, identity)
    except CacheError:
        with suppress(SourceError):
            return frames_to_learn(recipe.data, source)
    return SplitFrames((), ())


def _encoder_weights(recipe: Recipe) -> Path | None:
    name = ENCODERS[recipe.student.encoder].weights
    return fetch_weights(name).path if recipe.student.pretrained and name else None


def _keep_recipe(recipe: Recipe, folder: RunFolder) -> None:
    text = recipe_toml(recipe)
    if not folder.recipe.exists() or folder.recipe.read_text(encoding="utf-8") != text:
        write_atomically(folder.recipe, text)


def _recipe_provenance(recipe: Recipe) -> dict[str, object]:
    return {"recipe": recipe.name, "recipe_sha256": hashlib.sha256(recipe_toml(recipe).encode()).hexdigest()}


def student_provenance(loaded: LoadedStudent, checkpoint: Path) -> dict[str, object]:
    """Where the numbers of a student come from: itself, this program, this machine, this moment."""
    lineage = loaded.lineage
    return {
        "cache_id": lineage.cache_id,
        "checkpoint": checkpoint.name,
        "checkpoint_sha256": file_sha256(checkpoint),
        "steps": lineage.steps,
        "teacher": lineage.teacher,
        "teacher_licence": lineage.teacher_licence,
        **surroundings(),
    }
