"""A process that has imported what `surround` imports and forks commands: to import takes seconds, to fork nothing.

What it forks is a process like any other: a session, an environment and an output of its own, and the exit of an
interpreter. Cold starts are those of torchrun, of dask's workers and of loaders.
"""

import atexit
import json
import os
import signal
import subprocess
import sys
import time
from functools import cache
from importlib import import_module
from pathlib import Path

from support.repository import REPOSITORY

# A main module without a file, as spawned processes would import it again.
SERVE = "from support.warm import serve; serve()"

PRELOADED = (
    "support.tiny_encoder",
    "pipeline.runs.teacher_cache",
    "pipeline.runs.train_student",
    "pipeline.runs.evaluate",
    "pipeline.ablation.ablate",
    "matplotlib",
    "torch.utils.tensorboard",
    "transformers.models.depth_anything.modeling_depth_anything",
    "transformers.models.dinov2.modeling_dinov2",
    "transformers.models.resnet.modeling_resnet",
)


class Forked:
    """A process that was forked elsewhere, in the manner of subprocess.Popen."""

    def __init__(self, arguments: list[str], log: Path, environment: dict[str, str]):
        self._exit = log.with_name(f"{log.name}.exit")
        self._exit.unlink(missing_ok=True)
        server = _server()
        order = {"arguments": arguments, "log": str(log), "exit": str(self._exit), "environment": environment}
        assert server.stdin is not None and server.stdout is not None
        server.stdin.write(json.dumps(order) + "\n")
        server.stdin.flush()
        self.pid = int(server.stdout.readline())

    def poll(self) -> int | None:
        """Its exit code, negative for a signal; None while it runs."""
        try:
            return int(self._exit.read_text())
        except FileNotFoundError:
            return None

    def wait(self, timeout_s: float | None = None) -> int:
        """Its exit code, once it has one."""
        end = time.monotonic() + timeout_s if timeout_s is not None else float("inf")
        while (code := self.poll()) is None:
            assert _server().poll() is None, "the process that forks commands has died"
            if time.monotonic() > end:
                raise subprocess.TimeoutExpired("surround", timeout_s or 0)
            time.sleep(0.01)
        return code

    def kill(self) -> None:
        """SIGKILL for it alone."""
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)


@cache
def _server() -> "subprocess.Popen[str]":
    """One for this process, which waits for its end."""
    server = subprocess.Popen(
        [sys.executable, "-c", SERVE],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
        env={"OMP_NUM_THREADS": "1", **os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        start_new_session=True,
    )
    atexit.register(server.communicate)  # ends its input, and so itself
    return server


def serve() -> None:
    """Fork a command for each line of input, answer with its process id and write its exit code into a file."""
    from pipeline.cli.main import main

    for module in PRELOADED:
        import_module(module)

    exits: dict[int, Path] = {}

    def reap(*_: object) -> None:
        for pid in list(exits):
            if (ended := os.waitpid(pid, os.WNOHANG))[0]:
                path = exits.pop(pid)
                partial = path.with_suffix(".partial")
                partial.write_text(str(os.waitstatus_to_exitcode(ended[1])))
                partial.replace(path)

    signal.signal(signal.SIGCHLD, reap)
    while line := sys.stdin.readline():
        order = json.loads(line)
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])  # until it is known whose end is to be noted
        pid = os.fork()
        if pid:
            exits[pid] = Path(order["exit"])
        else:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGCHLD])
        if not pid:
            os.setsid()
            nothing, log = os.open(os.devnull, os.O_RDONLY), os.open(order["log"], os.O_WRONLY | os.O_TRUNC)
            for there, here in ((nothing, 0), (log, 1), (log, 2)):
                os.dup2(there, here)
            os.environ.clear()
            os.environ.update(order["environment"])
            sys.argv[1:] = order["arguments"]
            main()
        print(pid, flush=True)
