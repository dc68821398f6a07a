"""Stage two: train the student from the cache and sparse LiDAR. The teacher is not in memory.

The learning rate, the sample order and every random number are functions of (seed, step). So a run that was interrupted
and resumed gives the same student, byte for byte on a CPU with the same number of processes.
"""

import math
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from data_cache.dataset import CachedFrames, batches, collate
from data_cache.files import write_error
from data_cache.shards.reader import CacheReader
from data_cache.storage.claims import Claims
from stages.compute.parallel import any_says, everybody, leads, meet, process_count, rank, summed
from stages.compute.preemption import Preempted
from stages.compute.progress import progress_bar
from stages.evaluation.metrics import abs_rel
from stages.student.checkpoint import (
    CheckpointError,
    Lineage,
    TrainingState,
    clear_partials,
    save_state,
    save_student,
    saved_states,
)
from stages.training.log import TrainingLog, predicted_depth_m, training_picture
from stages.training.preflight import STATES, TrainingJob, check_job, frame_groups, open_training
from stages.training.schedule import learning_rate, sample_order, split
from stages.training.step import Training, TrainingError, mean_over_processes, on_device, term_values

LOG_EVERY = 10


@dataclass(frozen=True)
class TrainStudentReport:
    """The result of a run of stage two.

    Attributes:
        steps_done, steps_skipped: steps in this run, and before it.
        seconds, frames_per_s: duration and throughput of this run, over all processes.
        waiting_share: share of step time spent waiting for frames, without the first step, selection and saving; None
            after a single step.
        best_abs_rel: best score on the selection split; None if the recipe names none.
        quarantined_count: training frames left out because they are in quarantine.
    """

    steps_done: int
    steps_skipped: int
    seconds: float
    frames_per_s: float
    waiting_share: float | None
    best_abs_rel: float | None
    quarantined_count: int


