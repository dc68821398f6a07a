"""Trainings of several processes, and signals to them, as launchers and clusters send them."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support.commands import Command, free_port, wait_until
from support.killing_training import small_training
from support.repository import REPOSITORY
from support.surround import surround

LAUNCH = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--no-python", "--"]
SETTINGS = [
    "precision=fp32", "steps=12", "learning_rate=1e-4", "batch_rigs=2", "checkpoint_every=10"
]  # fmt: skip


def logged(run: Path) -> list[dict[str, float]]:
    """Lines of the log, without what depends on the clock."""
    lines = [json.loads(line) for line in (run / "student/log.jsonl").read_text().splitlines()]
    clocked = ("frames_per_s", "waiting_share")
    return [{name: value for name, value in line.items() if name not in clocked} for line in lines]


@pytest.fixture(scope="module")
def drive(tmp_path_factory, teacher_folder) -> tuple[Path, list[object]]:
    return small_training(tmp_path_factory.mktemp("drive"), teacher_folder)


def prepared(run: Path, drive: tuple[Path, list[object]], *settings: str) -> list[object]:
    """Arguments of a training in `run`."""
    cache, arguments = drive
    run.mkdir()
    (run / "cache").symlink_to(cache)
    overrides = [part for setting in settings for part in ("--set", f"train_student.{setting}")]
    return [*arguments, *overrides, "--run", run]


def as_job(folder: Path, arguments: list[object]) -> str:
    """What two processes print that were started as a SLURM job starts them, the launcher's variables set by hand."""
    launch = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    tasks = [
        Command(folder / f"{i}.log", *arguments, environment=launch | {"RANK": str(i), "LOCAL_RANK": str(i)})
        for i in range(2)
    ]
    assert [task.end() for task in tasks] == [0, 0], [task.output for task in tasks]
    return "".join(task.output for task in tasks)


def by_torchrun(folder: Path, arguments: list[object]) -> str:
    """What two processes of torchrun print."""
    program = "import support.tiny_encoder; from pipeline.cli.main import main; main()"
    command = [sys.executable, *LAUNCH, sys.executable, "-c", program]
    environment = {"OMP_NUM_THREADS": "1"} | os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(
        [*command, *map(str, arguments)], cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("launched", [as_job, pytest.param(by_torchrun, marks=pytest.mark.torture)])
def test_two_gloo_processes_learn_what_one_does_and_one_continues_what_two_have_begun(drive, tmp_path, launched):
    """The loss terms agree to float tolerance, which Adam makes larger from step to step."""
    code, text = surround(*prepared(tmp_path / "one", drive, *SETTINGS))
    assert code == 0, text
    printed = launched(tmp_path, prepared(tmp_path / "two", drive, *SETTINGS))
    assert printed.count("checkpoint in") == 1  # one of them speaks
    changed = prepared(tmp_path / "changed", drive, *SETTINGS)
    states = tmp_path / "changed/student/states"
    states.mkdir(parents=True)
    (states / "00000010.safetensors").symlink_to(tmp_path / "two/student/states/00000010.safetensors")
    code, text = surround(*changed)
    assert code == 0, text
    expected = logged(tmp_path / "one")
    assert [line["step"] for line in expected] == [10, 12]
    for line, other in zip(expected, logged(tmp_path / "two"), strict=True):
        assert other == pytest.approx(line, rel=1e-3)
    assert logged(tmp_path / "changed") == [pytest.approx(expected[1], rel=1e-3)]


ENDLESS = ("steps=100000", "checkpoint_every=100000")


@pytest.mark.parametrize(
    ("numbers", "workers"),
    [
        ((signal.SIGINT, signal.SIGUSR1), (1, 0)),
        pytest.param((signal.SIGUSR1, signal.SIGINT), (1, 1), marks=pytest.mark.torture),
    ],
)
def test_a_signal_to_a_command_and_its_loader_workers_saves_and_the_same_command_goes_on(
    drive, tmp_path, numbers, workers
):
    """As terminals and clusters send it, to all that the command has started; each time a few steps further."""
    run, reached = tmp_path / "run", 0
    arguments = prepared(run, drive, *ENDLESS)
    for number, count in zip(numbers, workers, strict=True):
        command = Command(tmp_path / "log", *arguments, "--set", f"train_student.workers={count}")
        wait_until(
            lambda done=reached, command=command: _logged(run) > done or command.process.poll() is not None, "steps"
        )
        command.signal(number, group=True)
        assert command.end() == 75, command.output
        assert "Run the same command to continue" in command.output
        assert "Traceback" not in command.output
        (state, *older) = sorted((run / "student/states").iterdir(), reverse=True)
        assert len(older) == (reached > 0)
        assert int(state.stem) > reached
        reached = int(state.stem)


@pytest.mark.torture
def test_a_signal_to_one_process_of_a_job_saves_and_ends_all_with_75(drive, tmp_path):
    """Started as a SLURM job does it: a task per process, the launcher's variables set by hand."""
    run = tmp_path / "run"
    arguments = prepared(run, drive, *ENDLESS)
    launch = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    tasks = [
        Command(tmp_path / f"{i}.log", *arguments, environment=launch | {"RANK": str(i), "LOCAL_RANK": str(i)})
        for i in range(2)
    ]
    wait_until(lambda: _logged(run) > 0 or tasks[0].process.poll() is not None, "ten steps")
    tasks[1].signal(signal.SIGUSR1)
    assert [task.end() for task in tasks] == [75, 75], [task.output for task in tasks]
    (state,) = (run / "student/states").iterdir()
    assert f"stopped after step {int(state.stem)} of 100000; the state is saved" in tasks[0].output


def _logged(run: Path) -> int:
    """Newest step in the log."""
    return max((int(line["step"]) for line in logged(run)), default=0) if (run / "student/log.jsonl").exists() else 0
