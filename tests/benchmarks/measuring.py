"""What several benchmarks measure with. It does without pytest, which may be missing where `gpu.py` runs."""

import math
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from data_cache.dataset import collate
from data_cache.frames.views import RigViews
from pipeline.runs.stage_one import StageOne
from stages.caching.teacher_input import prepare_frame
from stages.compute.devices import dtype_of, synchronize
from stages.training.preflight import TrainingJob, check_job, open_training
from stages.training.step import on_device


def flop_counter() -> FlopCounterMode:
    """Torch's counter, which by itself takes gradients by the weights of a grouped convolution as dense ones."""

    def backward(gradient, _x, weight, *rest, **_kwargs: object) -> int:
        """Two FLOPs per element of the output and weight that makes it, for each of the gradients that are wanted."""
        wanted = rest[7]
        return 2 * math.prod(gradient) * math.prod(weight[1:]) * sum(map(bool, wanted[:2]))

    return FlopCounterMode(display=False, custom_mapping={torch.ops.aten.convolution_backward: backward})


@dataclass(frozen=True)
class Cost:
    """Wall time and, over all threads, processor time of one frame; the latter hardly feels other jobs."""

    wall_s: float
    cpu_s: float


@contextmanager
def counted(costs: list[Cost], frame_count: int) -> Iterator[None]:
    wall, cpu = time.perf_counter(), time.process_time()
    yield
    costs.append(Cost((time.perf_counter() - wall) / frame_count, (time.process_time() - cpu) / frame_count))


def spread_text(values: list[float]) -> str:
    """The median, the least and the largest."""
    return f"{statistics.median(values):.3f} ({min(values):.3f} to {max(values):.3f})"


def median_s(call: Callable[[], object], rounds: int = 3) -> float:
    """Wall time of a call, after one to warm up."""
    seconds = []
    for _ in range(1 + rounds):
        begin = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - begin)
    return statistics.median(seconds[1:])


def device_ms(call: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Median time of a call that leaves its result on the device, between two CUDA events; on a CPU its wall time.

    As many calls warm up: what is compiled, or chosen by trial, at the first ones does not count.
    """
    milliseconds = []
    for _ in range(2 * repeats):
        synchronize(device)
        if device.type == "cuda":
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            begin.record()
            call()
            end.record()
            end.synchronize()
            milliseconds.append(begin.elapsed_time(end))
        else:
            clock = time.perf_counter()
            call()
            milliseconds.append(1e3 * (time.perf_counter() - clock))
    return statistics.median(milliseconds[repeats:])


def noise_rig(size: tuple[int, int]) -> RigViews:
    """Six views of noise at this size."""
    rng = np.random.default_rng(0)
    return RigViews(
        image=rng.integers(0, 256, (6, *size, 3), dtype=np.uint8),
        lidar_depth_m=np.zeros((6, *size), np.float32),
        intrinsics=np.tile(np.diag([500, 500, 1]).astype(np.float32), (6, 1, 1)),
        world_from_cam=np.tile(np.eye(4), (6, 1, 1)),
        view_valid=np.ones(6, bool),
    )


@contextmanager
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def look_only(stage: StageOne, batches: list[list[np.ndarray]]) -> None:
    """The teacher's forward pass alone, on images that lie ready, in the lanes that stage one uses."""
    stacked = [torch.from_numpy(np.stack(batch)) for batch in batches]
    with one_thread() if stage.lanes > 1 else nullcontext(), ThreadPoolExecutor(stage.lanes) as pool:
        list(pool.map(stage.teacher, stacked))


def in_batches(stage: StageOne, count: int) -> list[list[np.ndarray]]:
    """The images of `count` frames as stage one batches them."""
    identity = stage.identity
    images = [
        image
        for frame_id in stage.frames.ordered[:count]
        for image in prepare_frame(stage.source, frame_id, stage.teacher.input_size, identity.image_size).teacher_images
    ]
    return [images[i : i + stage.batch_images] for i in range(0, len(images), stage.batch_images)]


def write_cache(stage: StageOne) -> None:
    """Stage one, into an empty cache."""
    with tempfile.TemporaryDirectory() as folder:
        writer = stage.writer(folder)
        stage.write(writer, writer.pending(), retry_quarantined=False)


@dataclass(frozen=True)
class StepCost:
    """One optimiser step on frames that lie ready.

    Attributes:
        step_s: of the step with the cache.
        teacher_s: for the teacher to look at the frames of the step first, as it must without a cache.
        gflop: of the step.
        flop_per_s: of one large product in the step's precision.
    """

    step_s: float
    teacher_s: float
    gflop: float
    flop_per_s: float

    @property
    def online(self) -> float:
        """How many times as long the step takes with the teacher online."""
        return (self.step_s + self.teacher_s) / self.step_s

    @property
    def floor_s(self) -> float:
        """Of the step, if all of it ran as fast as the product."""
        return 1e9 * self.gflop / self.flop_per_s


def step_cost(job: TrainingJob, stage: StageOne, rounds: int, product_side: int) -> StepCost:
    """Time a step of a job, and the teacher of a stage one on as many frames, in turns: machines change their pace.

    The large product is one of two square matrices of `product_side`.
    """
    device = job.device
    training, frames = open_training(job), check_job(job).frames
    job.student.train()
    rigs = on_device(device, collate([frames[i % len(frames)] for i in range(job.spec.batch_rigs)]))
    images = torch.zeros(6 * job.spec.batch_rigs, *stage.teacher.input_size, 3, dtype=torch.uint8).random_(0, 256)

    def step() -> None:
        training.step([rigs], 0)
        synchronize(device)

    def teacher() -> None:
        stage.teacher(images)
        synchronize(device)

    steps: list[float] = []
    looks: list[float] = []
    for i in range(1 + rounds):
        for call, seconds in ((step, steps), (teacher, looks)):
            begin = time.perf_counter()
            call()
            if i > 0:  # the first round warms up
                seconds.append(time.perf_counter() - begin)
    with flop_counter() as flops:
        training.step([rigs], 0)
    shape = product_side, product_side
    a, b = (torch.randn(shape, device=device, dtype=dtype_of(training.setting.precision)) for _ in range(2))

    def multiply() -> None:
        a @ b
        synchronize(device)

    rate = 2 * product_side**3 / median_s(multiply, 5)
    return StepCost(statistics.median(steps), statistics.median(looks), flops.get_total_flops() / 1e9, rate)
