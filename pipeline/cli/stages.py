"""The verbs `doctor`, `fit-bins` and those of the three stages. Heavy imports wait until a verb runs."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from data_cache.files import count_text, size_text
from pipeline.cli.console import json_option, json_report, list_notes, open_run, parse_part, recipe_options, say
from pipeline.cli.exit_codes import EXIT_FAILED, exit_on_error, exit_quarantined, list_frames

if TYPE_CHECKING:
    from stages.training.plan import TrainingPlan


@click.command(short_help="Check data, weights, disk and devices before a long run.")
@recipe_options
@click.option(
    "--scheduler", default="threads", metavar="NAME", help="Also check that this scheduler of stage 1 is there."
)
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON: check, level, found, remedy.")
def doctor(
    recipe: str, data: Path | None, run: Path | None, overrides: tuple[str, ...], scheduler: str, as_json: bool
) -> None:
    """Check data, calibration, weights, disk and devices before a long run.

    Reads a few frames; takes a minute at most on a CPU. Exit code 0: no problems (but perhaps warnings); 1: problems.
    """
    from dataclasses import asdict

    from pipeline.doctor.checks import run_doctor
    from pipeline.doctor.findings import findings_text

    with exit_on_error():
        parsed, folder = open_run(recipe, data, run, overrides)
        found = run_doctor(parsed, folder, scheduler=scheduler)
    click.echo(json.dumps([asdict(finding) for finding in found], indent=1) if as_json else findings_text(found))
    if any(finding.level == "problem" for finding in found):
        sys.exit(EXIT_FAILED)


@click.command("fit-bins", short_help="Stage 0, only for fitted bins: fit them to LiDAR.")
@recipe_options
def fit_bins(recipe: str, data: Path | None, run: Path | None, overrides: tuple[str, ...]) -> None:
    """Before stage 1, only for bins.strategy = "fitted": fit the teacher's bins to the LiDAR of training frames."""
    from pipeline.runs.fit_bins import run_fit_bins

    with exit_on_error():
        parsed, folder = open_run(recipe, data, run, overrides)
        done = run_fit_bins(parsed, folder)
    fitted = done.fitted
    click.echo(
        f"fit-bins: {count_text(len(fitted.frames), 'frame')}, {count_text(fitted.images, 'image')},"
        f" {count_text(fitted.points, 'LiDAR return')}"
        f"{', already done' if done.already_done else ''}; error of log depth (RMS, after scale and shift per"
        f" image) {fitted.residual_before:.3f} before the fit, {fitted.residual_after:.3f} after it; {done.path}"
    )
    list_frames("left out", fitted.skipped)
    if parsed.bins.strategy != "fitted":
        click.echo('Note: teacher-cache uses them only with bins.strategy = "fitted"', err=True)


@click.command("teacher-cache", short_help="Stage 1: run the teacher over every frame, once.")
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
    help="Write only every N-th shard, from the I-th. With more parts than shards, the last parts do nothing (exit 0).",
)
@click.option("--retry", is_flag=True, help="Try quarantined frames again.")
@click.option("--dry-run", is_flag=True, help="With --scheduler slurm: print the batch script of a worker and stop.")
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
    """Stage 1: run the teacher over every frame, once. Shards that are done are skipped.

    Job arrays need no scheduler: each job calls this verb with its own --part.
    """
    if dry_run and scheduler != "slurm":
        raise click.BadParameter("works only with --scheduler slurm", param_hint="--dry-run")
    from pipeline.runs.teacher_cache import run_teacher_cache

    with exit_on_error():
        parsed, folder = open_run(recipe, data, run, overrides)
        if dry_run:
            from pipeline.runs.cluster import job_script

            click.echo(job_script(parsed.cluster))
            return
        done = run_teacher_cache(
            parsed, folder, scheduler=scheduler, part=parse_part(part), retry_quarantined=retry, say=say
        )
    report, status = done.report, done.status
    if not done.plan.in_part:
        click.echo(f"teacher-cache: no shards in part {part}; the cache has only {status.identity.shard_count}")
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
    list_notes(status.notes)
    if report.shards_elsewhere and not status.complete:
        click.echo(
            f"Error: {count_text(report.shards_elsewhere, 'shard')} left to another process that is writing now:"
            " workers of an earlier run may still be finishing, or the same part was started twice. Run the same"
            " command again when that process has ended",
            err=True,
        )
        sys.exit(EXIT_FAILED)
    exit_quarantined(status.quarantined, "fix the files and pass --retry")


