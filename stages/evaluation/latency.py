"""Wall time of student and teacher for one rig, measured in the same way."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from data_cache.frames.views import RigViews
from stages.compute.devices import synchronize
from stages.evaluation.results import Latency
from stages.inference.predict import forward_rig
from stages.student.model import Student
from stages.teacher.base import Teacher


@dataclass(frozen=True)
class Timing:
    """Time of one call in milliseconds: median and 95th percentile."""

    p50_ms: float
    p95_ms: float


def measure(call: Callable[[], object], device: torch.device, *, warmup: int, repeats: int) -> Timing:
    """Time `call` after warm-up, synchronised before and after each repeat."""
    milliseconds = []
    for i in range(warmup + repeats):
        synchronize(device)
        begin = time.perf_counter()
        call()
        synchronize(device)
        if i >= warmup:
            milliseconds.append(1e3 * (time.perf_counter() - begin))
    return _timing(milliseconds)


def measure_in_turns(calls: Sequence[Callable[[], object]], device: torch.device, *, rounds: int) -> tuple[Timing, ...]:
    """Time several calls in turns, after one warm-up round, so that a noisy moment affects all of them alike."""
    milliseconds: list[list[float]] = [[] for _ in calls]
    for i in range(1 + rounds):
        for values, call in zip(milliseconds, calls, strict=True):
            once = measure(call, device, warmup=0, repeats=1)
            if i > 0:
                values.append(once.p50_ms)
    return tuple(_timing(values) for values in milliseconds)


def _timing(milliseconds: Sequence[float]) -> Timing:
    p50, p95 = np.percentile(milliseconds, [50, 95])
    return Timing(float(p50), float(p95))


def rig_latency(
    student: Student,
    rig: RigViews,
    device: torch.device,
    precision: str,
    teacher: Teacher | None = None,
    teacher_ms: Sequence[float] = (),
) -> Latency:
    """Time a student on a rig, and set it beside the times that a teacher took for rigs of the same cameras.

    Args:
        student: in evaluation mode, on `device`.
        rig: views at its input size.
        device, precision: where and how.
        teacher: whose times these are.
        teacher_ms: its times in the order in which they were taken; the first one is its warm-up, unless it is alone.
    """
    student_time = measure(lambda: forward_rig(student, rig, device, precision), device, warmup=3, repeats=20)
    teacher_time = _timing(teacher_ms[1:] or teacher_ms) if teacher_ms else None
    return Latency(
        student_ms_per_rig=student_time.p50_ms,
        student_p95_ms_per_rig=student_time.p95_ms,
        teacher_ms_per_rig=teacher_time.p50_ms if teacher_time else None,
        teacher_p95_ms_per_rig=teacher_time.p95_ms if teacher_time else None,
        speedup=teacher_time.p50_ms / student_time.p50_ms if teacher_time else None,
        precision=precision,
        device=str(device),
        input=student.spec.input_size,
        teacher_input=teacher.input_size if teacher is not None else None,
        images_per_rig=len(rig.image),
        teacher_runtime=teacher.runtime if teacher is not None else None,
    )
