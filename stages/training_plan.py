"""What stage two is about to do, told before it does it; a few steps are timed and thrown away."""

import resource
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from data_cache.dataset import collate
from data_cache.reader import CacheReader
from stages.checkpoint import load_state
from stages.devices import synchronize
from stages.losses import LossSpec
from stages.parallel import process_count, rank
from stages.schedule import sample_order, split
from stages.student.model import Student
from stages.train_spec import TrainStudentSpec
from stages.train_student import STATES, on_device, open_training, run_identity, training_frames

TIMED_STEPS = 3


@dataclass(frozen=True)
class TrainingPlan:
    """What is to be done and what it will cost.

    Attributes:
        frames, quarantined: training frames, and those that are left out.
        selection_frames: of the selection split.
        steps, steps_done: in all, and in the newest saved state.
        batch_rigs, process_count, accumulate: frames of a step, and among how many they are shared out.
        parameters: of the student.
        seconds_per_step: median of the timed steps, frames at hand.
        read_seconds_per_step: to read the frames of this process in it, which loader workers do beside the steps.
        workers: loader processes.
        memory_bytes: highest so far of this process, on the GPU where it is on one.
        disk_bytes: of everything that will be kept, logs apart.
        device, precision: where and how.
    """

    frames: int
    quarantined: int
    selection_frames: int
    steps: int
    steps_done: int
    batch_rigs: int
    process_count: int
    accumulate: int
    parameters: int
    seconds_per_step: float
    read_seconds_per_step: float
    workers: int
    memory_bytes: int
    disk_bytes: int
    device: str
    precision: str

    @property
    def seconds_left(self) -> float:
        """Estimate for the steps that are left; measuring and saving apart."""
        reading = self.read_seconds_per_step
        step = max(self.seconds_per_step, reading / self.workers) if self.workers else self.seconds_per_step + reading
        return (self.steps - self.steps_done) * step


def plan_training(
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
) -> TrainingPlan:
    """Take `TIMED_STEPS` steps after one to warm up, and tell what all of them would cost. Nothing is written.

    Args: those of stages/train_student.py; `student` is of no use afterwards.

    Raises:
        SettingError, TrainingError, CheckpointError, DamagedCacheError: as train_student would.
    """
    frames = training_frames(reader, train_ids, loss_spec, depth_range_m)
    training = open_training(reader, student, spec, loss_spec, depth_range_m, device)
    run = run_identity(reader, student, frames.frame_ids, spec, loss_spec, depth_range_m, training.setting.precision)
    state = None if fresh else load_state(folder / STATES, run)
    order = sample_order(spec.seed, len(frames), spec.batch_rigs, range(1 + TIMED_STEPS))
    reading, stepping = [], []
    student.train()
    for step, batch in enumerate(order):
        begin = time.perf_counter()
        passes = split(batch, rank(), process_count(), spec.accumulate)
        found = [on_device(device, rigs) for rigs in (collate([frames[i] for i in part]) for part in passes)]
        read = time.perf_counter()
        training.step(found, step)
        synchronize(device)
        reading.append(read - begin)
        stepping.append(time.perf_counter() - read)
    state_bytes = sum(tensor.numel() * tensor.element_size() for tensor in training.tensors().values())
    student_bytes = sum(tensor.numel() * tensor.element_size() for tensor in student.state_dict().values())
    keeps_best = bool(selection_ids) and spec.keep_best
    return TrainingPlan(
        frames=len(frames),
        quarantined=len(train_ids) - len(frames),
        selection_frames=len(reader.usable(tuple(selection_ids))),
        steps=spec.steps,
        steps_done=state.step if state is not None else 0,
        batch_rigs=spec.batch_rigs,
        process_count=process_count(),
        accumulate=spec.accumulate,
        parameters=sum(parameter.numel() for parameter in student.parameters()),
        seconds_per_step=sorted(stepping[1:])[TIMED_STEPS // 2],
        read_seconds_per_step=sorted(reading[1:])[TIMED_STEPS // 2],
        workers=spec.workers,
        memory_bytes=_peak_bytes(device),
        # One state more than is kept is there while the newest is written.
        disk_bytes=(spec.keep_last + 1) * state_bytes + (1 + keeps_best) * student_bytes,
        device=str(device),
        precision=training.setting.precision,
    )


def _peak_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
