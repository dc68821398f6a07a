"""Stage two: train the student from the cache and sparse LiDAR. The teacher is not in memory.

The learning rate, the sample order and every random number are functions of (seed, step): a run that was interrupted
and resumed is the same run, byte for byte on a CPU with the same number of processes.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from data_cache.claims import Claims
from data_cache.dataset import CachedFrames, CachedRigs, batches, collate, map_rigs
from data_cache.files import write_error
from data_cache.reader import CacheReader
from stages.binning import stored_binning
from stages.checkpoint import (
    CheckpointError,
    Lineage,
    TrainingState,
    architecture,
    clear_partials,
    load_state,
    save_state,
    save_student,
    saved_states,
)
from stages.devices import resolve_precision
from stages.losses import LossSpec
from stages.metrics import abs_rel
from stages.parallel import any_says, everybody, leads, meet, process_count, rank, summed
from stages.progress import Preempted, progress_bar
from stages.schedule import learning_rate, sample_order, split
from stages.student.model import Student
from stages.train_spec import HOW_NOT_WHAT, TrainStudentSpec
from stages.training import Setting, Training, TrainingError, mean_over_processes, term_values
from stages.training_log import TrainingLog, predicted_depth_m, training_picture

LOG_EVERY = 10
STATES = "states"


@dataclass(frozen=True)
class TrainStudentReport:
    """What a run of stage two did.

    Attributes:
        steps_done, steps_skipped: in this run, and before it.
        seconds, frames_per_s: of this run, over all processes.
        waiting_share: of the time after its first step, what was spent waiting for frames; None of a single step.
        best_abs_rel: None where the recipe names no selection split.
        quarantined_count: training frames that were left out.
    """

    steps_done: int
    steps_skipped: int
    seconds: float
    frames_per_s: float
    waiting_share: float | None
    best_abs_rel: float | None
    quarantined_count: int


def train_student(
    reader: CacheReader,
    student: Student,
    train_ids: Sequence[str],
    selection_ids: Sequence[str],
    folder: Path,
    spec: TrainStudentSpec,
    loss_spec: LossSpec,
    depth_range_m: tuple[float, float],
    *,
    device: torch.device,
    fresh: bool = False,
    on_accepted: Callable[[], None] = lambda: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> TrainStudentReport:
    """Train `student` for `spec.steps` steps and leave last (and best) checkpoints, states and logs in `folder`.

    The newest state in `folder` is continued unless `fresh`; running it twice does nothing the second time.
    `on_accepted` is called once the cache and the state are known to fit. Of several processes (stages/parallel.py) all
    call it alike, and the first one writes.

    Raises:
        Preempted: after saving, if `should_stop` says so to any process between two steps.
        SettingError: if the frames of a step cannot be shared out evenly.
        TrainingError: if no frame is usable, none has LiDAR in range though it should teach, or a loss is not finite
            (term, step and frames named).
        CheckpointError: if no state can be read, it belongs to another run, or it cannot be written.
        DamagedCacheError: if the cache is damaged.
    """
    frames = training_frames(reader, train_ids, loss_spec, depth_range_m)
    selection = CachedFrames(reader, reader.usable(tuple(selection_ids)))
    if len(selection) and not _any_lidar(selection, depth_range_m):
        raise TrainingError("the selection split has no LiDAR point in range; choose other frames for data.selection")
    training = open_training(reader, student, spec, loss_spec, depth_range_m, device)
    precision = training.setting.precision
    run = run_identity(reader, student, frames.frame_ids, spec, loss_spec, depth_range_m, precision)
    begin, best = 0, math.inf
    if not fresh and (state := load_state(folder / STATES, run)) is not None:
        training.restore(state.tensors)
        begin, best = state.step, state.best
    if len(set(begins := everybody(begin))) > 1:
        raise CheckpointError(
            f"{folder}: the processes found states of different steps there, {begins}; all of them must see the same"
            " folder: give --run a path on a disk that they share"
        )
    order = sample_order(spec.seed, len(frames), spec.batch_rigs, range(begin, spec.steps))
    passes = [part for batch in order for part in split(batch, rank(), process_count(), spec.accumulate)]

    def keep_student(name: str, step: int) -> None:
        cache = reader.identity
        lineage = Lineage(cache.teacher_name, cache.teacher_licence, cache.sha256, cache.source, depth_range_m, step)
        save_student(folder / name, training.student, lineage)

    def save(step: int) -> None:
        if leads():
            # The state last: a student without its state is trained again, a state without one would count as done.
            keep_student("last.safetensors", step)
            save_state(folder / STATES, TrainingState(training.tensors(), step, best), run, spec.keep_last)

    log = alone = None
    if leads():
        alone = _alone_in(folder)
        on_accepted()
        clear_partials(folder)
        for old in (*saved_states(folder / STATES), *folder.glob("*.safetensors")) if fresh else ():
            old.unlink()
        if begin and not (folder / "last.safetensors").exists():
            keep_student("last.safetensors", begin)
        log = TrainingLog(folder, begin)
    reading = batches(frames, passes, spec.workers if passes else 0, pin_memory=device.type == "cuda")
    clock = first_step_ended = time.perf_counter()
    waited = 0.0
    student.train()
    with ExitStack() as stack:
        if alone is not None:
            stack.callback(alone.release, 0)
        bar = stack.enter_context(progress_bar(spec.steps, begin, "train-student", "step", quiet=not leads()))
        if log is not None:
            stack.enter_context(log)
        loader = stack.enter_context(reading)
        for step in range(begin, spec.steps):
            if any_says(should_stop(), device):
                save(step)
                meet()
                raise Preempted(f"stopped after step {step} of {spec.steps}; the state is saved in {folder}")
            asked = time.perf_counter()
            found = [on_device(device, next(loader)) for _ in range(spec.accumulate)]
            if step == begin:
                first_step_ended = time.perf_counter()
            else:
                waited += time.perf_counter() - asked
            terms = training.step(found, step)
            done = step + 1
            if done % LOG_EVERY == 0 or done == spec.steps:
                terms = mean_over_processes(terms)
                if log is not None:
                    values = term_values(terms)
                    now = time.perf_counter()
                    rate = (done - begin) * spec.batch_rigs / (now - clock)
                    speed = {"learning_rate": learning_rate(step, spec), "frames_per_s": rate}
                    bar.set_postfix({name: f"{value:.3f}" for name, value in values.items()}, refresh=False)
                    log.write(done, values | speed | {"waiting_share": waited / max(now - first_step_ended, 1e-9)})
            bar.update()
            improved = False
            if len(selection) and (done % spec.select_every == 0 or done == spec.steps):
                score = _selection_abs_rel(training, selection, depth_range_m)
                if log is not None:
                    log.write(done, {"selection_abs_rel": score})
                if improved := score < best:
                    best = score
                    if spec.keep_best and leads():
                        # Before the state that knows of it: killed in between, the resumed run finds it again.
                        keep_student("best.safetensors", done)
            due = done % spec.checkpoint_every == 0 or done == spec.steps
            if due or improved:
                save(done)
            if due and log is not None:
                shown = on_device(device, collate([(selection if len(selection) else frames)[0]]))
                log.show(done, training_picture(training.student, shown, depth_range_m, precision))
    meet()
    now = time.perf_counter()
    steps_done = spec.steps - begin
    return TrainStudentReport(
        steps_done,
        begin,
        now - clock,
        steps_done * spec.batch_rigs / (now - clock),
        waited / (now - first_step_ended) if steps_done > 1 else None,
        best if len(selection) else None,
        len(train_ids) - len(frames),
    )


def _alone_in(folder: Path) -> Claims:
    """A lock on a folder of checkpoints, for the shard 0 of what is returned.

    Raises:
        TrainingError: if another process trains there, as a job that was queued again before it had ended.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        claims = Claims(folder / "training.lock")
    except OSError as error:
        raise write_error(error, folder) from error
    if not claims.take(0):
        raise TrainingError(f"another process is training in {folder}; wait for its end, or give --run another folder")
    return claims


