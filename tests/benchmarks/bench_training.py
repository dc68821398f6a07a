"""Stage two on real frames: reading, waiting, the step with the cache and with the teacher online, and their floors."""

import os
import time
from dataclasses import replace
from pathlib import Path

import numcodecs
import numpy as np
import pytest
import torch
import zarr
from benchmarks.measuring import flop_counter, median_s, step_cost
from support.fakes import save_tiny_teacher
from support.real_drives import pandaset
from torch.profiler import ProfilerActivity, profile

from data_cache.dataset import CachedFrames, batches, collate
from data_cache.shards.reader import CacheReader
from data_cache.shards.records import record_arrays
from data_cache.shards.schema import array_table
from pipeline.recipe.config import Recipe, load_recipe
from pipeline.runs.stage_one import open_stage_one
from stages.compute.devices import dtype_of, resolve_device, resolve_precision
from stages.student.model import Student
from stages.train_student import train_student
from stages.training.preflight import TrainingJob, open_training
from stages.training.step import on_device

pytestmark = pytest.mark.bench
FRAMES, ROUNDS, STEPS = 6, 3, 12
PRODUCT_SIDES = {"cuda": 4096, "cpu": 2048}
SHUFFLES = {
    "noshuffle": numcodecs.Blosc.NOSHUFFLE,
    "shuffle": numcodecs.Blosc.SHUFFLE,
    "bitshuffle": numcodecs.Blosc.BITSHUFFLE,
}
PARTS = {
    "convolutions": ("convolution",),
    "batch norms": ("batch_norm",),
    "matrix products": ("mm", "bmm", "addmm", "linear"),
    "softmax and its logarithm": ("softmax",),
    "gathering, scattering, copying": ("index", "copy_", "cat", "scatter", "grid_sampler", "gather", "fill_", "clone"),
    "resizing, padding, pooling": ("upsample", "pad2d", "pool2d"),
}
"""Kernels of a step by words of their names; what has none of these words is elementwise, a sum, or the optimiser."""
SIZES = {
    "small": {},
    "nano": {"decoder_channels": 32},
    "small before": {"encoder": "resnet-18", "decoder_channels": 64, "attention_width": 128},
}
"""What makes each student, beyond the recipe's."""


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    """The pandaset recipe on a few frames, at its full size."""
    made = pandaset()
    return replace(made, data=replace(made.data, train=(f"002[:{FRAMES}]",)))


@pytest.fixture(scope="module")
def reader(recipe, tmp_path_factory) -> CacheReader:
    stage = open_stage_one(recipe)
    writer = stage.writer(str(tmp_path_factory.mktemp("cache")))
    stage.write(writer, writer.pending(), retry_quarantined=False)
    return CacheReader(writer.store.location)


def test_bench_training_loader(recipe, reader, capsys):
    """Frames a second without a student, against plain decompression of the same chunks on one thread."""
    ids = reader.frames.train
    record = record_arrays(reader.read(ids[0]))
    specs = array_table(reader.identity)
    chunks, raw = [], 0
    for name, value in record.items():
        spec = specs[name]
        blosc = numcodecs.Blosc("zstd", spec.level, SHUFFLES[spec.shuffle])
        chunks.append((blosc, blosc.encode(np.ascontiguousarray(value))))
        raw += value.nbytes
    decompress = median_s(lambda: [blosc.decode(chunk) for blosc, chunk in chunks], 20)
    one_frame = median_s(lambda: reader.read(ids[0]), 20)
    arrays = zarr.open_group(Path(reader.store.location) / "arrays.zarr", mode="r")
    by_zarr = median_s(lambda: [arrays[name][0] for name in record], 20)
    stored = sum(len(chunk) for _, chunk in chunks)
    source = np.random.default_rng(0).integers(0, 255, raw, dtype=np.uint8)
    copy = median_s(source.copy, 20)
    disk = _disk_bytes_per_s(reader)
    lines = [
        f"a frame: {stored / 1e6:.2f} MB stored, {raw / 1e6:.2f} MB read; floors on one thread:",
        f"  disk at {disk / 1e9:.2f} GB/s {1e3 * stored / disk:6.1f} ms, memory at {raw / copy / 1e9:.1f} GB/s"
        f" {1e3 * copy:.1f} ms, decompression {1e3 * decompress:.1f} ms",
        f"  reader.read {1e3 * one_frame:.1f} ms, {decompress / one_frame:.2f} of the rate of plain decompression;"
        f" the same arrays by zarr {1e3 * by_zarr:.1f} ms",
    ]
    for neighbours in (False, True):
        frames = CachedFrames(reader, ids, neighbours=neighbours)
        for workers in (0, 1, 2):
            rate = _loader_rate(frames, workers)
            with_neighbours = "with neighbours" if neighbours else "frames alone"
            lines.append(
                f"  loader, {with_neighbours:<15} {workers} workers: {rate:6.1f} frames/s,"
                f" {rate * decompress / max(1, workers):.2f} of the floor per process"
            )
    with capsys.disabled():
        print("\n" + "\n".join(lines))


