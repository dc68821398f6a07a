"""Stage one under SIGKILL at random moments, until it is done nevertheless."""

import os
import random
import signal
import subprocess
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from data_cache.shards.errors import IncompleteCacheError
from data_cache.shards.reader import cache_status
from support.caches import contents
from support.commands import Command, descendants
from support.surround import surround

BEFORE_CACHE, PLANNING, WRITING = "before the cache existed", "cache there, no shard open", "shards open"
ELSEWHERE = "left to another process"
SPREAD = 1.3
"""Half of the kills come between 0 and this many times the duration of an undisturbed run."""
HARD_LIMIT_S = 300


@dataclass
class Kills:
    """What was hit."""

    count: int = 0
    runs: int = 0
    moments: Counter[str] = field(default_factory=Counter)
    victims: Counter[str] = field(default_factory=Counter)
    shards_done: Counter[int] = field(default_factory=Counter)
    partials_left: int = 0

    def note(self, cache: Path, victim: str) -> None:
        """Look at the cache in the moment of a kill, before it."""
        self.count += 1
        self.victims[victim] += 1
        try:
            status = cache_status(cache)
        except IncompleteCacheError:
            self.moments[BEFORE_CACHE] += 1
            return
        self.moments[WRITING if status.shards_open else PLANNING] += 1
        self.shards_done[status.shards_done] += 1

    def table(self) -> str:
        """A histogram in text."""
        lines = [f"  {n:4d}  {what}" for what, n in (*self.moments.most_common(), *self.victims.most_common())]
        lines += [f"  {n:4d}  at {done:2d} shards done {'#' * n}" for done, n in sorted(self.shards_done.items())]
        return "\n".join([*lines, f"  {self.partials_left:4d}  partial files left behind by the dead"])


def kill_until_done(arguments: list[object], base: Path, kills: int, rng: random.Random) -> Kills:
    """Run stage one again and again, killing it `kills` times; every run must end as an undisturbed one does.

    Args:
        arguments: of `surround`, without --run.
        base: an empty folder for the runs and their logs.
        kills: at least so many; the run that is then under way is let through.
        rng: decides when, and whom.
    """
    base.mkdir(parents=True)
    log = base / "log"
    begin = time.monotonic()
    straight = Command(log, *arguments, "--run", base / "straight")
    assert straight.end() == 0, straight.output
    duration_s = time.monotonic() - begin
    expected = contents(base / "straight/cache")
    shard_count = cache_status(base / "straight/cache").shards_done
    local = "local" in arguments
    result = Kills()
    while result.count < kills:
        run = base / f"run-{result.runs}"
        while (command := Command(log, *arguments, "--run", run)) and not _ended(
            command, run / "cache", kills, result, duration_s, shard_count, local, rng
        ):
            result.partials_left += len(list(run.rglob("*.partial")))
        result.runs += 1
        assert contents(run / "cache") == expected
        code, text = surround("cache", "verify", run)
        assert code == 0, text
        subprocess.run(["rm", "-r", run], check=True)
    return result


def _ended(
    command: Command,
    cache: Path,
    kills: int,
    result: Kills,
    duration_s: float,
    shard_count: int,
    local: bool,
    rng: random.Random,
) -> bool:
    """Let a command run and kill it, or a worker of it; whether it came to its end."""
    while True:
        delay_s = rng.uniform(0, SPREAD * duration_s) if result.count < kills else HARD_LIMIT_S
        if result.count < kills and rng.random() < 0.5:
            # Start-up and shutdown are most of so short a run: every other kill comes between two receipts.
            _wait_for_receipts(command, cache, rng.randrange(shard_count))
            delay_s = rng.uniform(0, 0.1)
        try:
            code = command.process.wait(delay_s)
        except subprocess.TimeoutExpired:
            assert delay_s < HARD_LIMIT_S, f"hangs: {command.output}"
        else:
            command.kill()
            assert "Traceback" not in command.output
            # Workers of a killed run end on their own, but not in the same instant: one may still hold a shard.
            assert code == 0 or (local and code == 1 and ELSEWHERE in command.output), (code, command.output)
            return code == 0
        workers = [pid for pid in descendants(command.process.pid) if _is_worker(pid)] if local else []
        victim = rng.choice(["main", "group", "worker", "worker"]) if workers else "main"
        result.note(cache, victim)
        if victim == "worker":  # the command goes on without it
            _kill(rng.choice(workers))
            continue
        if victim == "main":
            _kill(command.process.pid)
            command.process.wait()
        else:
            command.kill()
        return False


def _wait_for_receipts(command: Command, cache: Path, count: int) -> None:
    """Until a shard is open and so many more are done, or the command has ended."""
    deadline = time.monotonic() + HARD_LIMIT_S
    while command.process.poll() is None and time.monotonic() < deadline:
        with suppress(IncompleteCacheError):
            status = cache_status(cache)
            if status.shards_done >= count and status.shards_open:
                return
        time.sleep(0.01)


def _is_worker(pid: int) -> bool:
    try:
        return b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def _kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
