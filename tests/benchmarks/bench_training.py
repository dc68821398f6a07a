"""Stage two on real frames: reading, waiting, the step with the cache and with the teacher online, and their floors."""

import os
import time
from dataclasses import replace
from pathlib import Path

import numcodecs
import numpy as np
import pytest
import zarr
from benchmarks.measuring import median_s, step_cost
from support.real_drives import pandaset

from data_cache.dataset import CachedFrames, batches
from data_cache.shards.reader import CacheReader
from data_cache.shards.records import record_arrays
from data_cache.shards.schema import array_table
from pipeline.recipe.config import Recipe
from pipeline.runs.stage_one import open_stage_one
from stages.compute.devices import resolve_device, resolve_precision
from stages.student.model import Student
from stages.train_student import train_student
from stages.training.preflight import TrainingJob

pytestmark = pytest.mark.bench
FRAMES, ROUNDS, STEPS = 6, 3, 12
PRODUCT_SIDES = {"cuda": 4096, "cpu": 2048}
SHUFFLES = {
    "noshuffle": numcodecs.Blosc.NOSHUFFLE,
    "shuffle": numcodecs.Blosc.SHUFFLE,
    "bitshuffle": numcodecs.Blosc.BITSHUFFLE,
}
SIZES = {"small (resnet-18)": "resnet-18", "nano (resnet-10)": "resnet-10"}


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
    student = Student(replace(recipe.student, encoder=SIZES[size], pretrained=False), recipe.bins)
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
