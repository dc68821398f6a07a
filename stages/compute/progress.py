"""One progress bar for every stage."""

import os
import sys
from typing import TextIO

from tqdm import tqdm

QUIET = "SURROUND_QUIET"
"""If set to 1, only results, warnings and errors are shown, also by processes that a stage starts."""
_SHOWN_AFTER_S = 2.0


def is_quiet() -> bool:
    """Whether the user wants no progress output."""
    return os.environ.get(QUIET) == "1"


def progress_bar(
    total: int, done: int, description: str, unit: str, *, quiet: bool = False, unit_scale: bool = False
) -> "tqdm[None]":
    """A progress bar on a terminal; elsewhere a line now and then, so that a job's log shows life but stays short.

    Work of less than two seconds shows nothing. `quiet` shows nothing, for processes other than the first. `unit_scale`
    counts in k, M and G.
    """
    terminal = sys.stderr.isatty()
    counted = f"{{n_fmt}} of {{total_fmt}} {unit if unit_scale else f'{unit}s'} ({{percentage:.0f}} %)"
    line = f"{{desc}}: {counted}, {{elapsed}} elapsed, {{remaining}} left, {{rate_fmt}}{{postfix}}"
    return tqdm(
        total=total,
        initial=done,
        desc=description,
        unit=unit,
        unit_scale=unit_scale,
        file=sys.stderr if terminal else _Lines(sys.stderr),
        bar_format=None if terminal else line,
        delay=_SHOWN_AFTER_S,
        mininterval=0.2 if terminal else 20,
        maxinterval=10 if terminal else 60,
        dynamic_ncols=terminal,
        disable=quiet or done == total or is_quiet(),
    )


class _Lines:
    """A stream that turns each update of a bar into a line of its own, for log files."""

    def __init__(self, stream: TextIO):
        self._stream, self._last = stream, ""

    def write(self, text: str) -> int:
        line = text.strip()
        if line and line != self._last:  # tqdm writes the last state twice
            self._stream.write(line + "\n")
            self._last = line
        return len(text)

    def flush(self) -> None:
        self._stream.flush()
