from dataclasses import replace

import pytest
from support.fakes import CPU
from support.trainings import RANGE_M, SPEC, STUDENT, stop_after, train

from data_cache.shards.reader import CacheReader
from stages.compute.preemption import Preempted
from stages.losses.spec import LossSpec
from stages.student.checkpoint import CheckpointError
from stages.student.model import Student
from stages.targets.spec import BinSpec
from stages.training.plan import plan_training
from stages.training.preflight import TrainingJob


def plan(cache, folder, spec=SPEC, selection=()):
    student = Student(STUDENT, BinSpec(prob_stride=4))
    ids = tuple(f"d/{i}" for i in range(5))
    job = TrainingJob(CacheReader(cache), student, ids, selection, folder, spec, LossSpec(), RANGE_M, CPU)
    return plan_training(job)


def test_a_plan_tells_what_a_run_does_and_writes_nothing(cache, tmp_path):
    with pytest.raises(Preempted):
        train(cache, tmp_path, student=STUDENT, should_stop=stop_after(2))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    found = plan(cache, tmp_path, selection=("d/2",))
    assert (found.frames, found.quarantined, found.selection_frames) == (4, 1, 1)
    assert (found.steps, found.steps_done, found.batch_rigs, found.process_count) == (6, 2, 2, 1)
    assert found.parameters == sum(p.numel() for p in Student(STUDENT, BinSpec(prob_stride=4)).parameters())
    assert found.seconds_left == pytest.approx(4 * (found.seconds_per_step + found.read_seconds_per_step))
    assert replace(found, workers=1, read_seconds_per_step=3.0, seconds_per_step=2.0).seconds_left == 4 * 3
    assert replace(found, workers=2, read_seconds_per_step=3.0, seconds_per_step=2.0).seconds_left == 4 * 2
    with pytest.raises(CheckpointError, match="learning_rate"):
        plan(cache, tmp_path, replace(SPEC, learning_rate=0.1))
    assert found.seconds_per_step > found.read_seconds_per_step > 0
    assert found.memory_bytes > 2**27
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_the_disk_that_it_asks_for_is_what_a_run_takes(cache, tmp_path):
    spec = replace(SPEC, keep_last=2)
    train(cache, tmp_path, spec, student=STUDENT, selection=("d/2",))
    taken = sum(path.stat().st_size for path in tmp_path.rglob("*.safetensors"))
    state = max((tmp_path / "states").iterdir()).stat().st_size
    assert plan(cache, tmp_path, spec, ("d/2",)).disk_bytes == pytest.approx(taken + state, rel=0.01)
