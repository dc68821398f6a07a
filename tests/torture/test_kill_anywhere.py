"""Hundreds of kills. Run by `make torture`; SURROUND_TORTURE_SEED and SURROUND_TORTURE_KILLS (per engine) change it."""

import os
import random
import time

import pytest
from support.commands import write_drive, write_recipe
from support.killing_teacher_cache import WRITING, kill_teacher_cache

FRAMES, SHARD_FRAMES = 96, 4
LARGER = "[cluster]\nworkers = 2\n"


@pytest.mark.torture
@pytest.mark.parametrize("engine", ["local", "threads"])
def test_a_run_killed_at_random_moments_ends_with_the_bytes_of_an_undisturbed_one(tmp_path, teacher_folder, engine):
    seed = int(os.environ.get("SURROUND_TORTURE_SEED", random.SystemRandom().randrange(2**32)))
    kills = int(os.environ.get("SURROUND_TORTURE_KILLS", 60))
    print(f"\n{engine}: SURROUND_TORTURE_SEED={seed}")
    data = write_drive(tmp_path / "data", FRAMES)
    recipe = write_recipe(tmp_path / "r.toml", teacher_folder, FRAMES, SHARD_FRAMES, LARGER)
    text = recipe.read_text().replace("input_size = [32, 64]", "input_size = [192, 320]")
    recipe.write_text(text.replace("input_size = [42, 70]", "input_size = [140, 252]"))
    begin = time.monotonic()
    arguments = ["teacher-cache", recipe, "--data", data, "--scheduler", engine]
    result = kill_teacher_cache(arguments, tmp_path / "runs", kills, random.Random(f"{seed} {engine}"))
    print(result.table())
    print(f"{engine}: {result.count} kills, {result.runs} runs, {time.monotonic() - begin:.0f} s, seed {seed}")
    assert result.count >= kills
    assert result.moments[WRITING] >= kills // 5
