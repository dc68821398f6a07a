"""Stage two under kills. SURROUND_TORTURE_SEED and SURROUND_TORTURE_KILLS (per number of workers) change it."""

import os
import random

import pytest
from support.killing_training import kill_training, small_training


@pytest.mark.torture
@pytest.mark.parametrize("workers", [0, 2])
def test_a_training_killed_at_random_moments_ends_with_the_bytes_of_an_undisturbed_one(
    tmp_path, teacher_folder, workers
):
    seed = int(os.environ.get("SURROUND_TORTURE_SEED", random.SystemRandom().randrange(2**32)))
    kills = int(os.environ.get("SURROUND_TORTURE_KILLS", 30))
    cache, arguments = small_training(tmp_path / "data", teacher_folder, f"workers={workers}", encoder="resnet-10")
    result = kill_training(arguments, cache, tmp_path / "runs", kills, random.Random(f"{seed} {workers}"))
    print(f"\n{result.count} kills in {result.runs} trainings, {workers} loader workers, SURROUND_TORTURE_SEED={seed}")
    print(result.table())
    assert result.count >= kills
