"""The verbs `cache`, `rig` and `weights`."""

import sys
from pathlib import Path

import click

from data_cache.files import count_text
from pipeline.cli.console import json_option, json_report, list_notes, open_run, quiet_option, recipe_options
from pipeline.cli.exit_codes import EXIT_FAILED, exit_on_error, exit_quarantined

RETRY = "fix the files and run teacher-cache --retry"


@click.group(short_help="Predict the size of a cache, show how far it is, verify it.")
def cache() -> None:
    """Predict the size of a cache, show how far it is, verify it.

    TARGET is a run folder, a cache folder, an s3:// or gs:// address, or a recipe.
    """


@cache.command("size")
@recipe_options
@json_option
@click.option(
    "--frames", type=click.IntRange(min=1), default=4, show_default=True, help="Frames to encode as a sample."
)
def cache_size(
    recipe: str, data: Path | None, run: Path | None, overrides: tuple[str, ...], frames: int, as_json: bool
) -> None:
    """Predict the size of a cache before it is written, per encoding."""
    from pipeline.runs.cache import run_cache_size

    with exit_on_error():
        parsed, folder = open_run(recipe, data, run, overrides)
        predicted = run_cache_size(parsed, folder, frames)
    if as_json:
        click.echo(json_report(predicted))
        return
    click.echo(
        f"{count_text(predicted.frame_count, 'frame')} in shards of {parsed.teacher_cache.shard_frames},", nl=False
    )
    click.echo(f" estimated from {predicted.sampled_count} of them")
    click.echo(f"{'encoding':<13}{'kB/frame':>9}{'bins, relations':>17}{'total GB':>10}{'files':>9}")
    for size in predicted.sizes:
        mark = "*" if size.encoding == parsed.bins.encoding else " "
        click.echo(
            f"{size.encoding + mark:<13}{size.frame_bytes / 1e3:9.0f}{size.bins_bytes / 1e3:17.0f}"
            f"{size.total_bytes / 1e9:10.3f}{size.file_count:9d}"
        )
    free = f"; {predicted.free_bytes / 1e9:.1f} GB are free at {predicted.location}" if predicted.free_bytes else ""
    click.echo(
        f"* the recipe's encoding (bins.encoding); closed_form is exact, smallest and leaves K and sigma open{free}"
    )


@cache.command("status")
@click.argument("target")
@click.option("--run", type=click.Path(path_type=Path), help="Run folder of a recipe; default runs/<recipe>.")
@json_option
def cache_status(target: str, run: Path | None, as_json: bool) -> None:
    """Show how far a cache is; works at any moment, also while it is being written."""
    from data_cache.shards.reader import cache_status as status_of
    from pipeline.recipe.run_folder import find_cache

    with exit_on_error():
        location = find_cache(target, run)
        status = status_of(location)
    identity = status.identity
    writing = f", {status.shards_open} being written now" if status.shards_open else ""
    litter = f", {count_text(status.partial_count, 'partial file')} of killed writers" if status.partial_count else ""
    text = (
        f"{status.shards_done} of {identity.shard_count} shards{writing}{litter},"
        f" {count_text(identity.frame_count, 'frame')} of {identity.source}, {status.bytes / 1e6:.1f} MB,"
        f" encoding {identity.encoding}, teacher {identity.teacher_name} ({identity.teacher_licence}),"
        f" {status.resolved.precision} in {status.resolved.runtime}; {location}"
    )
    click.echo(json_report(status, complete=status.complete) if as_json else text)
    for damage in status.damages:
        click.echo(damage, err=True)
    list_notes(status.notes)
    if status.damages:
        sys.exit(EXIT_FAILED)
    exit_quarantined(status.quarantined, RETRY)


@cache.command("verify")
@click.argument("target")
@json_option
@click.option(
    "--recompute",
    type=click.IntRange(min=0),
    default=0,
    metavar="N",
    help="Also run the teacher again on N random frames and compare.",
)
@click.option("--data", type=click.Path(path_type=Path), help="Data set folder, for --recompute.")
@click.option("--run", type=click.Path(path_type=Path), help="Run folder of a recipe; default runs/<recipe>.")
def cache_verify(target: str, recompute: int, data: Path | None, run: Path | None, as_json: bool) -> None:
    """Check every receipt, checksum and value of a cache. An unfinished cache does not pass (exit 1)."""
    from pipeline.recipe.run_folder import find_cache
    from pipeline.runs.cache import run_cache_verify, run_recompute

    with exit_on_error():
        location = find_cache(target, run)
        verified = run_cache_verify(location)
    for fault in verified.faults:
        click.echo(fault, err=True)
    passed = (
        f"{'verified' if verified.complete else 'INCOMPLETE'}: {verified.shards_done} of {verified.shard_count} shards,"
        f" every file matches its receipt; {count_text(verified.frames_checked, 'frame')}: values are finite and not"
        " constant, probabilities sum to one"
    )
    if as_json:
        click.echo(json_report(verified, complete=verified.complete))
    elif not verified.faults:
        click.echo(passed)
    if verified.faults:
        sys.exit(EXIT_FAILED)
    if not verified.complete:
        click.echo("Error: the cache is not finished; run teacher-cache again to continue", err=True)
        sys.exit(EXIT_FAILED)
    if recompute:
        with exit_on_error():
            frames = run_recompute(target, location, recompute, data, run)
        for frame in frames:
            click.echo(
                f"recomputed {frame.frame_id}: probabilities differ by {frame.prob_mean:.1e} on average,"
                f" {frame.prob_max:.1e} at most; the top bin differs in {100 * frame.top_bin_changed:.2f} % of pixels;"
                f" relations differ by {frame.relation_max:.1e} at most; inputs"
                f" {'equal' if frame.inputs_equal else 'DIFFER'}",
                err=as_json,
            )
    exit_quarantined(verified.quarantined, RETRY)


