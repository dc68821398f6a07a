"""The command `surround`. Parses, calls one function, prints its report; heavy imports wait until a stage runs."""

import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from data_cache.errors import SettingError, SourceError, SurroundError
from data_cache.files import count_text, size_text
from pipeline.errors import RecipeError
from stages.progress import Preempted

if TYPE_CHECKING:
    from pipeline.config import Recipe
    from pipeline.folders import RunFolder
    from stages.training_plan import TrainingPlan

EXIT_FAILED, EXIT_USAGE, EXIT_QUARANTINED, EXIT_PREEMPTED = 1, 2, 3, 75
RETRY = "fix the files and run teacher-cache --retry"
F = TypeVar("F", bound=Callable[..., Any])


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="surround-distill", prog_name="surround")
def main() -> None:
    """Metric depth for full-surround cameras, distilled offline from a depth foundation model.

    RECIPE is a built-in name (demo, pandaset, nuscenes, ddad, rig) or a TOML file. Exit codes: 0 done; 1 failed; 2 bad
    usage or recipe; 3 done, but some frames were quarantined; 75 stopped by a signal after saving, run it again to go
    on.
    """


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
        click.option("--run", "run", type=click.Path(path_type=Path), help="Run folder; default runs/<recipe>."),
        click.option("--data", type=click.Path(path_type=Path), help="Data set folder."),
        click.argument("recipe"),
    ):
        command = option(command)
    return command


@main.command()
@recipe_options
@click.option("--scheduler", default="threads", metavar="NAME", help="What stage one will be given; is it there?")
@click.option("--json", "as_json", is_flag=True, help="A list of findings: check, level, found, remedy.")
def doctor(
    recipe: str, data: Path | None, run: Path | None, overrides: tuple[str, ...], scheduler: str, as_json: bool
) -> None:
    """Before anything: are data, calibration, weights, disk and devices fit for this recipe?

    Looks at a few frames, a minute at most on a CPU. Exit 0: no problem (there may be warnings); 1: problems.
    """
    from dataclasses import asdict

    from pipeline.doctor import run_doctor
    from pipeline.findings import findings_text

    with _errors():
        parsed, folder = _open_run(recipe, data, run, overrides)
        found = run_doctor(parsed, folder, scheduler=scheduler)
    click.echo(json.dumps([asdict(finding) for finding in found], indent=1) if as_json else findings_text(found))
    if any(finding.level == "problem" for finding in found):
        sys.exit(EXIT_FAILED)


@main.command("fit-bins")
@recipe_options
def fit_bins(recipe: str, data: Path | None, run: Path | None, overrides: tuple[str, ...]) -> None:
    """Before stage 1, for bins.strategy = "fitted": fit where the teacher's bins lie to LiDAR of training frames."""
    from pipeline.run import run_fit_bins

    with _errors():
        parsed, folder = _open_run(recipe, data, run, overrides)
        done = run_fit_bins(parsed, folder)
    fitted = done.fitted
    click.echo(
        f"fit-bins: {len(fitted.frames)} frames, {fitted.images} images, {fitted.points} LiDAR points"
        f"{', already done' if done.already_done else ''}; log depth after scale and shift per image is off by"
        f" {fitted.residual_before:.3f} before and {fitted.residual_after:.3f} after; {done.path}"
    )
    _list("Left out", fitted.skipped)
    if parsed.bins.strategy != "fitted":
        click.echo('Note: teacher-cache takes it where bins.strategy = "fitted"', err=True)


