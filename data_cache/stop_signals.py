"""Stop signals, and starting child processes that ignore them so that the parent decides when to stop."""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
"""How a cluster (SIGTERM, SIGUSR1) or a person (Ctrl-C) asks to stop; often the whole process group gets them."""


@contextmanager
def deaf_children() -> Iterator[None]:
    """Processes started inside never receive STOP_SIGNALS; this process receives them, at the latest afterwards."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        # Start the resource tracker first, because doing so unblocks two of the signals. Its warnings about what a
        # killed worker leaves behind are silenced.
        sys.warnoptions.append("ignore:resource_tracker")
        resource_tracker.ensure_running()
        signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
