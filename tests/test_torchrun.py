import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from commands import REPOSITORY, Command
from test_kill_training import drive  # noqa: F401

LAUNCH = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--no-python", "--"]
SETTINGS = ["precision=fp32", "steps=20", "batch_rigs=4", "checkpoint_every=10", "select_every=10"]


def logged(run: Path) -> list[dict[str, float]]:
    """Lines of the log, without what depends on the clock."""
    lines = [json.loads(line) for line in (run / "student/log.jsonl").read_text().splitlines()]
    clocked = ("frames_per_s", "waiting_share")
    return [{name: value for name, value in line.items() if name not in clocked} for line in lines]


def test_two_gloo_processes_learn_what_one_does_and_one_continues_what_two_have_begun(drive, tmp_path):  # noqa: F811
    """Frames of a ring with missing cameras and sparse LiDAR: the loss terms agree to float tolerance at each line."""
    cache, *arguments = drive
    arguments += [part for setting in SETTINGS for part in ("--set", f"train_student.{setting}")]
    for name in ("one", "two", "changed"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "cache").symlink_to(cache)
    one = Command(tmp_path / "one.log", *arguments, "--run", tmp_path / "one")
    assert one.end() == 0, one.output
    script = [sys.executable, "-c", "from pipeline.cli import main; main()", *arguments, "--run", tmp_path / "two"]
    command = [sys.executable, *LAUNCH, *map(str, script)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    two = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=240)
    assert two.returncode == 0, two.stderr
    assert two.stdout.count("checkpoint in") == 1  # one of them speaks
    states = tmp_path / "changed/student/states"
    states.mkdir(parents=True)
    (states / "00000010.safetensors").symlink_to(tmp_path / "two/student/states/00000010.safetensors")
    changed = Command(tmp_path / "changed.log", *arguments, "--run", tmp_path / "changed")
    assert changed.end() == 0, changed.output
    expected = logged(tmp_path / "one")
    assert [line["step"] for line in expected] == [10, 20]
    for line, other in zip(expected, logged(tmp_path / "two"), strict=True):
        assert other == pytest.approx(line, rel=1e-3)
    assert logged(tmp_path / "changed") == [pytest.approx(expected[1], rel=1e-3)]
