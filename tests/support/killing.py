"""Commands under SIGKILL at random moments, until they are done nevertheless."""

import os
import random
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from support.commands import Command

HARD_LIMIT_S = 300


@dataclass
class Kills:
    """What was hit."""

    wanted: int
    rng: random.Random
    count: int = 0
    runs: int = 0
    moments: Counter[str] = field(default_factory=Counter)
    victims: Counter[str] = field(default_factory=Counter)
    progress: Counter[str] = field(default_factory=Counter)
    partials_left: int = 0

    def table(self) -> str:
        """A histogram in text."""
        lines = [f"  {n:4d}  {what}" for what, n in (*self.moments.most_common(), *self.victims.most_common())]
        lines += [f"  {n:4d}  {done} {'#' * n}" for done, n in sorted(self.progress.items())]
        return "\n".join([*lines, f"  {self.partials_left:4d}  partial files left behind by the dead"])


def kill_until_done(
    arguments: list[object],
    base: Path,
    kills: Kills,
    *,
    prepare: Callable[[Path], object],
    outcome: Callable[[Path], object],
    ended: Callable[[Command, Path, float], bool],
) -> None:
    """Run a command again and again, killing it as often as wanted; every run must end as an undisturbed one does.

    Args:
        arguments: of `surround`, without --run.
        base: an empty folder for the runs and their logs.
        kills: takes at least as many as it wants; the run that is then under way is let through.
        prepare: makes a run folder ready for the command.
        outcome: what must be the same in a run folder whatever has happened on the way.
        ended: lets a command run in a run folder and kills it, given the seconds that an undisturbed one takes; whether
            it came to its end.
    """
    base.mkdir(parents=True)
    log, straight = base / "log", base / "straight"
    prepare(straight)
    begin = time.monotonic()
    command = Command(log, *arguments, "--run", straight)
    assert command.end() == 0, command.output
    duration_s = time.monotonic() - begin
    expected = outcome(straight)
    while kills.count < kills.wanted:
        run = base / f"run-{kills.runs}"
        prepare(run)
        while not ended(Command(log, *arguments, "--run", run), run, duration_s):
            kills.partials_left += len(list(run.rglob("*.partial")))
        kills.runs += 1
        assert outcome(run) == expected
        subprocess.run(["rm", "-r", run], check=True)


def end_within(command: Command, delay_s: float) -> int | None:
    """The exit code of a command that ends in time; None if it still runs."""
    try:
        code = command.process.wait(delay_s)
    except subprocess.TimeoutExpired:
        assert delay_s < HARD_LIMIT_S, f"hangs: {command.output}"
        return None
    command.kill()
    return code


def wait_while_running(command: Command, condition: Callable[[], bool]) -> None:
    """Until a condition holds or the command has ended."""
    deadline = time.monotonic() + HARD_LIMIT_S
    while command.process.poll() is None and time.monotonic() < deadline and not condition():
        time.sleep(0.01)


def kill_alone(pid: int) -> None:
    """SIGKILL for one process, if it is still there."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
