"""Requests to stop, from a cluster (SIGTERM, SIGUSR1) or from a person (Ctrl-C)."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from data_cache.errors import SurroundError
from data_cache.stop_signals import STOP_SIGNALS


class Preempted(SurroundError):
    """The stage was asked to stop; everything finished is saved, and the same command continues."""


@contextmanager
def preemption() -> Iterator[Callable[[], bool]]:
    """Yield a function that says whether a stop signal came.

    Inside, the first signal does nothing else; a second one acts as usual.
    """
    asked = False
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        asked = True
        signal.signal(number, before[signal.Signals(number)])

    for number in before:
        signal.signal(number, note)
    try:
        yield lambda: asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