def training_frames(
    reader: CacheReader, train_ids: Sequence[str], loss_spec: LossSpec, depth_range_m: tuple[float, float]
) -> CachedFrames:
    """The training frames that are usable.

    Raises:
        TrainingError: if there are none, or none has LiDAR in range though it should teach.
    """
    usable = reader.usable(tuple(train_ids))
    if not usable:
        raise TrainingError(
            f"{reader.store.location}: all {len(train_ids)} training frames are quarantined; see teacher-cache"
        )
    frames = CachedFrames(reader, usable, neighbours=loss_spec.photometric > 0)
    if loss_spec.supervised and not _any_lidar(frames, depth_range_m):
        raise TrainingError(
            f"{reader.store.location}: no training frame has a LiDAR return between {depth_range_m[0]} and"
            f" {depth_range_m[1]} m, so nothing says how many metres; check the LiDAR files and data.depth_range_m,"
            " or set losses.supervised = 0.0"
        )
    return frames


def open_training(
    reader: CacheReader,
    student: Student,
    spec: TrainStudentSpec,
    loss_spec: LossSpec,
    depth_range_m: tuple[float, float],
    device: torch.device,
) -> Training:
    """A training of `student` before its first step; raises TrainingError if the cache lacks what a loss needs."""
    require_tokens(reader, loss_spec)
    binning = stored_binning(student.bins, reader.identity.bin_knots)
    setting = Setting(binning, loss_spec, depth_range_m, resolve_precision(spec.precision, device))
    return Training(student, reader.identity.token_channels if loss_spec.feature else 0, setting, spec, device)


