"""What all verbs of the command share: options, errors as exit codes, lists of frames."""

import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from data_cache.errors import SettingError, SourceError, SurroundError
from data_cache.files import count_text
from pipeline.errors import RecipeError
from stages.compute.progress import QUIET, Preempted, is_quiet

if TYPE_CHECKING:
    from pipeline.recipe.config import Recipe
    from pipeline.recipe.run_folder import RunFolder

EXIT_FAILED, EXIT_USAGE, EXIT_QUARANTINED, EXIT_PREEMPTED = 1, 2, 3, 75
F = TypeVar("F", bound=Callable[..., Any])


quiet_option = click.option(
    "--quiet",
    is_flag=True,
    expose_value=False,
    callback=lambda _, __, quiet: os.environ.update({QUIET: "1"} if quiet else {}),
    help="No progress: only results, warnings and errors.",
)


def recipe_options(command: F) -> F:
    """What every stage takes: the recipe, where the data is, where the run goes, and overrides."""
    for option in (
        click.option(
            "--set",
            "overrides",
            multiple=True,
            metavar="SECTION.KEY=VALUE",
            help="Override a recipe value, e.g. train_student.steps=500; repeatable.",
        ),
        quiet_option,
        click.option("--run", "run", type=click.Path(path_type=Path), help="Run folder; default runs/<recipe>."),
        click.option("--data", type=click.Path(path_type=Path), help="Data set folder."),
        click.argument("recipe"),
    ):
        command = option(command)
    return command


json_option = click.option("--json", "as_json", is_flag=True, help="For machines: one JSON document on stdout.")


def json_report(report: Any, **derived: object) -> str:
    """A report as JSON, with what follows from it."""
    from dataclasses import asdict

    from pipeline.report.results_file import json_text

    return json_text(asdict(report) | derived).rstrip()


def say(text: str) -> None:
    """Tell the user what goes on, unless they want silence."""
    if not is_quiet():
        click.echo(text, err=True)


@contextmanager
def told_errors(how_to_continue: str = "Run the same command to continue.") -> Iterator[None]:
    """Turn our own errors into a message and an exit code; anything else is a bug and keeps its traceback."""
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


def open_run(
    recipe: str, data: Path | None, run: Path | None, overrides: tuple[str, ...]
) -> "tuple[Recipe, RunFolder]":
    """The recipe with its overrides, and the folder of the run."""
    from pipeline.recipe.config import load_recipe
    from pipeline.recipe.run_folder import RunFolder

    parsed = load_recipe(recipe, overrides, data)
    return parsed, RunFolder(run or Path("runs") / parsed.name)


def parse_part(text: str) -> tuple[int, int]:
    """I and N of `--part I/N`."""
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise click.BadParameter(f"expected I/N with 1 <= I <= N, got {text!r}", param_hint="--part")
    return int(match[1]), int(match[2])


def list_frames(title: str, entries: Mapping[str, str]) -> None:
    """Frames with a reason each."""
    if entries:
        click.echo(f"{title} in {count_text(len(entries), 'frame')}:", err=True)
        for frame_id, reason in entries.items():
            click.echo(f"  {frame_id}: {reason}", err=True)


def list_notes(notes: Mapping[str, str]) -> None:
    """What usable frames lack, a line for each kind: a camera that is missing everywhere is one fact, not thousands."""
    frames: dict[str, list[str]] = {}
    for frame_id, note in notes.items():
        frames.setdefault(note, []).append(frame_id)
    for note, frame_ids in frames.items():
        click.echo(f"Note: {note} in {count_text(len(frame_ids), 'frame')}, first {frame_ids[0]}", err=True)


def exit_quarantined(quarantined: Mapping[str, str], remedy: str) -> None:
    """List quarantined frames, if there are any, and end with the exit code that says so."""
    if quarantined:
        list_frames(f"Quarantined ({remedy})", quarantined)
        sys.exit(EXIT_QUARANTINED)
