"""Decoding a rig of six images: at full size or at reduced scale, one after the other, views or rigs side by side."""

import os
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from data_cache.frames.images import larger
from data_cache.frames.rig import Frame
from data_cache.frames.views import load_images
from data_cache.sources.registry import open_source
from pipeline.recipe.config import load_recipe

pytestmark = pytest.mark.bench
ROUNDS = 15
STAGE_ONE = "reduced, 2 rigs in 2 threads, as stage one reads"
RELEASES = {"pandaset": ("pandaset", ""), "nuscenes": ("nuscenes", "v1.0-mini"), "ddad": ("ddad/ddad_train_val", "")}


def side_by_side(pool: ThreadPoolExecutor, frame: Frame, at_least: tuple[int, int] | None) -> None:
    list(pool.map(lambda view: view.load_image(at_least=at_least), frame.views))


@pytest.mark.parametrize("name", RELEASES)
def test_bench_reading(name, capsys):
    folder = os.environ.get("SURROUND_REAL_DATA")
    if not folder:
        pytest.skip("real frames: set SURROUND_REAL_DATA to their folder")
    path, version = RELEASES[name]
    source = open_source(name, Path(folder) / path, version)
    frame = source.frame(next(ids[len(ids) // 2] for ids in source.drives.values()))
    recipe = load_recipe(name)
    wanted = larger(recipe.teacher_cache.input_size, recipe.student.input_size)
    with ThreadPoolExecutor(2) as two, ThreadPoolExecutor(6) as six:
        ways = {
            "full size": lambda: load_images(frame),
            "reduced": lambda: load_images(frame, wanted),
            "reduced, 2 threads": lambda: side_by_side(two, frame, wanted),
            "reduced, 6 threads": lambda: side_by_side(six, frame, wanted),
            STAGE_ONE: lambda: list(two.map(lambda each: load_images(each, wanted), [frame, frame])),
        }
        # In turns, so that another job on the machine slows all of them.
        wall: dict[str, list[float]] = {way: [] for way in ways}
        cpu: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(ROUNDS):
            for way, read in ways.items():
                begin, begin_cpu = time.perf_counter(), time.process_time()
                read()
                ms_per_rig = 1e3 / (2 if way == STAGE_ONE else 1)
                wall[way].append(ms_per_rig * (time.perf_counter() - begin))
                cpu[way].append(ms_per_rig * (time.process_time() - begin_cpu))
    with capsys.disabled():
        print(f"\n{name}, wanted {list(wanted)}, {os.cpu_count()} cores, ms per rig of six, median (least), processor:")
        for way in ways:
            times = wall[way]
            print(f"  {way}: {statistics.median(times):.0f} ({min(times):.0f}), {statistics.median(cpu[way]):.0f}")
