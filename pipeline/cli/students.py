"""The verbs that use trained students: reports, tables, depth maps, export, ablation."""

import re
import sys
from pathlib import Path

import click

from data_cache.files import count_text
from pipeline.cli.console import json_option, json_report, open_run, parse_part, quiet_option, recipe_options, say
from pipeline.cli.exit_codes import EXIT_FAILED, exit_on_error, exit_quarantined


@click.command(short_help="Print one table of several reports.")
@click.argument("reports", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="REPORT...")
def compare(reports: tuple[Path, ...]) -> None:
    """Print one Markdown table of several reports of stage 3.

    REPORT is a run folder or a report.json. Reports that differ in protocol, data set, split, frames, masks or flip
    averaging are refused: their numbers do not compare.
    """
    from pipeline.report.compare import compare as table_of

    with exit_on_error():
        text = table_of(reports)
    click.echo(text)


@click.command(short_help="Write the page of a run again, or compare two runs.")
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="RUN [OTHER]")
@click.option("--out", type=click.Path(path_type=Path), help="File to write.")
def report(runs: tuple[Path, ...], out: Path | None) -> None:
    """Write the HTML page of a run again, or a page that compares two runs.

    RUN alone: RUN/eval/report.html, from the files that stage 3 wrote there. RUN OTHER: RUN/eval/compare-OTHER.html,
    with the differences and the frames that both show. Runs that `surround compare` refuses are refused here, too.
    """
    if len(runs) > 2:
        raise click.BadParameter(f"expected one run or two, got {len(runs)}", param_hint="RUN")
    from pipeline.report.one_run import rewrite_html
    from pipeline.report.two_runs import write_comparison

    with exit_on_error():
        page = rewrite_html(runs[0] / "eval", out) if len(runs) == 1 else write_comparison(runs[0], runs[1], out)
    click.echo(f"report: {page}")


@click.command(short_help="Measure what each loss term buys.")
@recipe_options
@click.option("--jobs", type=click.IntRange(1), help="Students to train at a time; default: one per GPU, or per core.")
@click.option(
    "--part", default="1/1", metavar="I/N", show_default=True, help="Train only every N-th student, from the I-th."
)
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
    """Train the same student with different losses, several seeds each, and print one table.

    [ablate] of the recipe names the rows; `evidence` is the recipe of docs/RESULTS.md. Needs the cache of stage 1.
    Students that are done are skipped. Job arrays call it with --part; the last job prints the whole table.
    """
    from pipeline.ablation.ablate import run_ablate

    with exit_on_error():
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
            f"Error: {count_text(done.elsewhere, 'student')} left to another process that is training now. Run the same"
            " command again when that process has ended",
            err=True,
        )
        sys.exit(EXIT_FAILED)