def train_student(
    job: TrainingJob,
    *,
    staged: Callable[[CacheReader], CacheReader] = lambda reader: reader,
    on_accepted: Callable[[], None] = lambda: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> TrainStudentReport:
    """Train the student of `job` up to step `spec.steps`; write last (and best) checkpoints, states and logs.

    Training continues from the newest state in the job's folder unless `fresh`; running it again does nothing. With
    several processes (stages/compute/parallel.py) all make the same call, and the first one writes.

    Args:
        job: the training to run.
        staged: returns a reader of a copy of the cache that is faster to read; called after all checks, and only if
            frames will be read.
        on_accepted: called once the cache and the state are known to fit.
        should_stop: called before each step, and for each frame of the selection split.

    Raises:
        Preempted: after saving, if `should_stop` returns True in any process.
        SettingError, TrainingError, CheckpointError, DamagedCacheError: as `check_job`; also if a loss is not finite
            (term, step and frames named), another process trains in this folder, or a state cannot be written.
    """
    checked, training = check_job(job), open_training(job)
    spec, device = job.spec, job.device
    begin, best, measured = 0, math.inf, True
    if (state := checked.state) is not None:
        training.restore(state.tensors)
        begin, best, measured = state.step, state.best, state.measured
    if len(set(begins := everybody(begin))) > 1:
        raise CheckpointError(
            f"{job.folder}: expected one state for all processes, found states of different steps {begins}; give --run"
            " a path on a disk that all processes share"
        )
    order = sample_order(spec.seed, frame_groups(checked.frames), spec.batch_rigs, range(begin, spec.steps))
    passes = [part for batch in order for part in split(batch, rank(), process_count(), spec.accumulate)]
    files = _Files(job, training, checked.run)
    with ExitStack() as stack:
        log = None
        if leads():
            stack.callback(_training_lock(job.folder).release, 0)
            on_accepted()
            files.tidy(begin)
            log = stack.enter_context(TrainingLog(job.folder, begin))
        frames, selection = checked.frames, checked.selection
        if passes or not measured:
            reader = staged(job.reader)
            frames, selection = frames.read_from(reader), selection.read_from(reader)
        bar = stack.enter_context(progress_bar(spec.steps, begin, "train-student", "step", quiet=not leads()))
        loader = stack.enter_context(
            batches(frames, passes, spec.workers if passes else 0, pin_memory=device.type == "cuda")
        )
        clock = time.perf_counter()
        waited = stepped = 0.0
        job.student.train()

        def measure(done: int) -> bool:
            """Score the student after `done` steps on the selection split; True if it is the best so far."""
            nonlocal best
            score = _selection_abs_rel(training, selection, should_stop)
            if score is None:
                files.save(TrainingState(training.tensors(), done, best, measured=False))
                raise _preempted(done, job)
            if log is not None:
                log.write(done, {"selection_abs_rel": score})
            if score >= best:
                return False
            best = score
            if spec.keep_best and leads():
                # Before the state that records it: if killed in between, the resumed run measures and saves it again.
                files.save_student("best.safetensors", done)
            return True

        if not measured:
            measure(begin)
            files.save(TrainingState(training.tensors(), begin, best, measured=True))
        for step in range(begin, spec.steps):
            if any_says(should_stop(), device):
                files.save(TrainingState(training.tensors(), step, best, measured=True))
                raise _preempted(step, job)
            asked = time.perf_counter()
            found = [on_device(device, next(loader)) for _ in range(spec.accumulate)]
            given = time.perf_counter()
            terms = training.step(found, step)
            done = step + 1
            if step > begin:  # the first step starts the workers
                waited += given - asked
                stepped += time.perf_counter() - given
            if done % LOG_EVERY == 0 or done == spec.steps:
                terms = mean_over_processes(terms)
                if log is not None:
                    values = term_values(terms)
                    rate = (done - begin) * spec.batch_rigs / (time.perf_counter() - clock)
                    speed = {"learning_rate": learning_rate(step, spec), "frames_per_s": rate}
                    bar.set_postfix({name: f"{value:.3f}" for name, value in values.items()}, refresh=False)
                    log.write(done, values | speed | {"waiting_share": waited / max(waited + stepped, 1e-9)})
            bar.update()
            selects = len(selection) and (done % spec.select_every == 0 or done == spec.steps)
            improved = measure(done) if selects else False
            due = done % spec.checkpoint_every == 0 or done == spec.steps
            if due or improved:
                files.save(TrainingState(training.tensors(), done, best, measured=True))
            if due and log is not None:
                shown = on_device(device, collate([(selection if len(selection) else frames)[0]]))
                how = training.setting
                log.show(done, training_picture(training.student, shown, how.depth_range_m, how.precision))
    meet()
    seconds = time.perf_counter() - clock
    steps_done = spec.steps - begin
    return TrainStudentReport(
        steps_done,
        begin,
        seconds,
        steps_done * spec.batch_rigs / seconds,
        waited / (waited + stepped) if steps_done > 1 else None,
        best if len(selection) else None,
        len(job.train_ids) - len(job.reader.usable(tuple(job.train_ids))),
    )


@dataclass(frozen=True, eq=False)
class _Files:
    """Writes the checkpoints and states of a training."""

    job: TrainingJob
    training: Training
    run: Mapping[str, Any]

    def save_student(self, name: str, step: int) -> None:
        cache, range_m = self.job.reader.identity, self.job.depth_range_m
        lineage = Lineage(cache.teacher_name, cache.teacher_licence, cache.sha256, cache.source, range_m, step)
        save_student(self.job.folder / name, self.training.student, lineage)

    def save(self, state: TrainingState) -> None:
        """Write student and state; of several processes only the first one does."""
        if leads():
            # The state last: a student without its state is trained again, a state without a student counts as done.
            self.save_student("last.safetensors", state.step)
            save_state(self.job.folder / STATES, state, self.run, self.job.spec.keep_last)

    def tidy(self, begin: int) -> None:
        """Remove files of killed or discarded trainings, and write the student if only its state was saved."""
        folder = self.job.folder
        clear_partials(folder)
        for old in (*saved_states(folder / STATES), *folder.glob("*.safetensors")) if self.job.fresh else ():
            old.unlink()
        if begin and not (folder / "last.safetensors").exists():
            self.save_student("last.safetensors", begin)


def _preempted(step: int, job: TrainingJob) -> Preempted:
    meet()  # a process that ends early may end the others before the first one has saved
    return Preempted(f"stopped after step {step} of {job.spec.steps}; the state is saved in {job.folder}")


def _training_lock(folder: Path) -> Claims:
    """Lock a folder of checkpoints; release shard 0 of the result to unlock it.

    Raises:
        TrainingError: if another process trains there, such as a job that was requeued before it had ended.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        claims = Claims(folder / "training.lock")
    except OSError as error:
        raise write_error(error, folder) from error
    if not claims.take(0):
        raise TrainingError(
            f"another process is training in {folder}; wait for it to end, or give --run another folder"
        )
    return claims


def _selection_abs_rel(training: Training, frames: CachedFrames, should_stop: Callable[[], bool]) -> float | None:
    """Mean AbsRel over the images of the selection frames at the student's input size; processes share the frames.

    Returns None if any process is asked to stop.
    """
    depth_range_m = training.setting.depth_range_m
    total = torch.zeros(2, dtype=torch.float64, device=training.device)
    for first in range(0, len(frames), process_count()):
        if any_says(should_stop(), training.device):
            return None
        if first + rank() >= len(frames):
            continue
        rigs = on_device(training.device, collate([frames[first + rank()]]))
        depths_m = predicted_depth_m(training.student, rigs, training.setting.precision)[0]
        for depth_m, lidar_m in zip(depths_m.cpu().numpy(), rigs.lidar_depth_m[0].cpu().numpy(), strict=True):
            valid = (lidar_m > depth_range_m[0]) & (lidar_m < depth_range_m[1])
            if valid.any():
                score = abs_rel(predicted_m=depth_m[valid].clip(*depth_range_m), truth_m=lidar_m[valid])
                total += torch.tensor([score, 1.0], dtype=torch.float64, device=training.device)
    score, images = summed(total).tolist()
    return float(score / images)
