"""Stages one and two with the real teacher: parts of `gpu.py`."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from benchmarks.gpu import Found, Setting, attempt
from benchmarks.gpu_data import gpu_recipe, gpu_stage_one, run_with_cache
from benchmarks.measuring import Cost, counted, in_batches, look_only, step_cost, write_cache
from safetensors.torch import load_file

from data_cache.shards.reader import CacheReader
from pipeline.recipe.config import Recipe, keep_recipe
from pipeline.recipe.run_folder import RunFolder
from pipeline.runs.train_student import run_train_student
from stages.caching.teacher_input import prepare_frame
from stages.compute.devices import resolve_device, resolve_precision
from stages.student.model import Student
from stages.teacher_cache import PREFETCH_THREADS
from stages.train_student import train_student
from stages.training.preflight import TrainingJob

SURROUND = (sys.executable, "-c", "from pipeline.cli.main import main; main()")
"""The command, also where the program is not installed."""


def stage_one(setting: Setting) -> Iterator[Found]:
    """Frames/s of reading alone, of the teacher alone, and of stage one, which does both and writes."""
    sizes = setting.sizes
    stage = gpu_stage_one(gpu_recipe(setting))
    prepare = partial(
        prepare_frame, stage.source, teacher_size=stage.teacher.input_size, student_size=stage.identity.image_size
    )
    frame_ids = stage.frames.ordered
    prepare(frame_ids[0])
    read: dict[int, float] = {}
    for threads in sizes.readers:
        costs: list[Cost] = []
        with ThreadPoolExecutor(threads) as pool, counted(costs, len(frame_ids)):
            list(pool.map(prepare, frame_ids))
        read[threads] = 1 / costs[0].wall_s
        yield Found(f"reading alone, {threads} threads", read[threads], "frames/s")
    for precision in ("fp16", "bf16"):
        yield from attempt(precision, partial(_stage_one, setting, precision, read[PREFETCH_THREADS]))


def _stage_one(setting: Setting, precision: str, reading: float) -> Iterator[Found]:
    sizes = setting.sizes
    stage = gpu_stage_one(gpu_recipe(setting, f"teacher_cache.precision={precision}"))
    count = len(stage.frames.ordered)

    def rate(call: Callable[[], object]) -> float:
        costs: list[Cost] = []
        with counted(costs, count):
            call()
        return 1 / costs[0].wall_s

    for batch in sizes.batches:
        sized = replace(stage, batch_images=batch)
        batches = in_batches(sized, sizes.rendered) * sizes.copies
        look_only(sized, batches[: 2 * stage.lanes])
        bare = rate(lambda batches=batches, sized=sized: look_only(sized, batches))
        yield Found(f"bare forward, {precision}, batches of {batch}", bare, "frames/s")
        if batch in sizes.stage_one_batches:
            whole = rate(lambda sized=sized: write_cache(sized))
            bound = "the loader" if reading < bare else "the teacher"
            note = f"{whole / bare:.2f} of the bare forward, {whole / reading:.2f} of reading alone by the"
            note += f" {PREFETCH_THREADS} threads that it has: {bound} is the bound"
            yield Found(f"stage one, {precision}, batches of {batch}", whole, "frames/s", note)


def training(setting: Setting) -> Iterator[Found]:
    """A step from the cache, the same step if the teacher had to look at its frames first, and a whole run."""
    run = run_with_cache(setting, gpu_recipe(setting), "training")
    for precision in ("fp32", "bf16", "fp16"):
        yield from attempt(precision, partial(_step, setting, run, precision))
    yield from attempt("run", partial(_run, setting, run))


def _step(setting: Setting, run: RunFolder, precision: str) -> Iterator[Found]:
    sizes = setting.sizes
    settings = (f"train_student.precision={precision}", f"teacher_cache.precision={precision}")
    recipe = gpu_recipe(setting, *settings)
    cost = step_cost(_job(setting, run, recipe), gpu_stage_one(recipe), sizes.rounds, sizes.product_side)
    size = f"{sizes.batch_rigs} rigs of six {sizes.student[0]}x{sizes.student[1]}"
    note = f"{cost.gflop:.0f} GFLOP; {cost.floor_s / cost.step_s:.2f} of the rate of one large product"
    yield Found(f"step, {precision}, {size}", 1e3 * cost.step_s, "ms", note)
    note = f"the step with the teacher online is {cost.online:.2f} times as long"
    yield Found(f"teacher on the frames of a step, {precision}", 1e3 * cost.teacher_s, "ms", note)


def _run(setting: Setting, run: RunFolder) -> Iterator[Found]:
    device = resolve_device(setting.device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    report = train_student(_job(setting, run, gpu_recipe(setting, "train_student.checkpoint_every=1000")))
    note = f"{report.waiting_share or 0:.1%} of the time waiting for {setting.sizes.workers} loader processes"
    if device.type == "cuda":
        note += f"; {torch.cuda.max_memory_allocated() / 2**30:.2f} GiB at most"
    precision = resolve_precision("auto", device)
    yield Found(f"{report.steps_done} steps, {precision}", report.frames_per_s, "frames/s", note)


def _job(setting: Setting, run: RunFolder, recipe: Recipe) -> TrainingJob:
    reader = CacheReader(run.cache)
    torch.manual_seed(0)
    return TrainingJob(
        reader,
        Student(recipe.student, recipe.bins),
        reader.frames.train,
        (),
        run.student,
        recipe.train_student,
        recipe.losses,
        recipe.data.depth_range_m,
        resolve_device(setting.device),
    )


def resume(setting: Setting) -> Iterator[Found]:
    """Training in fp16 with its loss scale: stopped by SIGTERM, gone on, killed, gone on; beside a straight run."""
    recipe = gpu_recipe(setting, "train_student.precision=fp16")
    straight = run_with_cache(setting, recipe, "straight")
    done = run_train_student(recipe, straight)
    yield Found(f"straight run of {done.steps_done} steps, loss scale at the end", _loss_scale(straight))
    run = run_with_cache(setting, recipe, "killed")
    command = _training_command(recipe, run)
    for number, after, expected in ((signal.SIGTERM, 2, 75), (signal.SIGKILL, setting.sizes.steps // 2, -9)):
        begin = time.perf_counter()
        code = _signalled(command, run, number, after)
        newest = _newest(run)
        note = f"exit code {code} after {time.perf_counter() - begin:.3g} s; then started again"
        if code != expected:
            raise RuntimeError(f"{number.name}: expected exit code {expected}, found {code}")
        yield Found(f"{number.name} at step", newest, "", note)
    begin = time.perf_counter()
    subprocess.run(command, check=True)
    ours, theirs = _losses(run), _losses(straight)
    if [step for step, _ in ours] != [step for step, _ in theirs]:
        raise RuntimeError(f"expected the logged steps {[s for s, _ in theirs]}, found {[s for s, _ in ours]}")
    note = f"loss scale there {_loss_scale(run):.0f}"
    yield Found("gone on to the end", time.perf_counter() - begin, "s", note)
    off = max(abs(a / b - 1) for (_, a), (_, b) in zip(ours, theirs, strict=True))
    last = "student/last.safetensors"
    same = (run.root / last).read_bytes() == (straight.root / last).read_bytes()
    note = f"the last student has {'the same bytes' if same else 'other bytes (a CPU gives the same)'}"
    yield Found("LiDAR loss, off by at most, relative to the straight run", off, "", note)


def torchrun(setting: Setting) -> Iterator[Found]:
    """Training by torchrun with one process: nccl on a GPU, gloo on a CPU."""
    recipe = gpu_recipe(setting)
    run = run_with_cache(setting, recipe, "torchrun")
    launcher = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1", "--no-python")
    begin = time.perf_counter()
    subprocess.run([*launcher, "--", *_training_command(recipe, run)], check=True)
    steps, loss = _losses(run)[-1]
    backend = "nccl" if setting.device == "cuda" else "gloo"
    yield Found(f"{steps} steps in one {backend} process", time.perf_counter() - begin, "s", f"LiDAR loss {loss:.3g}")


def _training_command(recipe: Recipe, run: RunFolder) -> list[str]:
    keep_recipe(recipe, run.recipe)
    return [*SURROUND, "train-student", str(run.recipe), "--run", str(run.root)]


def _signalled(command: Sequence[str], run: RunFolder, number: signal.Signals, after: int) -> int:
    """The exit code of a training that is sent a signal once it has saved a state of at least so many steps."""
    process = subprocess.Popen(command)
    while process.poll() is None and _newest(run) < after:
        time.sleep(0.01)
    process.send_signal(number)
    return process.wait()


def _states(run: RunFolder) -> list[Path]:
    return sorted((run.student / "states").glob("*.safetensors"))


def _newest(run: RunFolder) -> int:
    return max((int(path.stem) for path in _states(run)), default=0)


def _loss_scale(run: RunFolder) -> float:
    return load_file(_states(run)[-1])["scaler.scale"].item()


def _losses(run: RunFolder) -> list[tuple[int, float]]:
    """Steps of the log and the loss on LiDAR there."""
    lines = map(json.loads, (run.student / "log.jsonl").read_text().splitlines())
    return [(line["step"], line["supervised"]) for line in lines]
