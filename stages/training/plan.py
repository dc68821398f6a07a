"""A dry run of stage two: what it will do and cost, from a few timed steps that are discarded."""

import resource
import time
from dataclasses import dataclass

import torch

from data_cache.dataset import collate
from stages.compute.devices import synchronize
from stages.compute.parallel import process_count, rank
from stages.training.preflight import TrainingJob, check_job, frame_groups, open_training
from stages.training.schedule import sample_order, split
from stages.training.step import on_device

TIMED_STEPS = 3


@dataclass(frozen=True)
class TrainingPlan:
    """What a training will do and cost.

    Attributes:
        frames, quarantined: numbers of training frames used, and left out.
        selection_frames: number of frames of the selection split.
        steps, steps_done: steps in total, and in the newest saved state.
        batch_rigs, process_count, accumulate: frames per step, and the processes and passes that share them.
        parameters: number of parameters of the student.
        seconds_per_step: median of the timed steps, without reading.
        read_seconds_per_step: time to read this process's frames of a step, which loader workers do in parallel.
        workers: loader processes.
        memory_bytes: peak memory of this process so far, of the GPU if it uses one.
        disk_bytes: size of everything that will be kept, without logs.
        device, precision: device and precision of the training.
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
        """Estimated time of the remaining steps, without selection and saving."""
        reading = self.read_seconds_per_step
        step = max(self.seconds_per_step, reading / self.workers) if self.workers else self.seconds_per_step + reading
        return (self.steps - self.steps_done) * step


def plan_training(job: TrainingJob) -> TrainingPlan:
    """Time `TIMED_STEPS` steps after one warm-up step, and estimate the cost of the training. Nothing is written.

    The steps change the student of the job, which must not be used afterwards.

    Raises:
        SettingError, TrainingError, CheckpointError, DamagedCacheError: as `train_student`.
    """
    checked = check_job(job)
    training, frames, state = open_training(job), checked.frames, checked.state
    spec, student, device = job.spec, job.student, job.device
    order = sample_order(spec.seed, frame_groups(frames), spec.batch_rigs, range(1 + TIMED_STEPS))
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
    keeps_best = bool(job.selection_ids) and spec.keep_best
    return TrainingPlan(
        frames=len(frames),
        quarantined=len(job.train_ids) - len(job.reader.usable(tuple(job.train_ids))),
        selection_frames=len(checked.selection),
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
        # While the newest state is written there is one more than is kept.
        disk_bytes=(spec.keep_last + 1) * state_bytes + (1 + keeps_best) * student_bytes,
        device=str(device),
        precision=training.setting.precision,
    )


def _peak_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
