import random

from support.commands import write_drive, write_recipe
from support.killing_teacher_cache import kill_teacher_cache


def test_stage_one_killed_at_random_moments_ends_with_the_bytes_of_an_undisturbed_run(tmp_path, teacher_folder):
    """The short version of `make torture`."""
    data = write_drive(tmp_path / "data", 6)
    recipe = write_recipe(tmp_path / "r.toml", teacher_folder, 6)
    result = kill_teacher_cache(["teacher-cache", recipe, "--data", data], tmp_path / "runs", 2, random.Random(8))
    assert result.count >= 2
