import random

from support.killing_training import kill_training, small_training


def test_stage_two_killed_at_random_moments_ends_with_the_bytes_of_an_undisturbed_run(tmp_path, teacher_folder):
    """The short version of `make torture`."""
    cache, arguments = small_training(tmp_path / "data", teacher_folder)
    result = kill_training(arguments, cache, tmp_path / "runs", 1, random.Random(3))
    assert result.count >= 1
