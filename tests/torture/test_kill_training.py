import os
import random
from pathlib import Path

import pytest
from killing_training import kill_training_until_done
from test_kill_training import drive  # noqa: F401

pytestmark = pytest.mark.torture
KILLS = 30


@pytest.mark.parametrize("workers", [0, 2])
def test_training_killed_at_random_moments_ends_with_the_bytes_of_an_undisturbed_run(drive, tmp_path, workers):  # noqa: F811
    cache, *arguments = drive
    assert isinstance(cache, Path)
    seed = int(os.environ.get("TORTURE_SEED", "20261125")) + workers
    arguments += ["--set", f"train_student.workers={workers}"]
    result = kill_training_until_done(arguments, cache, tmp_path / "runs", KILLS, random.Random(seed))
    print(f"{result.count} kills in {result.runs} trainings, {workers} loader workers, seed {seed}")
    print(result.table())
    assert result.count >= KILLS
