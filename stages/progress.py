"""One progress bar for every stage."""

import os
import sys

from tqdm import tqdm

from data_cache.errors import SurroundError


class Preempted(SurroundError):
    """The machine asked the stage to stop; everything finished is saved and the same command continues."""


def progress_bar(
    total: int, done: int, description: str, unit: str, *, quiet: bool = False, unit_scale: bool = False
) -> "tqdm[None]":
    """A bar on a terminal; elsewhere a line now and then, so that a job's log shows life but does not drown in it.

    `quiet` shows nothing: another process speaks. `unit_scale` counts in k, M and G.
    """
    terminal = sys.stderr.isatty()
    return tqdm(
        total=total,
        initial=done,
        desc=description,
        unit=unit,
        unit_scale=unit_scale,
        mininterval=0.2 if terminal else 20,
        maxinterval=10 if terminal else 60,
        dynamic_ncols=terminal,
        disable=quiet
        or done == total
        or os.environ.get("TQDM_DISABLE") == "1",  # tqdm itself reads it only when imported
    )