def require_tokens(reader: CacheReader, loss_spec: LossSpec) -> None:
    """Raise TrainingError if a loss learns from teacher tokens that the cache does not hold."""
    if (loss_spec.feature or loss_spec.all_relation) and not reader.identity.token_channels:
        raise TrainingError(
            f"{reader.store.location} holds no teacher tokens, from which losses.feature and losses.all_relation learn;"
            " set teacher_cache.tokens = true and write the cache again, or do without these losses"
        )


def on_device(device: torch.device, rigs: CachedRigs) -> CachedRigs:
    """The rigs there."""
    return map_rigs(lambda tensor: tensor.to(device, non_blocking=True), rigs)


def _selection_abs_rel(training: Training, frames: CachedFrames, depth_range_m: tuple[float, float]) -> float:
    """Mean AbsRel over the images of the selection frames at the student's own size; each process takes its share."""
    total = torch.zeros(2, dtype=torch.float64, device=training.device)
    own = range(rank(), len(frames), process_count())
    for rigs in map(collate, ([frames[i]] for i in own)):
        depths_m = predicted_depth_m(training.student, on_device(training.device, rigs), training.setting.precision)[0]
        for depth_m, lidar_m in zip(depths_m.cpu().numpy(), rigs.lidar_depth_m[0].numpy(), strict=True):
            valid = (lidar_m > depth_range_m[0]) & (lidar_m < depth_range_m[1])
            if valid.any():
                score = abs_rel(predicted_m=depth_m[valid].clip(*depth_range_m), truth_m=lidar_m[valid])
                total += torch.tensor([score, 1.0], dtype=torch.float64, device=training.device)
    score, images = summed(total).tolist()
    return float(score / images)


def _any_lidar(frames: CachedFrames, depth_range_m: tuple[float, float]) -> bool:
    """Whether any frame has a return in range; the first one usually answers."""
    near_m, far_m = depth_range_m
    return any(
        bool(((rig.lidar_depth_m > near_m) & (rig.lidar_depth_m < far_m)).any())
        for rig in (frames[i] for i in range(len(frames)))
    )


def run_identity(
    reader: CacheReader,
    student: Student,
    train_ids: Sequence[str],
    spec: TrainStudentSpec,
    loss_spec: LossSpec,
    depth_range_m: tuple[float, float],
    precision: str,
) -> Mapping[str, Any]:
    """What two runs must share to be the same run."""
    train = {k: v for k, v in asdict(spec).items() if k not in HOW_NOT_WHAT}
    return {
        "cache": reader.identity.sha256,
        "train_frames": list(train_ids),
        "student": asdict(student.spec),
        "bins": architecture(student.bins),  # how the teacher's were cut is the cache's
        "train_student": train | {"precision": precision},
        "losses": asdict(loss_spec),
        "depth_range_m": list(depth_range_m),
    }