@main.command("teacher-cache")
@recipe_options
@click.option(
    "--scheduler",
    default="threads",
    metavar="NAME",
    show_default=True,
    help="threads (this process), local (a process per core or GPU), slurm, or the address of a dask scheduler.",
)
@click.option(
    "--part",
    default="1/1",
    metavar="I/N",
    show_default=True,
    help="Do only every N-th shard, from the I-th; where N is more than the shards, the last parts do nothing, exit 0.",
)
@click.option("--retry", is_flag=True, help="Try quarantined frames again.")
@click.option("--dry-run", is_flag=True, help="With slurm: print the batch script of a worker and stop.")
def teacher_cache(
    recipe: str,
    data: Path | None,
    run: Path | None,
    overrides: tuple[str, ...],
    scheduler: str,
    part: str,
    retry: bool,
    dry_run: bool,
) -> None:
    """Stage 1: run the teacher over every frame, once; what is done is skipped.

    Without any scheduler, job arrays call it with --part.
    """
    if dry_run and scheduler != "slurm":
        raise click.BadParameter("goes with --scheduler slurm", param_hint="--dry-run")
    from pipeline.run import run_teacher_cache

    with _errors():
        parsed, folder = _open_run(recipe, data, run, overrides)
        if dry_run:
            from pipeline.cluster import job_script

            click.echo(job_script(parsed.cluster))
            return
        done = run_teacher_cache(
            parsed, folder, scheduler=scheduler, part=_part(part), retry_quarantined=retry, say=_say
        )
    report, status = done.report, done.status
    if not done.plan.in_part:
        click.echo(f"teacher-cache: no shard to do in part {part}, there are only {status.identity.shard_count} in all")
        return
    rate = f", {report.frames_written / done.seconds:.2f} frames/s" if report.frames_written else ""
    frames = status.identity.frame_count
    per_frame = f", {status.bytes / frames / 1e3:.0f} kB per frame" if status.complete else ""
    already = done.plan.in_part - len(done.plan.pending) + report.shards_found_done
    click.echo(
        f"teacher-cache: {count_text(report.shards_written, 'shard')} written"
        f" ({count_text(report.frames_written, 'frame')} in {done.seconds:.0f} s{rate}), {already} already done;"
        f" {status.shards_done} of {status.identity.shard_count} shards,"
        f" {status.bytes / 1e6:.1f} MB{per_frame} in {done.location}"
    )
    _notes(status.notes)
    if report.shards_elsewhere and not status.complete:
        click.echo(
            f"Error: {count_text(report.shards_elsewhere, 'shard')} left to another process that is writing now:"
            " workers of an earlier run may still be finishing, or the same part was started twice. When it has ended,"
            " run the same command to see that nothing is missing",
            err=True,
        )
        sys.exit(EXIT_FAILED)
    _exit_quarantined(status.quarantined, "fix the files and pass --retry")


@main.command("train-student")
@recipe_options
@click.option("--resume/--fresh", default=True, show_default=True, help="Continue the saved state, or start over.")
@click.option("--dry-run", is_flag=True, help="Time a few steps, print the plan, write nothing.")
def train_student(
    recipe: str, data: Path | None, run: Path | None, overrides: tuple[str, ...], resume: bool, dry_run: bool
) -> None:
    """Stage 2: train the student from the cache and sparse LiDAR.

    On several GPUs: torchrun --standalone --nproc-per-node gpu --no-python -- surround train-student RECIPE ...
    """
    from pipeline.run import run_plan_training, run_train_student
    from stages.parallel import leads

    with _errors("Run the same command to continue." if resume else "Run it again, without --fresh, to continue."):
        parsed, folder = _open_run(recipe, data, run, overrides)
        if dry_run:
            plan = run_plan_training(parsed, folder, fresh=not resume)
            if leads():
                _print_plan(plan)
            return
        report = run_train_student(parsed, folder, fresh=not resume)
    if not leads():
        return
    best = f", best selection AbsRel {report.best_abs_rel:.4f}" if report.best_abs_rel is not None else ""
    left_out = (
        f"; {count_text(report.quarantined_count, 'quarantined frame')} left out" if report.quarantined_count else ""
    )
    waiting = f", {report.waiting_share:.1%} of it waiting for data" if report.waiting_share is not None else ""
    click.echo(
        f"train-student: {count_text(report.steps_done, 'step')} in {report.seconds:.0f} s"
        f" ({report.frames_per_s:.1f} frames/s{waiting}), {report.steps_skipped} already done{best}{left_out};"
        f" checkpoint in {folder.student}"
    )


def _print_plan(plan: "TrainingPlan") -> None:
    left = plan.steps - plan.steps_done
    samples = left * plan.batch_rigs
    minutes, seconds = divmod(round(plan.seconds_left), 60)
    shared = f" over {plan.process_count} processes" if plan.process_count > 1 else ""
    reader = f"in {count_text(plan.workers, 'loader worker')} beside it" if plan.workers else "before it"
    passes = f" in {plan.accumulate} passes" if plan.accumulate > 1 else ""
    click.echo(
        f"frames       {plan.frames:,} to learn from, {plan.quarantined:,} quarantined,"
        f" {plan.selection_frames:,} to choose on\n"
        f"steps        {left:,} of {plan.steps:,} left, {plan.batch_rigs} frames each{shared}{passes}:"
        f" {samples:,} samples, {samples / plan.frames:.1f} epochs\n"
        f"student      {plan.parameters / 1e6:.2f} M parameters, {plan.precision} on {plan.device}\n"
        f"time         {minutes // 60} h {minutes % 60:02d} min {seconds:02d} s: {plan.seconds_per_step:.2f} s a step,"
        f" {plan.read_seconds_per_step:.2f} s to read its frames {reader}; measuring and saving come on top\n"
        f"memory       {plan.memory_bytes / 2**30:.2f} GiB per process, loader workers apart\n"
        f"disk         {size_text(plan.disk_bytes)} for checkpoints"
    )


