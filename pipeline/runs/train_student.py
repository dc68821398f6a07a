"""Runs stage two of a recipe: trains the student of a run folder."""

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from data_cache.shards.reader import CacheReader
from data_cache.shards.staging import stage_cache
from pipeline.errors import RecipeError
from pipeline.recipe.config import Recipe, keep_recipe
from pipeline.recipe.run_folder import RunFolder, cache_location
from pipeline.runs.splits import lidar_frames
from pipeline.runs.stage_one import decided_identity
from pipeline.weights.fetch import fetch_weights
from stages.compute.parallel import joined, leads
from stages.compute.preemption import Preempted, preemption
from stages.compute.progress import progress_bar
from stages.student.encoder import ENCODERS
from stages.student.model import Student
from stages.train_student import TrainStudentReport, train_student
from stages.training.motion_fits import DEFINITION, motion_fits
from stages.training.plan import TrainingPlan, plan_training
from stages.training.preflight import TrainingJob, check_job
from stages.training.refined_metres import RefinerJob, refined_metres
from stages.training.spec import TrainStudentSpec


def run_train_student(recipe: Recipe, folder: RunFolder, *, fresh: bool = False) -> TrainStudentReport:
    """Stage two: train RUN/student from RUN/cache; continues a saved state unless `fresh`.

    Raises:
        Preempted: on SIGTERM or SIGUSR1, after saving.
        RecipeError, SettingError, StaleCacheError, IncompleteCacheError: found before anything is made or trained.
        DamagedCacheError, TrainingError, CheckpointError, LoaderError, WriteError: see
            `stages.train_student.train_student`, `stages.training.refined_metres.refined_metres`.
    """
    # A process that still waits for the others ends at once on a signal: nothing has begun.
    with joined(recipe.train_student.device) as device, preemption() as should_stop:
        return train_recipe(recipe, folder, device, fresh=fresh, should_stop=should_stop)


def train_recipe(
    recipe: Recipe,
    folder: RunFolder,
    device: torch.device,
    *,
    fresh: bool = False,
    shared: RunFolder | None = None,
    should_stop: Callable[[], bool],
) -> TrainStudentReport:
    """Do as `run_train_student`, for a caller that handles signals and devices itself.

    Args:
        recipe, folder: what to train, and where.
        device: of this process.
        fresh: begin again although there is a saved state.
        shared: the run folder whose metres of frames without LiDAR are read and added to; its own where None.
        should_stop: asked between frames and steps.

    Raises:
        Preempted: if `should_stop` returns True, after saving.
        SurroundError: as `run_train_student`.
    """
    stage_to = _stage_to(recipe.train_student)
    job = _training_job(recipe, folder, device, fresh=fresh)
    if (lidar_ids := _teaching_without_lidar(recipe, job)) is not None:
        job = _with_metres(recipe, job, lidar_ids, shared or folder, should_stop)
    return train_student(
        job,
        staged=lambda reader: _staged(reader, stage_to, should_stop),
        on_accepted=lambda: keep_recipe(recipe, folder.recipe),
        should_stop=should_stop,
    )


def _teaching_without_lidar(recipe: Recipe, job: TrainingJob) -> frozenset[str] | None:
    """The frames with LiDAR, if there are others and these need metres.

    Raises:
        RecipeError: if a refiner would learn from bins that LiDAR has corrected.
    """
    losses = recipe.losses
    if job.lidar_ids is None or losses.without_lidar == "student" or losses.lidar_alone:
        return None
    if job.lidar_ids.issuperset(job.reader.usable(tuple(job.train_ids))):
        return None
    if losses.without_lidar == "refined" and recipe.bins.strategy == "local":
        raise RecipeError(
            "losses.without_lidar = refined: a refiner learns how far off the teacher's bins are where there is LiDAR,"
            " but with bins.strategy = local that LiDAR has corrected them already; set losses.without_lidar ="
            " 'motion', or take another strategy"
        )
    return job.lidar_ids


