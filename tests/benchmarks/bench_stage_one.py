"""Stage one against the bare teacher in one run on the same frames, and where every other millisecond goes."""

import hashlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from fakes import save_tiny_teacher

from data_cache.geometry import sparse_depth
from data_cache.images import larger, resize_rgb
from data_cache.rig import Frame, Rig
from data_cache.schema import array_table, pack_depth, record_arrays
from data_cache.views import load_images
from data_cache.writer import encode_shard
from pipeline.config import Recipe, load_recipe
from pipeline.stage_one import StageOne, open_stage_one
from stages.look import frame_record, look
from stages.prepare import prepare_frame

pytestmark = pytest.mark.bench
ROUNDS = 3
MEMORY_SCRIPT = """
import sys
sys.path[:0] = {path!r}
from dataclasses import replace
from pathlib import Path
from bench_stage_one import pandaset, repeated
recipe = pandaset()
spec = replace(recipe.teacher_cache, weights={weights!r}, shard_frames=32)
stage = repeated(replace(recipe, teacher_cache=spec), {count})
writer = stage.writer({cache!r})
stage.write(writer, writer.pending(), retry_quarantined=False)
print(next(line.split()[1] for line in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line))
"""


@dataclass
class Repeated:
    """A drive of any length out of the frames of a short one."""

    inner: object
    count: int
    name: str = "repeated"
    splits: tuple[()] = ()

    @property
    def rig(self) -> Rig:
        return self.inner.rig

    @property
    def drives(self) -> dict[str, tuple[str, ...]]:
        return {"d": tuple(f"d/{i}" for i in range(self.count))}

    def frame(self, frame_id: str) -> Frame:
        ids = next(iter(self.inner.drives.values()))
        return replace(self.inner.frame(ids[int(frame_id[2:]) % len(ids)]), id=frame_id)


def pandaset() -> Recipe:
    """The pandaset recipe on the real frames."""
    folder = os.environ.get("SURROUND_REAL_DATA")
    if not folder:
        pytest.skip("real frames: set SURROUND_REAL_DATA to their folder")
    return load_recipe("pandaset", ["teacher_cache.shard_frames=4"], Path(folder) / "pandaset")


def repeated(recipe: Recipe, count: int) -> StageOne:
    """Stage one of a recipe over `count` frames."""
    stage = open_stage_one(recipe)
    source = Repeated(stage.source, count)
    return replace(stage, source=source, frames=replace(stage.frames, train=source.drives["d"], selection=()))


@contextmanager
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def milliseconds(function: Callable[[], object], repeats: int = 7) -> float:
    """Median wall time of a call, after one to warm up."""
    function()
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        function()
        times.append(1e3 * (time.perf_counter() - begin))
    return statistics.median(times)


def bare_rate(stage: StageOne, batches: list[list[np.ndarray]], frame_count: int) -> float:
    """Frames/s of the teacher's forward pass alone, on images that lie ready, in the lanes that stage one uses."""
    stacked = [torch.from_numpy(np.stack(batch)) for batch in batches]
    with one_thread() if stage.lanes > 1 else _nothing(), ThreadPoolExecutor(stage.lanes) as pool:
        begin = time.perf_counter()
        list(pool.map(stage.teacher, stacked))
    return frame_count / (time.perf_counter() - begin)


@contextmanager
def _nothing() -> Iterator[None]:
    yield


def stage_rate(stage: StageOne) -> float:
    """Frames/s of stage one, into an empty cache."""
    with tempfile.TemporaryDirectory() as folder:
        writer = stage.writer(folder)
        begin = time.perf_counter()
        stage.write(writer, writer.pending(), retry_quarantined=False)
        return len(stage.frames.ordered) / (time.perf_counter() - begin)


def in_batches(stage: StageOne, count: int) -> list[list[np.ndarray]]:
    """The images of `count` frames as stage one batches them."""
    identity = stage.identity
    images = [
        image
        for frame_id in stage.frames.ordered[:count]
        for image in prepare_frame(stage.source, frame_id, stage.teacher.input_size, identity.image_size).teacher_images
    ]
    return [images[i : i + stage.batch_images] for i in range(0, len(images), stage.batch_images)]


def tiny_recipe(recipe: Recipe, folder: Path) -> Recipe:
    """The recipe with a teacher that takes a tenth of the time or less."""
    weights = str(save_tiny_teacher(folder))
    return replace(recipe, teacher_cache=replace(recipe.teacher_cache, weights=weights))


@pytest.mark.parametrize("teacher", ["recipe", "tiny"])
def test_bench_stage_one(teacher, tmp_path, capsys):
    recipe = pandaset()
    count = 8
    if teacher == "tiny":
        recipe, count = tiny_recipe(recipe, tmp_path / "tiny"), 48
    stage = repeated(recipe, count)
    batches = in_batches(stage, count)
    bare, whole = [], []
    bare_rate(stage, batches[: 2 * stage.lanes], 1)
    for _ in range(ROUNDS):
        bare.append(bare_rate(stage, batches, count))
        whole.append(stage_rate(stage))
    ratios = [w / b for w, b in zip(whole, bare, strict=True)]
    with capsys.disabled():
        print(
            f"\n{stage.teacher.name} {list(stage.teacher.input_size)} {stage.teacher.precision}"
            f" {stage.teacher.attention}, {stage.lanes} lanes, batches of {stage.batch_images}, {count} frames,"
            f" {ROUNDS} rounds:\n  bare teacher {statistics.median(bare):.3f} frames/s"
            f" ({min(bare):.3f} to {max(bare):.3f}), stage one {statistics.median(whole):.3f} frames/s"
            f" ({min(whole):.3f} to {max(whole):.3f}), ratio {statistics.median(ratios):.3f}"
            f" ({min(ratios):.3f} to {max(ratios):.3f})"
        )