@main.command("eval")
@recipe_options
@click.option("--checkpoint", type=click.Path(path_type=Path), help="Student to measure; default: the run's own.")
@click.option("--predictions", type=click.Path(path_type=Path), help="Measure depth maps in this folder instead.")
@click.option("--protocol", help="surrounddepth, vfdepth, fsm or zero-shot; default: the recipe's.")
def evaluate(
    recipe: str,
    data: Path | None,
    run: Path | None,
    overrides: tuple[str, ...],
    checkpoint: Path | None,
    predictions: Path | None,
    protocol: str | None,
) -> None:
    """Stage 3: measure the student on the test split and write the report.

    Predictions are CAMERA/FRAME ID.png (16 bit, metres x 256, 0 = none) or .npy (metres), as eval.save_predictions of
    the recipe ("png16" or "npy") writes them to RUN/eval/predictions; neither student nor teacher is needed for them.
    """
    if checkpoint is not None and predictions is not None:
        raise click.BadParameter("does not go with --checkpoint", param_hint="--predictions")
    from pipeline.report import report_table
    from pipeline.run import run_evaluate

    with _errors():
        if protocol is not None:
            overrides = (*overrides, f'eval.protocol="{protocol}"')
        parsed, folder = _open_run(recipe, data, run, overrides)
        done = run_evaluate(parsed, folder, checkpoint=checkpoint, predictions=predictions)
    click.echo(report_table(done.report))
    click.echo(f"report: {done.html}")
    _exit_quarantined(done.report.quarantined, "they were not measured")


@main.command()
@click.argument("reports", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="REPORT...")
def compare(reports: tuple[Path, ...]) -> None:
    """Print one Markdown table of several reports of stage 3.

    REPORT is a run folder or a report.json. Reports of different protocols, data sets, splits, frames or masks, or with
    and without flip averaging, are refused: their numbers do not compare.
    """
    from pipeline.compare import compare as table_of

    with _errors():
        text = table_of(reports)
    click.echo(text)