def _loader_rate(frames: CachedFrames, workers: int) -> float:
    """Frames a second after the workers have started."""
    order = [[i % len(frames), (i + 1) % len(frames)] for i in range(40)]
    with batches(frames, order, workers) as loader:
        for _ in range(2 * workers + 1):  # what was read ahead while they started
            next(loader)
        begin = time.perf_counter()
        count = sum(2 for _ in loader)
        return count / (time.perf_counter() - begin)


def _disk_bytes_per_s(reader: CacheReader) -> float:
    files = [path for path in Path(reader.store.location).rglob("*") if path.is_file() and path.stat().st_size > 1e5]
    for path in files:
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    begin = time.perf_counter()
    total = sum(len(path.read_bytes()) for path in files)
    return total / (time.perf_counter() - begin)


@pytest.mark.parametrize("size", SIZES)
def test_bench_training_step(recipe, reader, tmp_path, capsys, size):
    """A step of the recipe from the cache, the same step if the teacher looked at its frames first, and the waiting."""
    device = resolve_device("auto")
    precision = resolve_precision("auto", device)
    spec = recipe.train_student
    stage = open_stage_one(recipe)
    student = Student(replace(recipe.student, pretrained=False, **SIZES[size]), recipe.bins)
    timed = replace(spec, steps=STEPS, warmup_steps=2)
    job = TrainingJob(
        reader, student, reader.frames.train, (), tmp_path, timed, recipe.losses, recipe.data.depth_range_m, device
    )
    cost = step_cost(job, stage, ROUNDS, PRODUCT_SIDES[device.type])
    report = train_student(job)
    assert report.waiting_share is not None
    with capsys.disabled():
        print(
            f"\n{size}, {precision} on {device}, {spec.batch_rigs} rigs of six {student.spec.input_size}:"
            f"\n  step {cost.step_s:.2f} s, floor {cost.floor_s:.2f} s ({cost.gflop:.0f} GFLOP at"
            f" {cost.flop_per_s / 1e12:.2f} TFLOP/s), {cost.floor_s / cost.step_s:.2f} of the peak"
            f"\n  teacher for its frames {cost.teacher_s:.2f} s: the step with it online is"
            f" {cost.online:.2f} times as long"
            f"\n  {STEPS} steps with {spec.workers} loader worker: {report.waiting_share:.2%} of the time waiting"
        )


def test_bench_training_account(tmp_path, capsys):
    """Where the processor time of a step of the demo goes, and its floor: FLOPs over the rate of a large product."""
    recipe = load_recipe("demo")
    recipe = replace(
        recipe,
        data=replace(recipe.data, train=(f"train[:{6 * recipe.train_student.batch_rigs}:6]",)),
        teacher_cache=replace(recipe.teacher_cache, weights=str(save_tiny_teacher(tmp_path / "tiny")), device="cpu"),
    )
    stage = open_stage_one(recipe)
    writer = stage.writer(str(tmp_path / "cache"))
    stage.write(writer, writer.pending(), retry_quarantined=False)
    reader, spec, device = CacheReader(writer.store.location), recipe.train_student, torch.device("cpu")
    student = Student(replace(recipe.student, pretrained=False), recipe.bins)
    ids, range_m = reader.frames.train, recipe.data.depth_range_m
    training = open_training(TrainingJob(reader, student, ids, (), tmp_path, spec, recipe.losses, range_m, device))
    student.train()
    frames = CachedFrames(reader, ids, neighbours=recipe.losses.photometric > 0)
    rigs = on_device(device, collate([frames[i] for i in range(spec.batch_rigs)]))
    seconds = median_s(lambda: training.step([rigs], 0), 5)
    with flop_counter() as flops:
        training.step([rigs], 0)
    side, precision = PRODUCT_SIDES["cpu"], resolve_precision("auto", device)
    a, b = (torch.randn(side, side, dtype=dtype_of(precision)) for _ in range(2))
    floor = flops.get_total_flops() * median_s(lambda: a @ b, 5) / (2 * side**3)
    with profile(activities=[ProfilerActivity.CPU]) as measured:
        training.step([rigs], 0)
    spent = dict.fromkeys((*PARTS, "elementwise, sums, optimiser"), 0.0)
    for event in measured.key_averages():
        named = (part for part, words in PARTS.items() if any(word in event.key for word in words))
        spent[next(named, "elementwise, sums, optimiser")] += event.self_cpu_time_total
    total = sum(spent.values())
    with capsys.disabled():
        print(
            f"\na step of the demo, {spec.batch_rigs} rigs of six {recipe.student.input_size}, {precision}:"
            f" {1e3 * seconds:.0f} ms, floor {1e3 * floor:.0f} ms ({flops.get_total_flops() / 1e9:.0f} GFLOP)"
        )
        for part, value in spent.items():
            print(f"  {part:<32} {value / total:6.1%}")
