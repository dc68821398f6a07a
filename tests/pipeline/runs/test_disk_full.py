"""A disk that really fills up."""

import re
import subprocess

import pytest
from support.caches import contents
from support.commands import write_drive, write_recipe
from support.surround import surround

FRAMES = 8


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 2 MB in memory."""
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", folder], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"a small file system cannot be mounted here: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)  # a writer may still have its lock file open


def test_a_full_disk_says_how_much_is_lacking_and_the_same_command_goes_on(small_disk, tmp_path, teacher_folder):
    data = write_drive(tmp_path / "data", FRAMES)
    recipe = write_recipe(tmp_path / "r.toml", teacher_folder, FRAMES)
    recipe.write_text(recipe.read_text().replace("input_size = [32, 64]", "input_size = [352, 640]"))
    options = ("teacher-cache", recipe, "--data", data)
    assert surround(*options, "--run", tmp_path / "straight")[0] == 0
    straight = contents(tmp_path / "straight/cache")

    code, text = surround(*options, "--run", small_disk)
    assert (code, "Error: disk full while writing shard" in text, "Traceback" in text) == (1, True, False), text
    lacking_mb = float(re.search(r"([\d.]+) MB are lacking", text)[1])
    assert lacking_mb == pytest.approx(sum(map(len, straight.values())) / 1e6 - 2, abs=0.5)
    done = int(re.search(r"(\d) of 8 shards", surround("cache", "status", small_disk)[1])[1])
    assert 0 < done < FRAMES
    assert not list(small_disk.rglob("*.partial"))

    subprocess.run(["mount", "-o", "remount,size=20m", small_disk], check=True)
    code, text = surround(*options, "--run", small_disk)
    assert (code, re.search(rf"\b{FRAMES - done} shards? written", text) is not None) == (0, True), text
    assert contents(small_disk / "cache") == straight
    assert surround("cache", "verify", small_disk)[0] == 0
