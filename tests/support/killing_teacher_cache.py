"""Stage one under SIGKILL at random moments."""

import random
from pathlib import Path

from data_cache.shards.errors import IncompleteCacheError
from data_cache.shards.reader import cache_status
from support.caches import contents
from support.commands import Command, descendants
from support.killing import HARD_LIMIT_S, Kills, end_within, kill_alone, kill_until_done, wait_while_running
from support.surround import surround

BEFORE_CACHE, PLANNING, WRITING = "before the cache existed", "cache there, no shard open", "shards open"
ELSEWHERE = "left to another process"
SPREAD = 1.3
"""Half of the kills come between 0 and this many times the duration of an undisturbed run."""


def kill_teacher_cache(arguments: list[object], base: Path, wanted: int, rng: random.Random) -> Kills:
    """Kill stage one in `base` at least so often, it or a worker of it; `arguments` are as of `kill_until_done`."""
    kills = Kills(wanted, rng)

    def ended(command: Command, run: Path, duration_s: float) -> bool:
        shard_count = cache_status(base / "straight/cache").shards_done
        return _ended(command, run / "cache", kills, duration_s, shard_count, "local" in arguments)

    kill_until_done(arguments, base, kills, prepare=lambda _: None, outcome=_outcome, ended=ended)
    return kills


def _outcome(run: Path) -> dict[str, bytes]:
    code, text = surround("cache", "verify", run)
    assert code == 0, text
    return contents(run / "cache")


def _ended(command: Command, cache: Path, kills: Kills, duration_s: float, shard_count: int, local: bool) -> bool:
    rng = kills.rng
    while True:
        delay_s = rng.uniform(0, SPREAD * duration_s) if kills.count < kills.wanted else HARD_LIMIT_S
        if kills.count < kills.wanted and rng.random() < 0.5:
            # Start-up and shutdown are most of so short a run: every other kill comes between two receipts.
            done = rng.randrange(shard_count)
            wait_while_running(command, lambda done=done: _writes(cache, done))
            delay_s = rng.uniform(0, 0.1)
        if (code := end_within(command, delay_s)) is not None:
            assert "Traceback" not in command.output
            # Workers of a killed run end on their own, but not in the same instant: one may still hold a shard.
            assert code == 0 or (local and code == 1 and ELSEWHERE in command.output), (code, command.output)
            return code == 0
        workers = [pid for pid in descendants(command.process.pid) if _is_worker(pid)] if local else []
        victim = rng.choice(["main", "group", "worker", "worker"]) if workers else "main"
        _note(kills, cache, victim)
        if victim == "worker":  # the command goes on without it
            kill_alone(rng.choice(workers))
            continue
        if victim == "main":
            kill_alone(command.process.pid)
            command.process.wait()
        else:
            command.kill()
        return False


def _note(kills: Kills, cache: Path, victim: str) -> None:
    """Look at the cache in the moment of a kill, before it."""
    kills.count += 1
    kills.victims[victim] += 1
    try:
        status = cache_status(cache)
    except IncompleteCacheError:
        kills.moments[BEFORE_CACHE] += 1
        return
    kills.moments[WRITING if status.shards_open else PLANNING] += 1
    kills.progress[f"at {status.shards_done:2d} shards done"] += 1


def _writes(cache: Path, count: int) -> bool:
    """Whether a shard is open and so many more are done."""
    try:
        status = cache_status(cache)
    except IncompleteCacheError:
        return False
    return status.shards_done >= count and bool(status.shards_open)


def _is_worker(pid: int) -> bool:
    try:
        return b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