@click.command("zero-shot", short_help="Measure the student on data sets that it has not learnt from.")
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option(
    "--on",
    "targets",
    multiple=True,
    required=True,
    metavar="RECIPE[=DATA]",
    help="Recipe whose test split to measure on, with its data set in folder DATA; repeatable.",
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

    CHECKPOINT is RUN/student/last.safetensors. Input size and bins are the student's own; of a target's recipe only
    [data], eval.device and eval.precision count. A target of the student's own data set is refused.
    """
    from pipeline.report.zero_shot_table import zero_shot_quarantined, zero_shot_table
    from pipeline.runs.zero_shot import run_zero_shot

    with exit_on_error():
        done = run_zero_shot(checkpoint, targets, overrides, out)
    click.echo(zero_shot_table(done.trained_on, done.reports))
    click.echo(f"table: {done.page}")
    exit_quarantined(zero_shot_quarantined(done.reports), "they were not measured")


@click.command(short_help="Write depth maps and point clouds.")
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.argument("images", nargs=-1, type=click.Path(path_type=Path), metavar="[IMAGE...]")
@click.option("--rig", type=click.Path(path_type=Path), help="rig.json of the cameras that took the images.")
@click.option(
    "--on",
    default="",
    metavar="RECIPE[=DATA]|BAG",
    help="Recipe whose test frames to use, or a recording; default: the recipe of the run.",
)
@click.option(
    "--set", "overrides", multiple=True, metavar="SECTION.KEY=VALUE", help="Override a value of it; repeatable."
)
@click.option(
    "--frame", "frames", multiple=True, type=int, metavar="N", help="Only the N-th frame, from 0; repeatable."
)
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder to write to.")
@click.option(
    "--write",
    "kinds",
    multiple=True,
    type=click.Choice(["png16", "npy", "colour", "confidence", "ply", "glb", "html", "rrd", "mcap"]),
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
    """Write the depth that a student predicts: maps, pictures and point clouds, in metres, and how sure it is.

    CHECKPOINT is RUN/student/last.safetensors, or a folder that holds one student. The student sees the test frames of
    a recipe; all frames of BAG, a recording (.mcap, .db3, or the folder of a ROS 2 bag); or IMAGE...: one file per
    camera of --rig, named after the camera (front.jpg), or one folder of such files, or with one folder per camera.

    \b
    png16   OUT/png16/CAMERA/FRAME.png   16-bit, metres x 256, at the size of the image
    npy     OUT/npy/CAMERA/FRAME.npy     the same as float32 metres
    colour  OUT/colour/CAMERA/FRAME.png  yellow is near, blue is far
    confidence  OUT/confidence/CAMERA/FRAME.png  16-bit, standard deviation of log depth x 10,000
    ply     OUT/ply/FRAME.ply            point cloud of all cameras: x forward, y left, z up
    glb     OUT/glb/FRAME.glb            the same for viewers of glTF
    html    OUT/html/FRAME.html          the same to look at in a browser, up to 120,000 points
    rrd     OUT/drive.rrd                all frames for Rerun; pip install 'surround-distill[rerun]'
    mcap    OUT/mcap/DRIVE.mcap          ROS 2 messages for Foxglove, rviz2; pip install 'surround-distill[bags]'

    Files that are up to date are not written again.
    """
    if bool(images) != (rig is not None):
        raise click.UsageError("images and --rig go together: IMAGE... --rig rig.json")
    if images and (on or overrides):
        raise click.UsageError("--on and --set choose frames of a recipe; leave out either them or the images")
    from pipeline.runs.predict import run_predict

    with exit_on_error():
        done = run_predict(checkpoint, out, kinds, on=on, overrides=overrides, images=images, rig=rig, frames=frames)
    points = f", {done.points:,} points in the last cloud" if done.points is not None else ""
    click.echo(
        f"predict: {count_text(done.written, 'frame')} written, {done.already_done} already done{points}; {done.out}"
    )
    exit_quarantined(done.left_out, "some of their files were not written")


@click.command(short_help="Export the student as ONNX.")
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="ONNX file to write or replace.")
@click.option(
    "--on",
    metavar="RECIPE[=DATA]",
    help="Recipe of the cameras to export for and the test frames to compare on; default: the run's own.",
)
@click.option(
    "--set", "overrides", multiple=True, metavar="SECTION.KEY=VALUE", help="Override a value of it; repeatable."
)
@click.option("--batch", default="1", metavar="N|dynamic", show_default=True, help="Rigs per batch.")
@click.option("--one-camera", is_flag=True, help="A graph of one camera: on CPUs faster than one of the whole rig.")
@click.option(
    "--int8",
    type=click.Choice(["cpu", "cpu-vnni", "tensorrt"]),
    help="Also write a quantised file: right on any CPU, on CPUs with VNNI only, or for TensorRT.",
)
@click.option(
    "--cache", metavar="TARGET", help="Run folder or cache whose frames calibrate int8; default: the run's own."
)
@click.option("--frames", type=click.IntRange(1), default=8, show_default=True, help="Test frames to compare on.")
@click.option("--pt2", is_flag=True, help="Also write the program of torch.export.")
@click.option(
    "--card", is_flag=True, help="Also write README.md, a model card, and the checkpoint beside the ONNX file."
)
@click.option("--confidence", is_flag=True, help="A second output: sigma, the standard deviation of log depth.")
@json_option
@quiet_option
def export(
    checkpoint: Path,
    out: Path,
    on: str | None,
    overrides: tuple[str, ...],
    batch: str,
    one_camera: bool,
    int8: str | None,
    cache: str | None,
    frames: int,
    pt2: bool,
    card: bool,
    confidence: bool,
    as_json: bool,
) -> None:
    """Export a student as ONNX for onnxruntime, OpenVINO and TensorRT, and compare it with PyTorch on real frames.

    CHECKPOINT is RUN/student/last.safetensors, or a folder that holds one student. Nothing is written if the graph and
    the student disagree.
    """
    from pipeline.runs.export import parity_table, run_export

    with exit_on_error():
        done = run_export(
            checkpoint,
            out,
            on=on,
            overrides=overrides,
            batch=_batch(batch),
            one_camera=one_camera,
            int8=int8,
            cache=cache,
            frames=frames,
            pt2=pt2,
            card=card,
            confidence=confidence,
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
