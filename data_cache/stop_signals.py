"""Starting processes that leave being asked to stop to the one that started them."""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
"""How a cluster (SIGTERM, SIGUSR1) or a person (Ctrl-C) asks; often the whole process group at once."""


@contextmanager
def deaf_children() -> Iterator[None]:
    """Processes that are started inside never see STOP_SIGNALS; this one sees them, at the latest afterwards."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        # Started now because it lets two of them through again; it would warn of what a killed worker leaves.
        sys.warnoptions.append("ignore:resource_tracker")
        resource_tracker.ensure_running()
        signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