def test_bench_stage_one_parts(capsys):
    recipe = pandaset()
    stage = open_stage_one(recipe)
    identity = stage.identity
    frame_id = stage.frames.ordered[5]
    teacher_size, image_size = stage.teacher.input_size, identity.image_size
    frame = stage.source.frame(frame_id)
    wanted = larger(teacher_size, image_size)
    native, reduced = load_images(frame), load_images(frame, wanted)
    sweep = frame.load_sweep()
    prepared = prepare_frame(stage.source, frame_id, teacher_size, image_size)
    images = prepared.teacher_images
    with one_thread():
        seen = look(stage.teacher, images[:2], identity.prob_size) * 3
        record = frame_record(prepared, seen, identity, recipe.bins)
        arrays = record_arrays(record)
        table = array_table(identity)
        encoded = [encode_shard(spec, arrays[name][None], 1) for name, spec in table.items()]
        parts = {
            "decode JPEG, full size (not done)": lambda: load_images(frame),
            "stretch to the teacher's size from full size (not done)": lambda: [
                resize_rgb(i, teacher_size) for i in native
            ],
            "stretch to the student's size from full size (not done)": lambda: [
                resize_rgb(i, image_size) for i in native
            ],
            "decode JPEG": lambda: load_images(frame, wanted),
            "stretch to the teacher's size": lambda: [resize_rgb(i, teacher_size) for i in reduced],
            "stretch to the student's size": lambda: [resize_rgb(i, image_size) for i in reduced],
            "read the sweep": frame.load_sweep,
            "project, z-buffer, pack": lambda: [pack_depth(sparse_depth(v, sweep, image_size)) for v in frame.views],
            "join and encode bins, relations": lambda: frame_record(prepared, seen, identity, recipe.bins),
            **{
                f"compress {name}": lambda name=name, spec=spec: encode_shard(spec, arrays[name][None], 1)
                for name, spec in table.items()
            },
            "hash": lambda: [hashlib.sha256(data).digest() for data in encoded],
            "write and flush": lambda: _write(encoded),
        }
        cost = {name: milliseconds(part) for name, part in parts.items()}
        forward = milliseconds(lambda: stage.teacher(torch.from_numpy(np.stack(images[:2]))), 3) * len(images) / 2
        with_products = milliseconds(lambda: look(stage.teacher, images[:2], identity.prob_size), 3) * len(images) / 2
    done = sum(ms for name, ms in cost.items() if "not done" not in name) + with_products - forward
    with capsys.disabled():
        print(f"\n| part, ms per frame of {len(images)} images on one thread | ms |\n| --- | --- |")
        for name, ms in cost.items():
            print(f"| {name} | {ms:.1f} |")
        print(f"| maps and tokens from the teacher's output | {with_products - forward:.1f} |")
        print(f"| **all but the teacher** | **{done:.0f}** |\n| teacher | {forward:.0f} |")
        print(f"floor of the ratio, teacher / (teacher + all else): {forward / (forward + done):.3f}")


def _write(encoded: list[bytes]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for i, data in enumerate(encoded):
            with (Path(folder) / str(i)).open("wb") as file:
                file.write(data)
                os.fsync(file.fileno())


@pytest.mark.parametrize("batch", [1, 2, 3, 6, 12])
def test_bench_batch(batch, capsys):
    stage = repeated(pandaset(), 2)
    images = [image for images in in_batches(stage, 2) for image in images]
    batches = [images[i : i + batch] for i in range(0, len(images), batch)] * 2
    bare_rate(stage, batches[: stage.lanes], 1)
    lanes = statistics.median(bare_rate(stage, batches, 4) for _ in range(ROUNDS))
    together = statistics.median(bare_rate(replace(stage, lanes=1), batches, 4) for _ in range(ROUNDS))
    with capsys.disabled():
        print(
            f"\nbatches of {batch}: {lanes:.3f} frames/s in {stage.lanes} lanes of one thread,"
            f" {together:.3f} frames/s on {torch.get_num_threads()} threads together"
        )


@pytest.mark.parametrize("count", [100, 2000])
def test_bench_stage_one_memory(count, tmp_path, capsys):
    """Peak memory of a process that runs stage one with the tiny teacher over real frames."""
    recipe = tiny_recipe(pandaset(), tmp_path / "tiny")
    script = MEMORY_SCRIPT.format(
        path=[*sys.path, str(Path(__file__).parent)],
        weights=recipe.teacher_cache.weights,
        count=count,
        cache=str(tmp_path / "cache"),
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    with capsys.disabled():
        print(f"\nstage one, {count} frames in shards of 32: peak {int(done.stdout) / 2**20:.2f} GiB")
