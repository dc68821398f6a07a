"""What all verbs share: options, errors and their exit codes, lists of frames."""

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from data_cache.files import count_text
from stages.compute.progress import QUIET, is_quiet

if TYPE_CHECKING:
    from pipeline.recipe.config import Recipe
    from pipeline.recipe.run_folder import RunFolder

F = TypeVar("F", bound=Callable[..., Any])


quiet_option = click.option(
    "--quiet",
    is_flag=True,
    expose_value=False,
    callback=lambda _, __, quiet: os.environ.update({QUIET: "1"} if quiet else {}),
    help="Show no progress, only results, warnings and errors.",
)


def recipe_options(command: F) -> F:
    """Add what every stage takes: the recipe, the data set folder, the run folder and overrides."""
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


json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document for machines.")


def json_report(report: Any, **derived: object) -> str:
    """A report as JSON, with values that are derived from it."""
    from dataclasses import asdict

    from pipeline.report.results_file import json_text

    return json_text(asdict(report) | derived).rstrip()


def say(text: str) -> None:
    """Print a line about progress on stderr, unless --quiet was given."""
    if not is_quiet():
        click.echo(text, err=True)


def open_run(
    recipe: str, data: Path | None, run: Path | None, overrides: tuple[str, ...]
) -> "tuple[Recipe, RunFolder]":
    """Read the recipe with its overrides and name the run folder."""
    from pipeline.recipe.config import load_recipe
    from pipeline.recipe.run_folder import RunFolder

    parsed = load_recipe(recipe, overrides, data)
    return parsed, RunFolder(run or Path("runs") / parsed.name)


def parse_part(text: str) -> tuple[int, int]:
    """Parse the I and N of `--part I/N`."""
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise click.BadParameter(f"expected I/N with 1 <= I <= N, got {text!r}", param_hint="--part")
    return int(match[1]), int(match[2])


def list_notes(notes: Mapping[str, str]) -> None:
    """Print what usable frames lack, one line per kind: a camera missing everywhere is one fact, not thousands."""
    frames: dict[str, list[str]] = {}
    for frame_id, note in notes.items():
        frames.setdefault(note, []).append(frame_id)
    for note, frame_ids in frames.items():
        click.echo(f"Note: {note} in {count_text(len(frame_ids), 'frame')}, first {frame_ids[0]}", err=True)