@click.group(short_help="Import recordings, or export frames, as a rig folder, the layout for your own vehicle.")
def rig() -> None:
    """Import recordings, or export frames, as a rig folder, the layout for your own vehicle.

    data_cache/RIG_FOLDER.md describes it.
    """


@rig.command("export")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="New folder to write.")
@click.option("--data", type=click.Path(path_type=Path), help="Data set folder.")
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="SECTION.KEY=VALUE",
    help='Override a recipe value, e.g. data.train=["002[:17]"]; repeatable.',
)
@click.argument("recipe")
def rig_export(recipe: str, data: Path | None, overrides: tuple[str, ...], out: Path) -> None:
    """Write the frames of a recipe as a rig folder. It reads back equal.

    The frames are those of data.train, data.selection and data.test.
    """
    from pipeline.recipe.config import load_recipe
    from pipeline.runs.rig_folder import run_rig_export

    with exit_on_error():
        done = run_rig_export(load_recipe(recipe, overrides, data), out)
    click.echo(
        f"rig export: {count_text(done.frame_count, 'frame')} in {out},"
        f" {count_text(done.copied_count, 'image')} copied, {done.encoded_count} written as PNG"
    )
    exit_quarantined(done.left_out, "they were not exported")


@rig.command("import")
@click.argument("bags", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="BAG...")
@click.option("--out", type=click.Path(path_type=Path), help="Folder to write, new or unfinished.")
@click.option(
    "--rate",
    type=click.FloatRange(min=0, min_open=True),
    metavar="HZ",
    help="At most so many frames a second; default: one per LiDAR sweep.",
)
@click.option(
    "--slack-ms",
    type=click.FloatRange(min=0, min_open=True),
    metavar="MS",
    help="An image belongs to a frame if it is so near; default: 50.",
)
@click.option(
    "--bag-toml", type=click.Path(path_type=Path), help="Decisions of yours, in the form that --dry-run prints."
)
@click.option("--dry-run", is_flag=True, help="Print what would be decided, and write nothing.")
@quiet_option
def rig_import(
    bags: tuple[Path, ...],
    out: Path | None,
    rate: float | None,
    slack_ms: float | None,
    bag_toml: Path | None,
    dry_run: bool,
) -> None:
    """Write recordings of a vehicle as a rig folder: ROS 2 bags (MCAP, sqlite3) and Foxglove MCAP.

    BAG is a file or the folder of a bag; each becomes a drive. Cameras, LiDAR, ring order, poses and frames are decided
    from the recording, unless --bag-toml says otherwise. The same command continues an import that was stopped.
    """
    if out is None and not dry_run:
        raise click.UsageError("--out names the folder to write; leave it out only with --dry-run")
    from pipeline.runs.rig_folder import run_rig_import

    with exit_on_error():
        imported = run_rig_import(bags, None if dry_run else out, bag_toml, rate, slack_ms)
    for note in imported.notes:
        click.echo(f"Note: {note}", err=True)
    if imported.done is None:
        click.echo(imported.decisions, nl=False)
        return
    done = imported.done
    continued = f" ({done.continued_count:,} of them before)" if done.continued_count else ""
    click.echo(
        f"rig import: {count_text(done.frame_count, 'frame')}{continued} in {out},"
        f" {count_text(done.copied_count, 'image')} copied, {done.encoded_count} written as PNG"
    )
    exit_quarantined(done.left_out, "they were not imported")


@click.command(short_help="Fetch pinned weights, or list them.")
@click.argument("name", required=False)
def weights(name: str | None) -> None:
    """Fetch the pinned weights NAME; without NAME, list all that are known."""
    from pipeline.weights.fetch import fetch_weights, known_weights_table

    with exit_on_error():
        if name is None:
            click.echo(known_weights_table())
            return
        found = fetch_weights(name)
    click.echo(f"{name}: {found.path} ({found.route}; {found.licence}; sha256 {found.sha256})")
