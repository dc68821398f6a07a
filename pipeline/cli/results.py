"""Verbs about what students are worth and what to do with them."""

import re
import sys
from pathlib import Path

import click

from data_cache.files import count_text
from pipeline.cli.console import (
    EXIT_FAILED,
    exit_quarantined,
    json_option,
    json_report,
    open_run,
    parse_part,
    quiet_option,
    recipe_options,
    say,
    told_errors,
)


@click.command(short_help="One table of several reports.")
@click.argument("reports", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="REPORT...")
def compare(reports: tuple[Path, ...]) -> None:
    """Print one Markdown table of several reports of stage 3.

    REPORT is a run folder or a report.json. Reports of different protocols, data sets, splits, frames or masks, or with
    and without flip averaging, are refused: their numbers do not compare.
    """
    from pipeline.report.compare import compare as table_of

    with told_errors():
        text = table_of(reports)
    click.echo(text)


@click.command(short_help="The page of a run again, or of two.")
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="RUN [OTHER]")
@click.option("--out", type=click.Path(path_type=Path), help="File to write.")
def report(runs: tuple[Path, ...], out: Path | None) -> None:
    """Write the page of a run again, or one that compares two runs.

    One RUN: RUN/eval/report.html, from what stage three has left there. Two: RUN/eval/compare-OTHER.html with the
    differences and the frames that both show; what `surround compare` refuses is refused here, too.
    """
    if len(runs) > 2:
        raise click.BadParameter(f"expected one run or two, got {len(runs)}", param_hint="RUN")
    from pipeline.report.one_run import rewrite_html
    from pipeline.report.two_runs import write_comparison

    with told_errors():
        page = rewrite_html(runs[0] / "eval", out) if len(runs) == 1 else write_comparison(runs[0], runs[1], out)
    click.echo(f"report: {page}")


@click.command(short_help="What each loss term buys.")
@recipe_options
@click.option("--jobs", type=click.IntRange(1), help="Students at a time; default: one per GPU, or per core.")
@click.option("--part", default="1/1", metavar="I/N", show_default=True, help="Only every N-th student, from the I-th.")
@click.option("--dry-run", is_flag=True, help="Train nothing; print the table of what is done so far.")
def ablate(
    recipe: str,
    data: Path | None,
    run: Path | None,
    overrides: tuple[str, ...],
    jobs: int | None,
    part: str,
    dry_run: bool,
) -> None:
    """Train the same student with other losses, several seeds each, and print one table.

    [ablate] of the recipe names the rows; `evidence` is the recipe of docs/RESULTS.md. Needs the cache of stage 1.
    What is done is not done again; job arrays call it with --part, and whoever comes last prints the whole table.
    """
    from pipeline.ablation.ablate import run_ablate

    with told_errors():
        parsed, folder = open_run(recipe, data, run, overrides)
        command = ("surround", *sys.argv[1:])
        done = run_ablate(
            parsed, folder, jobs=jobs or 0, part=parse_part(part), train=not dry_run, command=command, say=say
        )
    click.echo(done.table)
    missing = f", {done.missing} still missing" if done.missing else ""
    trained = count_text(done.done, "student")
    where = f"; {done.path}" if done.path else "; nothing was written"
    click.echo(f"ablate: {trained} trained, {done.done_before} already done{missing}{where}")
    if done.elsewhere:
        click.echo(
            f"Error: {count_text(done.elsewhere, 'student')} left to another process that is training now. When it has"
            " ended, run the same command to see that nothing is missing",
            err=True,
        )
        sys.exit(EXIT_FAILED)


@click.command("zero-shot", short_help="Measure on data sets never learnt from.")
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option(
    "--on",
    "targets",
    multiple=True,
    required=True,
    metavar="RECIPE[=DATA]",
    help="Measure on the test split of this recipe, its data set in folder DATA; repeatable.",
)
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="RECIPE.SECTION.KEY=VALUE",
    help='Override a value of one target, e.g. nuscenes.data.test=["scene-0061"]; repeatable.',
)
@click.option("--out", type=click.Path(path_type=Path), help="Folder for the table; default RUN/zero_shot.")
@quiet_option
def zero_shot(checkpoint: Path, targets: tuple[str, ...], overrides: tuple[str, ...], out: Path | None) -> None:
    """Measure a student on data sets that it has not learnt from: a sanity check, not a benchmark.

    CHECKPOINT is RUN/student/last.safetensors. Input size and bins are its own; of a recipe only data, and device and
    precision of eval, count. A target of the data set that the student was trained on is refused.
    """
    from pipeline.report.zero_shot_table import zero_shot_quarantined, zero_shot_table
    from pipeline.runs.zero_shot import run_zero_shot

    with told_errors():
        done = run_zero_shot(checkpoint, targets, overrides, out)
    click.echo(zero_shot_table(done.trained_on, done.reports))
    click.echo(f"table: {done.page}")
    exit_quarantined(zero_shot_quarantined(done.reports), "they were not measured")


