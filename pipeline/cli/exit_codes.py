"""Exit codes of the command, and the messages that go with them."""

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from data_cache.errors import SettingError, SourceError, SurroundError
from data_cache.files import count_text
from pipeline.errors import RecipeError
from stages.compute.preemption import Preempted

if TYPE_CHECKING:
    pass


EXIT_FAILED, EXIT_USAGE, EXIT_QUARANTINED, EXIT_PREEMPTED = 1, 2, 3, 75


@contextmanager
def exit_on_error(how_to_continue: str = "Run the same command to continue.") -> Iterator[None]:
    """Turn our own errors into a message and an exit code; any other error is a bug and keeps its traceback."""
    try:
        yield
    except Preempted as error:
        click.echo(f"{error}. {how_to_continue}", err=True)
        sys.exit(EXIT_PREEMPTED)
    except KeyboardInterrupt:
        click.echo(f"Stopped before there was anything to save. {how_to_continue}", err=True)
        sys.exit(EXIT_PREEMPTED)
    except SurroundError as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(EXIT_USAGE if isinstance(error, (RecipeError, SourceError, SettingError)) else EXIT_FAILED)


def list_frames(title: str, entries: Mapping[str, str]) -> None:
    """Print the number of frames before `title`, and each frame with its reason."""
    if entries:
        click.echo(f"{count_text(len(entries), 'frame')} {title}:", err=True)
        for frame_id, reason in entries.items():
            click.echo(f"  {frame_id}: {reason}", err=True)


def exit_quarantined(quarantined: Mapping[str, str], remedy: str) -> None:
    """If frames were quarantined, list them and exit with EXIT_QUARANTINED."""
    if quarantined:
        list_frames(f"quarantined ({remedy})", quarantined)
        sys.exit(EXIT_QUARANTINED)
