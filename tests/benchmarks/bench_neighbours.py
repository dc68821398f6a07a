"""What one or two other jobs on the same cores cost a training step and stage one, by how long threads spin.

Each job is a process of its own that does the same work; they begin together, and each tells its rate.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from support.fakes import save_tiny_teacher

from data_cache.dataset import CachedFrames, collate
from data_cache.shards.reader import CacheReader
from pipeline.recipe.config import Recipe, load_recipe
from pipeline.runs.stage_one import open_stage_one
from pipeline.weights.fetch import fetch_weights
from stages.compute.waiting import BRIEFLY, DECIDED_BY
from stages.student.model import Student
from stages.training.preflight import TrainingJob, open_training
from stages.training.step import on_device

pytestmark = pytest.mark.bench
SECONDS = 8
FRAMES = 5
POLICIES = {"threads that spin": {}, "threads that spin briefly": BRIEFLY}
"""As torch comes, and as `surround` sets it."""


def demo(weights: Path) -> Recipe:
    """The demo's recipe on a few frames, with the teacher of a folder."""
    recipe = load_recipe("demo")
    return replace(
        recipe,
        data=replace(recipe.data, train=(f"train[:{6 * FRAMES}:6]",)),
        teacher_cache=replace(recipe.teacher_cache, weights=str(weights), shard_frames=1),
        student=replace(recipe.student, pretrained=False),
    )


@cache
def tiny_cache() -> Path:
    """A cache of the demo's frames by a tiny teacher, whose bins cost a training step what real ones cost."""
    folder = Path(tempfile.mkdtemp())
    tiny = open_stage_one(demo(save_tiny_teacher(folder / "tiny")))
    writer = tiny.writer(str(folder / "cache"))
    tiny.write(writer, writer.pending(), retry_quarantined=False)
    return folder / "cache"


def training_steps(recipe: Recipe, scratch: Path, ready: "Meeting") -> float:
    """Optimiser steps a second, from the cache that was made for all jobs."""
    reader = CacheReader(ready.folder / "cache")
    ids, spec, device = reader.frames.train, recipe.train_student, torch.device("cpu")
    student = Student(recipe.student, recipe.bins)
    job = TrainingJob(reader, student, ids, (), scratch, spec, recipe.losses, recipe.data.depth_range_m, device)
    training = open_training(job)
    student.train()
    frames = CachedFrames(reader, ids, neighbours=recipe.losses.photometric > 0)
    rigs = on_device(device, collate([frames[i] for i in range(spec.batch_rigs)]))
    training.step([rigs], 0)
    return ready.rate(lambda: training.step([rigs], 1))


def stage_one_frames(recipe: Recipe, scratch: Path, ready: "Meeting") -> float:
    """Frames a second of stage one: rendering, teacher and writing of all frames but the first."""
    stage = open_stage_one(recipe)
    writer = stage.writer(str(scratch / "cache"))
    stage.write(writer, writer.pending()[:1], retry_quarantined=False)
    ready.wait()
    begin = time.monotonic()
    written = stage.write(writer, writer.pending(), retry_quarantined=False).frames_written
    return written / (time.monotonic() - begin)


class Meeting:
    """A folder in which jobs say that they are ready and are told to begin."""

    def __init__(self, folder: Path, number: int):
        self.folder, self._number = folder, number

    def wait(self) -> None:
        (self.folder / f"ready-{self._number}").touch()
        while not (self.folder / "go").exists():
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


def side_by_side(work: str, environments: list[dict[str, str]]) -> list[float]:
    """Rates of processes that do the same at the same time, each in its environment."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if work == "training_steps":
            (folder / "cache").symlink_to(tiny_cache())
        inherited = {key: value for key, value in os.environ.items() if key not in (*DECIDED_BY, "OMP_NUM_THREADS")}
        jobs = [
            subprocess.Popen(
                [sys.executable, __file__, work, name, str(number)],
                env={**inherited, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), **environment},
                stdout=subprocess.PIPE,
                text=True,
            )
            for number, environment in enumerate(environments)
        ]
        while sum(path.name.startswith("ready-") for path in folder.iterdir()) < len(jobs):
            assert all(job.poll() is None for job in jobs), "a job ended before it was ready"
            time.sleep(0.05)
        (folder / "go").touch()
        return [json.loads(job.communicate()[0].splitlines()[-1]) for job in jobs]


def rates_text(found: list[float], alone: float) -> str:
    return ", ".join(f"{rate:.3f} ({rate / alone:.2f})" for rate in found)


def test_bench_neighbours_training(capsys):
    """Alone; then beside one and two jobs of the same kind, and beside one of the other kind."""
    alone = {policy: side_by_side("training_steps", [environment])[0] for policy, environment in POLICIES.items()}
    cores = len(os.sched_getaffinity(0))
    lines = [f"training steps of the demo a second, {cores} cores; in brackets of the rate alone of the same kind:"]
    for policy, environment in POLICIES.items():
        lines.append(f"  {policy}, alone: {alone[policy]:.3f}")
        for count in (2, 3):
            found = side_by_side("training_steps", [environment] * count)
            lines.append(f"  {policy}, {count} jobs: {rates_text(found, alone[policy])}")
    mixed = side_by_side("training_steps", list(POLICIES.values()))
    lines.append(f"  one that spins, one that spins briefly: {', '.join(f'{rate:.3f}' for rate in mixed)}")
    with capsys.disabled():
        print("\n" + "\n".join(lines))


def test_bench_neighbours_stage_one(capsys):
    """Stage one as `surround` starts it, alone and beside one and two of its kind."""
    found = [side_by_side("stage_one_frames", [BRIEFLY] * count) for count in (1, 2, 3)]
    alone = found[0][0]
    with capsys.disabled():
        print("\nstage one of the demo, frames a second; in brackets of the rate alone:")
        for rates in found:
            print(f"  {len(rates)} jobs: {rates_text(rates, alone)}")


def _main() -> None:
    work, folder, number = sys.argv[1:]
    weights = fetch_weights("depth-anything-v2-small").path
    with tempfile.TemporaryDirectory() as scratch:
        rate = WORK[work](demo(weights), Path(scratch), Meeting(Path(folder), int(number)))
    print(json.dumps(rate))


if __name__ == "__main__":
    _main()
