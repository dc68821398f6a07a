"""Stage two under SIGKILL at random moments."""

import json
import random
import shutil
from pathlib import Path

from support.commands import Command, descendants, wait_until, write_drive, write_recipe
from support.killing import HARD_LIMIT_S, Kills, end_within, kill_alone, kill_until_done, wait_while_running
from support.surround import surround
from support.tiny_encoder import TINY_ENCODER

STEPS = 8
SPREAD = 1.2


def small_training(root: Path, teacher: Path, *settings: str, encoder: str = TINY_ENCODER) -> tuple[Path, list[object]]:
    """A cache of six frames in `root`, and the arguments of a training of a few steps from it.

    Args:
        root: an empty folder.
        teacher: folder of its weights.
        settings: `key=value` of train_student, besides those of a training that saves each step.
        encoder: of the student; a real one takes longer to save, so that more kills come while it is saved.
    """
    data = write_drive(root / "data", 6)
    recipe = write_recipe(root / "r.toml", teacher, 6, shard_frames=3)
    code, text = surround("teacher-cache", recipe, "--data", data, "--run", root / "run")
    assert code == 0, text
    chosen = [f"steps={STEPS}", "batch_rigs=2", "checkpoint_every=1", *settings]
    overrides = [part for setting in chosen for part in ("--set", f"train_student.{setting}")]
    overrides += ["--set", f"student.encoder={encoder}"]
    return root / "run/cache", ["train-student", recipe, "--data", data, *overrides]


def kill_training(arguments: list[object], cache: Path, base: Path, wanted: int, rng: random.Random) -> Kills:
    """Kill stage two in `base` at least so often; `arguments` as of `kill_until_done`, each run copies the cache."""
    kills = Kills(wanted, rng)
    kill_until_done(
        arguments,
        base,
        kills,
        prepare=lambda run: shutil.copytree(cache, run / "cache"),
        outcome=_outcome,
        ended=lambda command, run, duration_s: _ended(command, run, kills, duration_s),
    )
    return kills


def _outcome(run: Path) -> dict[str, bytes | list[int] | list[str]]:
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


def _ended(command: Command, run: Path, kills: Kills, duration_s: float) -> bool:
    rng = kills.rng
    if kills.count >= kills.wanted:
        delay_s = float(HARD_LIMIT_S)
    elif rng.random() < 0.6:
        # Start-up is most of so short a run: most kills come soon after a step was saved.
        steps = rng.randrange(STEPS)
        wait_while_running(command, lambda: _newest(run) >= steps)
        delay_s = rng.uniform(0, 0.5)
    else:
        delay_s = rng.uniform(0, SPREAD * duration_s)
    if (code := end_within(command, delay_s)) is not None:
        assert code == 0, command.output
        return True
    workers = descendants(command.process.pid)
    victim = rng.choice(["main", "group"]) if workers else "main"
    kills.count += 1
    kills.victims[f"{victim}{' with loader workers' if workers else ''}"] += 1
    kills.progress[f"newest state of step {_newest(run):2d}"] += 1
    if victim == "main":
        kill_alone(command.process.pid)
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
