"""Stage two under SIGKILL at random moments, until it is done nevertheless."""

import json
import os
import random
import shutil
import signal
import subprocess
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from support.commands import Command, descendants, wait_until, write_drive, write_recipe
from support.surround import surround

STEPS = 8
SPREAD = 1.2
HARD_LIMIT_S = 300


def small_training(root: Path, teacher: Path, *settings: str) -> tuple[Path, list[object]]:
    """A cache of six frames in `root`, and the arguments of a training of a few steps from it.

    Args:
        root: an empty folder.
        teacher: folder of its weights.
        settings: `key=value` of train_student, besides those of a training that saves each step.
    """
    data = write_drive(root / "data", 6)
    recipe = write_recipe(root / "r.toml", teacher, 6, shard_frames=3)
    code, text = surround("teacher-cache", recipe, "--data", data, "--run", root / "run")
    assert code == 0, text
    chosen = [f"steps={STEPS}", "batch_rigs=2", "checkpoint_every=1", *settings]
    overrides = [part for setting in chosen for part in ("--set", f"train_student.{setting}")]
    return root / "run/cache", ["train-student", recipe, "--data", data, *overrides]


@dataclass
class TrainingKills:
    """What was hit."""

    count: int = 0
    runs: int = 0
    saved_steps: Counter[int] = field(default_factory=Counter)
    victims: Counter[str] = field(default_factory=Counter)
    partials_left: int = 0

    def table(self) -> str:
        """A histogram in text."""
        lines = [f"  {n:4d}  {what}" for what, n in self.victims.most_common()]
        lines += [f"  {n:4d}  newest state of step {step:2d} {'#' * n}" for step, n in sorted(self.saved_steps.items())]
        return "\n".join([*lines, f"  {self.partials_left:4d}  partial files left behind by the dead"])


def kill_training_until_done(
    arguments: list[object], cache: Path, base: Path, kills: int, rng: random.Random
) -> TrainingKills:
    """Run stage two again and again, killing it `kills` times; every run must end as an undisturbed one does.

    Args:
        arguments: of `surround`, without --run.
        cache: what it learns from; copied into each run folder.
        base: an empty folder for the runs and their logs.
        kills: at least so many; the run that is then under way is let through.
        rng: decides when, and whom.
    """
    base.mkdir(parents=True)
    log = base / "log"
    shutil.copytree(cache, base / "straight/cache")
    begin = time.monotonic()
    straight = Command(log, *arguments, "--run", base / "straight")
    assert straight.end() == 0, straight.output
    duration_s = time.monotonic() - begin
    expected = outcome(base / "straight")
    result = TrainingKills()
    while result.count < kills:
        run = base / f"run-{result.runs}"
        shutil.copytree(cache, run / "cache")
        while (command := Command(log, *arguments, "--run", run)) and not _ended(
            command, run, kills, result, duration_s, rng
        ):
            result.partials_left += len(list((run / "student").rglob("*.partial")))
        result.runs += 1
        assert outcome(run) == expected
        subprocess.run(["rm", "-r", run], check=True)
    return result


def outcome(run: Path) -> dict[str, bytes | list[int] | list[str]]:
    """What must be the same whatever has happened on the way: student, newest state, steps of the log."""
    states = sorted((run / "student/states").iterdir())
    lines = (run / "student/log.jsonl").read_text().splitlines()
    return {
        "student": (run / "student/last.safetensors").read_bytes(),
        states[-1].name: states[-1].read_bytes(),
        "states": [int(state.stem) for state in states],
        "logged": [json.loads(line)["step"] for line in lines],
        "files": sorted(path.name for path in (run / "student").rglob("*") if "tfevents" not in path.name),
    }


def _ended(
    command: Command, run: Path, kills: int, result: TrainingKills, duration_s: float, rng: random.Random
) -> bool:
    """Let a command run and kill it; whether it came to its end."""
    if result.count >= kills:
        delay_s = float(HARD_LIMIT_S)
    elif rng.random() < 0.6:
        # Start-up is most of so short a run: most kills come soon after a step was saved.
        _wait_for_state(command, run, rng.randrange(STEPS))
        delay_s = rng.uniform(0, 0.5)
    else:
        delay_s = rng.uniform(0, SPREAD * duration_s)
    try:
        code = command.process.wait(delay_s)
    except subprocess.TimeoutExpired:
        assert delay_s < HARD_LIMIT_S, f"hangs: {command.output}"
    else:
        command.kill()
        assert code == 0, command.output
        return True
    workers = descendants(command.process.pid)
    victim = rng.choice(["main", "group"]) if workers else "main"
    result.count += 1
    result.victims[f"{victim}{' with loader workers' if workers else ''}"] += 1
    result.saved_steps[_newest(run)] += 1
    if victim == "main":
        with suppress(ProcessLookupError):
            os.kill(command.process.pid, signal.SIGKILL)
        command.process.wait()
        wait_until(lambda: not any(_runs(pid) for pid in workers), "loader workers whose parent was killed to end")
    else:
        command.kill()
    return False


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def _newest(run: Path) -> int:
    return max((int(path.stem) for path in (run / "student/states").glob("*.safetensors")), default=0)


def _wait_for_state(command: Command, run: Path, steps: int) -> None:
    """Until a state of so many steps is there, or the command has ended."""
    deadline = time.monotonic() + HARD_LIMIT_S
    while command.process.poll() is None and time.monotonic() < deadline and _newest(run) < steps:
        time.sleep(0.01)