@click.command("train-student", short_help="Stage 2: train the student.")
@recipe_options
@click.option("--resume/--fresh", default=True, show_default=True, help="Continue from the saved state, or start over.")
@click.option("--dry-run", is_flag=True, help="Time a few steps and print the plan; write nothing.")
@json_option
def train_student(
    recipe: str,
    data: Path | None,
    run: Path | None,
    overrides: tuple[str, ...],
    resume: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Stage 2: train the student from the cache and sparse LiDAR.

    On several GPUs: torchrun --standalone --nproc-per-node gpu --no-python -- surround train-student RECIPE ...
    """
    from pipeline.runs.train_student import run_plan_training, run_train_student
    from stages.compute.parallel import leads

    with exit_on_error(
        "Run the same command to continue." if resume else "Run it again, without --fresh, to continue."
    ):
        parsed, folder = open_run(recipe, data, run, overrides)
        if dry_run:
            plan = run_plan_training(parsed, folder, fresh=not resume)
            if leads():
                click.echo(json_report(plan, seconds_left=plan.seconds_left) if as_json else _plan_text(plan))
            return
        report = run_train_student(parsed, folder, fresh=not resume)
    if not leads():
        return
    if as_json:
        click.echo(json_report(report))
        return
    best = f", best selection AbsRel {report.best_abs_rel:.4f}" if report.best_abs_rel is not None else ""
    left_out = (
        f"; {count_text(report.quarantined_count, 'quarantined frame')} left out" if report.quarantined_count else ""
    )
    if not report.steps_done:
        click.echo(
            f"train-student: already finished, {count_text(report.steps_skipped, 'step')}{best}{left_out};"
            f" checkpoint in {folder.student}"
        )
        return
    waiting = f", {report.waiting_share:.1%} of the steps waiting for data" if report.waiting_share is not None else ""
    click.echo(
        f"train-student: {count_text(report.steps_done, 'step')} in {report.seconds:.0f} s"
        f" ({report.frames_per_s:.1f} frames/s{waiting}), {report.steps_skipped} already done{best}{left_out};"
        f" checkpoint in {folder.student}"
    )


def _plan_text(plan: "TrainingPlan") -> str:
    left = plan.steps - plan.steps_done
    samples = left * plan.batch_rigs
    minutes, seconds = divmod(round(plan.seconds_left), 60)
    shared = f" over {plan.process_count} processes" if plan.process_count > 1 else ""
    reader = f"at the same time in {count_text(plan.workers, 'loader worker')}" if plan.workers else "before each step"
    passes = f" in {plan.accumulate} passes" if plan.accumulate > 1 else ""
    return (
        f"frames       {plan.frames:,} to train on, {plan.quarantined:,} quarantined,"
        f" {plan.selection_frames:,} to select on\n"
        f"steps        {left:,} of {plan.steps:,} left, {count_text(plan.batch_rigs, 'frame')} each{shared}{passes}:"
        f" {samples:,} samples, {samples / plan.frames:.1f} epochs\n"
        f"student      {plan.parameters / 1e6:.2f} M parameters, {plan.precision} on {plan.device}\n"
        f"time         {minutes // 60} h {minutes % 60:02d} min {seconds:02d} s: {plan.seconds_per_step:.2f} s per"
        f" step, {plan.read_seconds_per_step:.2f} s to read its frames {reader}; without measuring and saving\n"
        f"memory       {plan.memory_bytes / 2**30:.2f} GiB per process, without loader workers\n"
        f"disk         {size_text(plan.disk_bytes)} for checkpoints"
    )


@click.command(short_help="After stage 2: make the student's sigma right.")
@recipe_options
@click.option("--checkpoint", type=click.Path(path_type=Path), help="Student to calibrate; default: the run's own.")
def calibrate(
    recipe: str, data: Path | None, run: Path | None, overrides: tuple[str, ...], checkpoint: Path | None
) -> None:
    """Make the student say how sure it is: one number, found at LiDAR returns of data.selection.

    The number is written into the checkpoint itself. With it, 68 % of the errors of log depth lie inside one sigma.
    Weights stay what they are, and so does depth, up to rounding; the file's sha256 changes, so calibrate before eval.
    """
    from pipeline.runs.evaluate import run_calibrate

    with exit_on_error():
        parsed, folder = open_run(recipe, data, run, overrides)
        done = run_calibrate(parsed, folder, checkpoint=checkpoint)
    returns = count_text(done.pixels, "LiDAR return")
    click.echo(
        f"calibrate: sigma is {done.sigma_scale:.3f} times the spread of the bins; {returns} of {done.dataset}"
        f" {done.split}"
    )


@click.command("eval", short_help="Stage 3: measure the student and write the report.")
@recipe_options
@click.option("--checkpoint", type=click.Path(path_type=Path), help="Student to measure; default: the run's own.")
@click.option("--predictions", type=click.Path(path_type=Path), help="Measure the depth maps of this folder instead.")
@click.option(
    "--protocol", help="surrounddepth, vfdepth or fsm; with --predictions also zero-shot; default: eval.protocol."
)
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

    The folder of --predictions holds CAMERA/FRAME.png (16 bit, metres x 256, 0 = none) or .npy (metres), as
    eval.save_predictions = "png16" or "npy" writes them to RUN/eval/predictions. No student or teacher is loaded then.
    """
    if checkpoint is not None and predictions is not None:
        raise click.BadParameter("cannot be combined with --checkpoint", param_hint="--predictions")
    from pipeline.report.one_run import report_table
    from pipeline.runs.evaluate import run_evaluate

    with exit_on_error():
        if protocol is not None:
            overrides = (*overrides, f'eval.protocol="{protocol}"')
        parsed, folder = open_run(recipe, data, run, overrides)
        done = run_evaluate(parsed, folder, checkpoint=checkpoint, predictions=predictions)
    click.echo(report_table(done.report))
    click.echo(f"report: {done.html}")
    exit_quarantined(done.report.quarantined, "they were not measured")