def _with_metres(
    recipe: Recipe,
    job: TrainingJob,
    lidar_ids: frozenset[str],
    shared: RunFolder,
    should_stop: Callable[[], bool],
) -> TrainingJob:
    """The job with metres for the frames without LiDAR, made before the first step where they are missing."""
    refined, range_m = recipe.losses.without_lidar == "refined", recipe.data.depth_range_m
    job = _identified(recipe, job, lidar_ids, shared)
    state = check_job(job).state  # what recipe, cache or state rule out is refused before hours of fits
    if state is not None and state.step >= job.spec.steps:
        return job
    fits = motion_fits(job.reader, recipe.bins, range_m, lidar_ids, shared.motion, should_stop, everywhere=refined)
    if not refined:
        return replace(job, teacher_fits=fits)
    refiner = refiner_job(recipe, job.reader, lidar_ids, fits, shared, job.device)
    return replace(job, metres=refined_metres(refiner, should_stop))


def _identified(recipe: Recipe, job: TrainingJob, lidar_ids: frozenset[str], shared: RunFolder) -> TrainingJob:
    """The job with what tells its metres from others, which need not be there yet."""
    if recipe.losses.without_lidar == "motion":
        return replace(job, metres_id=DEFINITION)
    return replace(job, metres_id=refiner_job(recipe, job.reader, lidar_ids, {}, shared, job.device).digest)


def refiner_job(
    recipe: Recipe,
    reader: CacheReader,
    lidar_ids: frozenset[str],
    fits: Mapping[str, Tensor],
    shared: RunFolder,
    device: torch.device,
) -> RefinerJob:
    """What the refiner of a recipe learns from.

    Args:
        recipe: its sections `student`, `bins`, `train_student` and `data`.
        reader: the cache.
        lidar_ids: training frames whose LiDAR teaches.
        fits: the teacher placed by motion, see `motion_fits`; not needed for `RefinerJob.digest`.
        shared: run folder that keeps the metres.
        device: of the training.
    """
    return RefinerJob(
        reader=reader,
        student=recipe.student,
        bins=recipe.bins,
        encoder_weights=_encoder_weights(recipe),
        spec=recipe.train_student,
        depth_range_m=recipe.data.depth_range_m,
        lidar_ids=lidar_ids,
        fits=fits,
        folder=shared.refined,
        device=device,
    )


def run_plan_training(recipe: Recipe, folder: RunFolder, *, fresh: bool = False) -> TrainingPlan:
    """Plan stage two and estimate its cost, without the metres of frames without LiDAR; writes nothing."""
    _stage_to(recipe.train_student)
    with joined(recipe.train_student.device) as device:
        job = _training_job(recipe, folder, device, fresh=fresh)
        lidar_ids = _teaching_without_lidar(recipe, job)
        if lidar_ids is not None:
            job = _identified(recipe, job, lidar_ids, folder)
        return plan_training(job)


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
        lidar_frames(recipe.data, reader.frames.train),
    )


def _stage_to(spec: TrainStudentSpec) -> Path | None:
    """The folder of train_student.stage_to, a disk of this machine, with its variables filled in."""
    if not spec.stage_to:
        return None
    folder = Path(os.path.expandvars(spec.stage_to)).expanduser()
    if "$" in str(folder):
        raise RecipeError(f"train_student.stage_to: {spec.stage_to!r} names a variable that is not set; set it")
    return folder


def _staged(reader: CacheReader, folder: Path | None, should_stop: Callable[[], bool]) -> CacheReader:
    """Copy the frames that are learnt from to `folder`, if there is one, and read them there."""
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


def _encoder_weights(recipe: Recipe) -> Path | None:
    name = ENCODERS[recipe.student.encoder].weights
    return fetch_weights(name).path if recipe.student.pretrained and name else None
