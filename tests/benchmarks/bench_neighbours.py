"""What one or two other jobs on the same cores cost a training step and stage one; threads that spin or sleep.

Each job is a process of its own that does the same work; they begin together, and each tells its rate.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.fakes import save_tiny_teacher

from data_cache.dataset import CachedFrames, collate
from data_cache.shards.reader import CacheReader
from pipeline.recipe.config import Recipe, load_recipe
from pipeline.runs.stage_one import open_stage_one
from pipeline.weights.fetch import fetch_weights
from stages.compute.preemption import Preempted
from stages.compute.waiting import PASSIVE
from stages.student.model import Student
from stages.training.preflight import TrainingJob, open_job
from stages.training.step import on_device

pytestmark = pytest.mark.bench
SECONDS = 10
FRAMES = 8
POLICIES = {"threads that spin": {}, "threads that sleep": PASSIVE}


def demo(weights: Path) -> Recipe:
    """The demo's recipe on a few frames, with the teacher of a folder."""
    recipe = load_recipe("demo")
    return replace(
        recipe,
        data=replace(recipe.data, train=(f"train[:{6 * FRAMES}:6]",)),
        teacher_cache=replace(recipe.teacher_cache, weights=str(weights), shard_frames=1),
        student=replace(recipe.student, pretrained=False),
    )


def training_steps(recipe: Recipe, scratch: Path, ready: "Meeting") -> float:
    """Optimiser steps a second, from a cache of a tiny teacher, whose bins cost a step what real ones cost."""
    tiny = open_stage_one(replace(demo(save_tiny_teacher(scratch / "tiny")), data=recipe.data))
    writer = tiny.writer(str(scratch / "cache"))
    tiny.write(writer, writer.pending(), retry_quarantined=False)
    reader = CacheReader(writer.store.location)
    ids, spec, device = reader.frames.train, recipe.train_student, torch.device("cpu")
    student = Student(recipe.student, recipe.bins)
    job = TrainingJob(reader, student, ids, (), scratch, spec, recipe.losses, recipe.data.depth_range_m, device)
    training = open_job(job).training
    student.train()
    frames = CachedFrames(reader, ids, neighbours=recipe.losses.photometric > 0)
    rigs = on_device(device, collate([frames[i] for i in range(spec.batch_rigs)]))
    training.step([rigs], 0)
    return ready.rate(lambda: training.step([rigs], 1))


def stage_one_frames(recipe: Recipe, scratch: Path, ready: "Meeting") -> float:
    """Frames a second of stage one, rendering, teacher and writing."""
    stage = open_stage_one(recipe)
    writer = stage.writer(str(scratch / "cache"))
    stage.write(writer, writer.pending()[:1], retry_quarantined=False)
    ready.wait()
    count, begin = 0, time.monotonic()

    def seen() -> None:
        nonlocal count
        count += 1

    with suppress(Preempted):
        stage.write(
            writer,
            writer.pending(),
            retry_quarantined=False,
            on_frame=seen,
            should_stop=lambda: time.monotonic() > begin + SECONDS,
        )
    return count / (time.monotonic() - begin)


class Meeting:
    """A folder in which jobs say that they are ready and are told to begin."""

    def __init__(self, folder: Path, number: int):
        self._folder, self._number = folder, number

    def wait(self) -> None:
        (self._folder / f"ready-{self._number}").touch()
        while not (self._folder / "go").exists():
            time.sleep(0.01)

    def rate(self, call) -> float:
        """Calls a second, for about SECONDS."""
        self.wait()
        count, begin = 0, time.monotonic()
        while time.monotonic() < begin + SECONDS:
            call()
            count += 1
        return count / (time.monotonic() - begin)


WORK = {"training_steps": training_steps, "stage_one_frames": stage_one_frames}


def side_by_side(work: str, count: int, environment: dict[str, str]) -> list[float]:
    """Rates of so many processes that do the same at the same time."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        inherited = {key: value for key, value in os.environ.items() if key not in (*PASSIVE, "OMP_NUM_THREADS")}
        jobs = [
            subprocess.Popen(
                [sys.executable, __file__, work, name, str(number)],
                env={**inherited, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), **environment},
                stdout=subprocess.PIPE,
                text=True,
            )
            for number in range(count)
        ]
        while sum(path.name.startswith("ready-") for path in folder.iterdir()) < count:
            assert all(job.poll() is None for job in jobs), "a job ended before it was ready"
            time.sleep(0.05)
        (folder / "go").touch()
        return [json.loads(job.communicate()[0].splitlines()[-1]) for job in jobs]


@pytest.mark.parametrize("work", WORK)
def test_bench_neighbours(work, capsys):
    lines = [f"{work.replace('_', ' ')} a second of each of 1, 2, 3 jobs on {len(os.sched_getaffinity(0))} cores:"]
    for policy, environment in POLICIES.items():
        rates = {count: side_by_side(work, count, environment) for count in (1, 2, 3)}
        alone = rates[1][0]
        shown = [", ".join(f"{rate:.3f}" for rate in found) for found in rates.values()]
        shares = [f"{min(found) / alone:.2f}" for count, found in rates.items() if count > 1]
        lines.append(f"  {policy:<18} {'; '.join(shown)}; the slowest of 2 and 3 at {' and '.join(shares)} of alone")
    with capsys.disabled():
        print("\n" + "\n".join(lines))


def _main() -> None:
    work, folder, number = sys.argv[1:]
    weights = fetch_weights("depth-anything-v2-small").path
    with tempfile.TemporaryDirectory() as scratch:
        rate = WORK[work](demo(weights), Path(scratch), Meeting(Path(folder), int(number)))
    print(json.dumps(rate))


if __name__ == "__main__":
    _main()
