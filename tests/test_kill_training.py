import random
from pathlib import Path

import pytest
from commands import Command, write_drive, write_recipe
from killing_training import STEPS, kill_training_until_done


@pytest.fixture(scope="module")
def drive(tmp_path_factory, teacher_folder) -> list[object]:
    """Arguments for a training of a few steps on a cache of six frames, and that cache."""
    root = tmp_path_factory.mktemp("kill-training")
    data = write_drive(root / "data", 6)
    recipe = write_recipe(root / "r.toml", teacher_folder, 6, shard_frames=3)
    cached = Command(root / "log", "teacher-cache", recipe, "--data", data, "--run", root / "run")
    assert cached.end() == 0, cached.output
    steps = [f"train_student.steps={STEPS}", "train_student.batch_rigs=2", "train_student.checkpoint_every=1"]
    settings = [part for setting in steps for part in ("--set", setting)]
    return [root / "run/cache", "train-student", recipe, "--data", data, *settings]


def test_stage_two_killed_at_random_moments_ends_with_the_bytes_of_an_undisturbed_run(drive, tmp_path):
    """The short version of `make torture`."""
    cache, *arguments = drive
    assert isinstance(cache, Path)
    result = kill_training_until_done(arguments, cache, tmp_path / "runs", 2, random.Random(3))
    assert result.count >= 2
