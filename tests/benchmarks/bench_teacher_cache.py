"""Stage one besides the teacher: where every other millisecond goes, batches, a teacher that costs little, memory."""

import hashlib
import os
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from benchmarks.measuring import Cost, counted, in_batches, look_only, median_s, one_thread, spread_text, write_cache
from support.fakes import save_tiny_teacher
from support.real_drives import pandaset, repeated

from data_cache.frames.geometry import sparse_depth
from data_cache.frames.images import larger
from data_cache.frames.views import load_images
from data_cache.shards.records import pack_depth, record_arrays
from data_cache.shards.schema import array_table
from data_cache.shards.writer import encode_shard
from pipeline.recipe.config import Recipe
from pipeline.runs.stage_one import open_stage_one
from stages.caching.products import frame_record, look
from stages.caching.teacher_input import prepare_frame
from stages.compute.resize import resize_rgb
from stages.targets.bins import affine_invariant_map
from stages.targets.relations import pool_tokens

pytestmark = pytest.mark.bench
ROUNDS = 3
MEMORY_SCRIPT = """
import sys
sys.path[:0] = {path!r}
from dataclasses import replace
from pathlib import Path
from support.real_drives import pandaset, repeated
recipe = pandaset()
spec = replace(recipe.teacher_cache, weights={weights!r}, shard_frames=32)
stage = repeated(replace(recipe, teacher_cache=spec), {count})
writer = stage.writer({cache!r})
stage.write(writer, writer.pending(), retry_quarantined=False)
print(next(line.split()[1] for line in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line))
"""


def tiny_recipe(recipe: Recipe, folder: Path) -> Recipe:
    """The recipe with a teacher that takes a tenth of the time or less."""
    weights = str(save_tiny_teacher(folder))
    return replace(recipe, teacher_cache=replace(recipe.teacher_cache, weights=weights))


def test_bench_tiny_teacher(tmp_path, capsys):
    """What bounds stage one when the teacher does not."""
    count = 48
    stage = repeated(tiny_recipe(pandaset(), tmp_path / "tiny"), count)
    batches = in_batches(stage, count)
    bare: list[Cost] = []
    whole: list[Cost] = []
    look_only(stage, batches[: 2 * stage.lanes])
    for _ in range(ROUNDS):
        with counted(bare, count):
            look_only(stage, batches)
        with counted(whole, count):
            write_cache(stage)
    with capsys.disabled():
        print(f"\na tiny teacher in {stage.teacher.runtime}, {stage.lanes} lanes, {count} frames, {ROUNDS} rounds:")
        for name, costs in (("bare teacher", bare), ("stage one", whole)):
            rates = spread_text([1 / c.wall_s for c in costs])
            print(f"  {name}: {rates} frames/s, {spread_text([c.cpu_s for c in costs])} s of processor time a frame")


def test_bench_parts(capsys):
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
        seen = look(stage.teacher, images[:2], identity.prob_size, stage.binning) * 3
        output = stage.teacher(torch.from_numpy(np.stack(images[:2])))
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
            "maps and tokens from the teacher's output": lambda: [
                (affine_invariant_map(output.prediction, identity.prob_size), pool_tokens(output.features))
                for _ in range(len(images) // 2)
            ],
            "join and encode bins, relations": lambda: frame_record(prepared, seen, identity, recipe.bins),
            **{
                f"compress {name}": lambda name=name, spec=spec: encode_shard(spec, arrays[name][None], 1)
                for name, spec in table.items()
            },
            "hash": lambda: [hashlib.sha256(data).digest() for data in encoded],
            f"write and flush (ten files; once in {recipe.teacher_cache.shard_frames} frames)": lambda: _write(encoded),
        }
        cost = {name: 1e3 * median_s(part, 7) for name, part in parts.items()}
        forward = 1e3 * median_s(lambda: stage.teacher(torch.from_numpy(np.stack(images[:2])))) * len(images) / 2
    done = sum(ms for name, ms in cost.items() if "not done" not in name)
    with capsys.disabled():
        print(f"\n| part, ms per frame of {len(images)} images on one thread | ms |\n| --- | --- |")
        for name, ms in cost.items():
            print(f"| {name} | {ms:.1f} |")
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
    lanes: list[Cost] = []
    together: list[Cost] = []
    look_only(stage, batches[: stage.lanes])
    for _ in range(ROUNDS):
        with counted(lanes, 4):
            look_only(stage, batches)
        with counted(together, 4):
            look_only(replace(stage, lanes=1), batches)
    with capsys.disabled():
        print(
            f"\nbatches of {batch}: {spread_text([1 / c.wall_s for c in lanes])} frames/s in {stage.lanes} lanes of one"
            f" thread, {spread_text([1 / c.wall_s for c in together])} on {torch.get_num_threads()} threads together"
        )


@pytest.mark.parametrize("count", [100, 2000])
def test_bench_memory(count, tmp_path, capsys):
    """Peak memory of a process that runs stage one with the tiny teacher over real frames."""
    recipe = tiny_recipe(pandaset(), tmp_path / "tiny")
    script = MEMORY_SCRIPT.format(
        path=sys.path,
        weights=recipe.teacher_cache.weights,
        count=count,
        cache=str(tmp_path / "cache"),
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    with capsys.disabled():
        print(f"\nstage one, {count} frames in shards of 32: peak {int(done.stdout) / 2**20:.2f} GiB")