@main.command()
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

    [ablate] of the recipe names the rows; `evidence` is the recipe of the table in README. Needs the cache of stage 1.
    What is done is not done again; job arrays call it with --part, and whoever comes last prints the whole table.
    """
    from pipeline.ablate import run_ablate

    with _errors():
        parsed, folder = _open_run(recipe, data, run, overrides)
        command = ("surround", *sys.argv[1:])
        done = run_ablate(
            parsed, folder, jobs=jobs or 0, part=_part(part), train=not dry_run, command=command, say=_say
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


@main.command("zero-shot")
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
def zero_shot(checkpoint: Path, targets: tuple[str, ...], overrides: tuple[str, ...], out: Path | None) -> None:
    """Measure a student on data sets that it has not learnt from: a sanity check, not a benchmark.

    CHECKPOINT is RUN/student/last.safetensors. Input size and bins are its own; of a recipe only data, and device and
    precision of eval, count. A target of the data set that the student was trained on is refused.
    """
    from pipeline.report import zero_shot_quarantined, zero_shot_table
    from pipeline.zero_shot import run_zero_shot

    with _errors():
        done = run_zero_shot(checkpoint, targets, overrides, out)
    click.echo(zero_shot_table(done.trained_on, done.reports))
    click.echo(f"table: {done.page}")
    _exit_quarantined(zero_shot_quarantined(done.reports), "they were not measured")


@main.command()
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
@click.option("--int8", type=click.Choice(["cpu", "tensorrt"]), help="Also a quantised file for this target.")
@click.option("--cache", metavar="TARGET", help="Run folder or cache to calibrate int8 on; default: the run's own.")
@click.option("--frames", type=click.IntRange(1), default=8, show_default=True, help="Test frames to compare on.")
@click.option("--pt2", is_flag=True, help="Also the program of torch.export.")
@click.option("--json", "as_json", is_flag=True, help="The table for machines.")
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
    from dataclasses import asdict

    from pipeline.export import parity_table, run_export

    with _errors():
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
        click.echo(json.dumps(asdict(done), indent=1))
    else:
        click.echo(parity_table(done.parity, done.truth))
        click.echo(
            f"export: {', '.join(done.files)}; compared on {count_text(done.frames, 'frame')} of {done.dataset}"
            f" {done.split}, timed on {count_text(done.threads, 'thread')} of the CPU"
        )
    _exit_quarantined(done.quarantined, "they were not compared")


@main.group()
def cache() -> None:
    """Look at a cache, or at what one would take.

    TARGET is a run or cache folder, an s3:// or gs:// address, or a recipe.
    """


@cache.command("size")
@recipe_options
@click.option(
    "--frames", type=click.IntRange(min=1), default=4, show_default=True, help="Frames that are really encoded."
)
def cache_size(recipe: str, data: Path | None, run: Path | None, overrides: tuple[str, ...], frames: int) -> None:
    """Predict the size of a cache before it is written, per encoding."""
    from pipeline.cache_runs import run_cache_size

    with _errors():
        parsed, folder = _open_run(recipe, data, run, overrides)
        predicted = run_cache_size(parsed, folder, frames)
    click.echo(
        f"{count_text(predicted.frame_count, 'frame')} in shards of {parsed.teacher_cache.shard_frames},", nl=False
    )
    click.echo(f" judged by {predicted.sampled_count} of them")
    click.echo(f"{'encoding':<13}{'kB/frame':>9}{'bins, relations':>17}{'total GB':>10}{'files':>9}")
    for size in predicted.sizes:
        chosen = "*" if size.encoding == parsed.bins.encoding else " "
        click.echo(
            f"{size.encoding + chosen:<13}{size.frame_bytes / 1e3:9.0f}{size.bins_bytes / 1e3:17.0f}"
            f"{size.total_bytes / 1e9:10.3f}{size.file_count:9d}"
        )
    free = f"; {predicted.free_bytes / 1e9:.1f} GB are free at {predicted.location}" if predicted.free_bytes else ""
    click.echo(f"* the recipe's (bins.encoding); closed_form is exact, smallest and leaves K and sigma open{free}")


@cache.command("status")
@click.argument("target")
@click.option("--run", type=click.Path(path_type=Path), help="Run folder of a recipe; default runs/<recipe>.")
def cache_status(target: str, run: Path | None) -> None:
    """How far a cache is; works at any moment, also while it is being written."""
    from data_cache.reader import cache_status as status_of
    from pipeline.folders import find_cache

    with _errors():
        location = find_cache(target, run)
        status = status_of(location)
    identity = status.identity
    writing = f", {status.shards_open} being written now" if status.shards_open else ""
    litter = f", {count_text(status.partial_count, 'partial file')} of killed writers" if status.partial_count else ""
    click.echo(
        f"{status.shards_done} of {identity.shard_count} shards{writing}{litter},"
        f" {count_text(identity.frame_count, 'frame')} of {identity.source}, {status.bytes / 1e6:.1f} MB,"
        f" encoding {identity.encoding}, teacher"
        f" {identity.teacher_name} ({identity.teacher_licence}), {status.resolved.precision}; {location}"
    )
    for damage in status.damages:
        click.echo(damage, err=True)
    _notes(status.notes)
    if status.damages:
        sys.exit(EXIT_FAILED)
    _exit_quarantined(status.quarantined, RETRY)


@cache.command("verify")
@click.argument("target")
@click.option(
    "--recompute",
    type=click.IntRange(min=0),
    default=0,
    metavar="N",
    help="Also ask the teacher again about N random frames.",
)
@click.option("--data", type=click.Path(path_type=Path), help="Data set folder, for --recompute.")
@click.option("--run", type=click.Path(path_type=Path), help="Run folder of a recipe; default runs/<recipe>.")
def cache_verify(target: str, recompute: int, data: Path | None, run: Path | None) -> None:
    """Check every receipt, checksum and value of a cache; one that is not finished has not passed (exit 1)."""
    from pipeline.cache_runs import run_cache_verify, run_recompute
    from pipeline.folders import find_cache

    with _errors():
        location = find_cache(target, run)
        verified = run_cache_verify(location)
    for fault in verified.faults:
        click.echo(fault, err=True)
    if verified.faults:
        sys.exit(EXIT_FAILED)
    click.echo(
        f"{'verified' if verified.complete else 'INCOMPLETE'}: {verified.shards_done} of {verified.shard_count} shards,"
        f" every file is what its receipt says; {count_text(verified.frames_checked, 'frame')}: finite, probabilities"
        " sum to one, not constant"
    )
    if not verified.complete:
        click.echo("Error: the cache is not finished; run teacher-cache again, it continues where it stopped", err=True)
        sys.exit(EXIT_FAILED)
    if recompute:
        with _errors():
            frames = run_recompute(target, location, recompute, data, run)
        for frame in frames:
            click.echo(
                f"recomputed {frame.frame_id}: probabilities differ by {frame.prob_mean:.1e} on average,"
                f" {frame.prob_max:.1e} at most, top bin changed in {100 * frame.top_bin_changed:.2f} % of pixels,"
                f" relations by {frame.relation_max:.1e} at most, inputs"
                f" {'equal' if frame.inputs_equal else 'DIFFER'}"
            )
    _exit_quarantined(verified.quarantined, RETRY)


@main.group()
def rig() -> None:
    """A vehicle of your own, as a folder of images, LiDAR and two JSON files: data_cache/RIG_FOLDER.md."""


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
    """Write the frames of any recipe (data.train, data.selection, data.test) as a rig folder that reads back equal."""
    from pipeline.config import load_recipe
    from pipeline.rig_export import run_rig_export

    with _errors():
        done = run_rig_export(load_recipe(recipe, overrides, data), out)
    click.echo(
        f"rig export: {count_text(done.frame_count, 'frame')} in {out},"
        f" {count_text(done.copied_count, 'image')} copied, {done.encoded_count} written as PNG"
    )
    _exit_quarantined(done.left_out, "they were not exported")


@main.command()
@click.argument("name", required=False)
def weights(name: str | None) -> None:
    """Fetch pinned weights, or list them."""
    from pipeline.weights import fetch_weights, known_weights_table

    with _errors():
        if name is None:
            click.echo(known_weights_table())
            return
        found = fetch_weights(name)
    click.echo(f"{name}: {found.path} ({found.route}; {found.licence}; sha256 {found.sha256})")


def _say(text: str) -> None:
    click.echo(text, err=True)


@contextmanager
def _errors(how_to_continue: str = "Run the same command to continue.") -> Iterator[None]:
    """Turn our own errors into a message and an exit code; anything else is a bug and keeps its traceback."""
    try:
        yield
    except Preempted as error:
        click.echo(f"{error}. {how_to_continue}", err=True)
        sys.exit(EXIT_PREEMPTED)
    except SurroundError as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(EXIT_USAGE if isinstance(error, (RecipeError, SourceError, SettingError)) else EXIT_FAILED)


def _open_run(
    recipe: str, data: Path | None, run: Path | None, overrides: tuple[str, ...]
) -> "tuple[Recipe, RunFolder]":
    from pipeline.config import load_recipe
    from pipeline.folders import RunFolder

    parsed = load_recipe(recipe, overrides, data)
    return parsed, RunFolder(run or Path("runs") / parsed.name)


def _part(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise click.BadParameter(f"expected I/N with 1 <= I <= N, got {text!r}", param_hint="--part")
    return int(match[1]), int(match[2])


def _batch(text: str) -> int | None:
    if text == "dynamic":
        return None
    if not re.fullmatch(r"[1-9]\d{0,3}", text):
        raise click.BadParameter(
            f"expected a number of rigs, at least 1, or dynamic, got {text!r}", param_hint="--batch"
        )
    return int(text)


def _list(title: str, entries: Mapping[str, str]) -> None:
    if entries:
        click.echo(f"{title} in {count_text(len(entries), 'frame')}:", err=True)
        for frame_id, reason in entries.items():
            click.echo(f"  {frame_id}: {reason}", err=True)


def _notes(notes: Mapping[str, str]) -> None:
    """What usable frames lack, a line for each kind: a camera that is missing everywhere is one fact, not thousands."""
    frames: dict[str, list[str]] = {}
    for frame_id, note in notes.items():
        frames.setdefault(note, []).append(frame_id)
    for note, frame_ids in frames.items():
        click.echo(f"Note: {note} in {count_text(len(frame_ids), 'frame')}, first {frame_ids[0]}", err=True)


def _exit_quarantined(quarantined: Mapping[str, str], remedy: str) -> None:
    if quarantined:
        _list(f"Quarantined ({remedy})", quarantined)
        sys.exit(EXIT_QUARANTINED)