@click.command(short_help="Depth maps and point clouds.")
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.argument("images", nargs=-1, type=click.Path(path_type=Path), metavar="[IMAGE...]")
@click.option("--rig", type=click.Path(path_type=Path), help="rig.json of the cameras that took the images.")
@click.option("--on", default="", metavar="RECIPE[=DATA]", help="Test frames of this recipe; default: of its own run.")
@click.option("--set", "overrides", multiple=True, metavar="SECTION.KEY=VALUE", help="Override a value of that recipe.")
@click.option("--frame", "frames", multiple=True, type=int, metavar="N", help="Only the N-th, from 0; repeatable.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder to write to.")
@click.option(
    "--write",
    "kinds",
    multiple=True,
    type=click.Choice(["png16", "npy", "colour", "ply", "glb", "html", "rrd"]),
    default=["png16", "colour", "ply"],
    show_default=True,
    help="What to write; repeatable.",
)
@quiet_option
def predict(
    checkpoint: Path,
    images: tuple[Path, ...],
    rig: Path | None,
    on: str,
    overrides: tuple[str, ...],
    frames: tuple[int, ...],
    out: Path,
    kinds: tuple[str, ...],
) -> None:
    """Write the depth that a student sees: maps, pictures and point clouds, in metres.

    CHECKPOINT is RUN/student/last.safetensors. It looks at the test frames of a recipe, or at IMAGE...: a file for each
    camera of --rig, named after it (front.jpg), or one folder of such files, or of a folder for each camera.

    \b
    png16   OUT/png16/CAMERA/FRAME.png   16-bit, metres x 256, at the size of the image; surround eval --predictions
    npy     OUT/npy/CAMERA/FRAME.npy     the same as float32 metres
    colour  OUT/colour/CAMERA/FRAME.png  yellow is near, blue is far
    ply     OUT/ply/FRAME.ply            point cloud of all cameras: x forward, y left, z up from the vehicle
    glb     OUT/glb/FRAME.glb            the same for viewers of glTF
    html    OUT/html/FRAME.html          the same to look at in a browser, up to 120,000 points
    rrd     OUT/drive.rrd                all frames for the Rerun viewer; pip install 'surround-distill[rerun]'

    What is there is not written again.
    """
    if bool(images) != (rig is not None):
        raise click.UsageError("images and --rig go together: IMAGE... --rig rig.json")
    if images and (on or overrides):
        raise click.UsageError("--on and --set are for the frames of a recipe; leave them out, or the images")
    from pipeline.runs.predict import run_predict

    with told_errors():
        done = run_predict(checkpoint, out, kinds, on=on, overrides=overrides, images=images, rig=rig, frames=frames)
    points = f", {done.points:,} points in the last cloud" if done.points is not None else ""
    click.echo(
        f"predict: {count_text(done.written, 'frame')} written, {done.already_done} already done{points}; {done.out}"
    )
    exit_quarantined(done.left_out, "not all was written for them")


@click.command(short_help="The student as ONNX.")
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="ONNX file to write, or replace.")
@click.option(
    "--on",
    metavar="RECIPE[=DATA]",
    help="Whose cameras it is for and whose test frames it is compared on; default: the recipe of the run.",
)
@click.option(
    "--set", "overrides", multiple=True, metavar="SECTION.KEY=VALUE", help="Override a value of it; repeatable."
)
@click.option("--batch", default="1", metavar="N|dynamic", show_default=True, help="Rigs at a time.")
@click.option(
    "--int8",
    type=click.Choice(["cpu", "cpu-vnni", "tensorrt"]),
    help="Also a quantised file: right on any CPU, on CPUs with VNNI only, or for TensorRT.",
)
@click.option("--cache", metavar="TARGET", help="Run folder or cache to calibrate int8 on; default: the run's own.")
@click.option("--frames", type=click.IntRange(1), default=8, show_default=True, help="Test frames to compare on.")
@click.option("--pt2", is_flag=True, help="Also the program of torch.export.")
@json_option
@quiet_option
def export(
    checkpoint: Path,
    out: Path,
    on: str | None,
    overrides: tuple[str, ...],
    batch: str,
    int8: str | None,
    cache: str | None,
    frames: int,
    pt2: bool,
    as_json: bool,
) -> None:
    """Export a student as ONNX for onnxruntime, OpenVINO and TensorRT, and compare it with PyTorch on real frames.

    CHECKPOINT is RUN/student/last.safetensors. Nothing is written if the graph says something else than the student.
    """
    from pipeline.runs.export import parity_table, run_export

    with told_errors():
        done = run_export(
            checkpoint,
            out,
            on=on,
            overrides=overrides,
            batch=_batch(batch),
            int8=int8,
            cache=cache,
            frames=frames,
            pt2=pt2,
        )
    if as_json:
        click.echo(json_report(done))
    else:
        click.echo(parity_table(done.parity, done.truth))
        click.echo(
            f"export: {', '.join(done.files)}; compared on {count_text(done.frames, 'frame')} of {done.dataset}"
            f" {done.split}, timed on {count_text(done.threads, 'thread')} of a CPU with: {done.cpu}"
        )
    exit_quarantined(done.quarantined, "they were not compared")


def _batch(text: str) -> int | None:
    if text == "dynamic":
        return None
    if not re.fullmatch(r"[1-9]\d{0,3}", text):
        raise click.BadParameter(
            f"expected a number of rigs, at least 1, or dynamic, got {text!r}", param_hint="--batch"
        )
    return int(text)
