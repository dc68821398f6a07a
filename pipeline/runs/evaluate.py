"""Runs stage three of a recipe: measures the student of a run folder and writes its report."""

import hashlib
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from data_cache.errors import FrameError
from data_cache.files import file_sha256, write_atomically
from data_cache.frames.images import larger
from data_cache.sources.base import Source
from data_cache.sources.selectors import shown
from pipeline.api import SurroundStudent
from pipeline.errors import RecipeError
from pipeline.recipe.config import Recipe, load_recipe, recipe_toml
from pipeline.recipe.provenance import surroundings
from pipeline.recipe.run_folder import RunFolder, cache_location
from pipeline.report.one_run import write_report
from pipeline.runs.splits import frames_to_test, learnt_from, open_data, refuse_leak, select_frames
from pipeline.runs.stage_one import open_teacher, with_begun_runtime
from stages.compute.devices import place, resolve_device, resolve_precision
from stages.compute.preemption import preemption
from stages.evaluate import evaluate
from stages.evaluation.predictions import open_predictions
from stages.evaluation.protocols import PROTOCOLS, ZERO_SHOT, measured_frames
from stages.evaluation.results import EvaluateReport, Evaluation, against_lidar
from stages.inference.point_cloud import PointCloud, frame_cloud
from stages.student.checkpoint import Calibration, LoadedStudent, load_student, save_calibration
from stages.student.fold import folded


@dataclass(frozen=True)
class EvaluateRun:
    """The report of stage three, and the page that shows it."""

    report: EvaluateReport
    html: Path


def run_evaluate(
    recipe: Recipe, folder: RunFolder, *, checkpoint: Path | None = None, predictions: Path | None = None
) -> EvaluateRun:
    """Stage three: measure the student on the test split and write RUN/eval.

    Args:
        recipe, folder: of the run.
        checkpoint: of a student to measure instead of the run's own.
        predictions: a folder of depth maps to measure instead of a student; neither student nor teacher is loaded
            then.
    """
    if predictions is not None:
        if recipe.eval.flip:
            raise RecipeError("eval.flip: depth maps of a folder cannot be averaged with flipped ones; set it to false")
        return _evaluate_predictions(recipe, folder, predictions)
    if recipe.eval.protocol == ZERO_SHOT.name:
        raise RecipeError(f"protocol: {ZERO_SHOT.name} is for other data sets; see `surround zero-shot --help`")
    checkpoint = checkpoint or own_checkpoint(recipe, folder)
    loaded = load_student(checkpoint, expected=recipe.student, expected_bins=recipe.bins)
    source = open_data(recipe.data)
    frame_ids = frames_to_test(recipe, source)
    refuse_leak(learnt_from(recipe, folder, source), frame_ids)
    _keep_eval_recipe(recipe, folder)
    device = resolve_device(recipe.eval.device)
    precision = resolve_precision(recipe.eval.precision, device)
    student = folded(loaded.student)
    place(student, device)
    in_its_runtime = with_begun_runtime(recipe, cache_location(recipe, folder))
    teacher = open_teacher(in_its_runtime) if recipe.eval.teacher else None
    with preemption() as should_stop:
        evaluation = evaluate(
            source,
            frame_ids,
            recipe.data.named(recipe.data.test),
            student,
            teacher,
            recipe.eval,
            device=device,
            precision=precision,
            decode_size=larger(recipe.teacher_cache.input_size, recipe.student.input_size),
            save_to=folder.predictions,
            calibration=loaded.calibration,
            should_stop=should_stop,
        )
    seen_by = SurroundStudent(student, loaded.lineage, device, precision, loaded.calibration)
    html = write_report(
        folder.eval,
        evaluation,
        _recipe_provenance(recipe) | student_provenance(loaded, checkpoint) | _calibration_provenance(loaded),
        _cloud(source, evaluation, seen_by),
    )
    return EvaluateRun(evaluation.report, html)


def run_calibrate(recipe: Recipe, folder: RunFolder, *, checkpoint: Path | None = None) -> Calibration:
    """Calibrate a student's sigma on the selection split, at LiDAR returns, and keep the number in its checkpoint.

    Args:
        recipe, folder: of the run.
        checkpoint: of a student to calibrate instead of the run's own.

    Raises:
        RecipeError: if the recipe has no selection split.
        EvaluationError: if no selection frame has a LiDAR point in range.
        CheckpointError: if there is no usable student, or its file cannot be written.
        Preempted: if a signal asks to stop; the checkpoint stays as it was.
    """
    if not recipe.data.selection:
        raise RecipeError(
            "data.selection: expected frames to calibrate on, found none; name drives that are neither trained nor"
            " tested on, such as --set 'data.selection=[\"DRIVE\"]'"
        )
    checkpoint = checkpoint or own_checkpoint(recipe, folder)
    loaded = load_student(checkpoint, expected=recipe.student, expected_bins=recipe.bins)
    source = open_data(recipe.data)
    split = recipe.data.named(recipe.data.selection)
    selected = select_frames(recipe.data, source, recipe.data.selection)
    device = resolve_device(recipe.eval.device)
    student = folded(loaded.student)
    place(student, device)
    with preemption() as should_stop:
        report = evaluate(
            source,
            measured_frames(PROTOCOLS[recipe.eval.protocol], source, selected),
            split,
            student,
            None,
            replace(recipe.eval, latency=False, pictures=0, save_predictions=""),
            device=device,
            precision=resolve_precision(recipe.eval.precision, device),
            decode_size=larger(recipe.teacher_cache.input_size, recipe.student.input_size),
            calibration=Calibration(1.0, source.name, split, 0),
            should_stop=should_stop,
        ).report
    against_lidar(report)
    sure = report.uncertainty
    assert sure is not None  # a calibration was given
    assert sure.lidar is not None  # there is LiDAR
    found = sure.lidar.all
    calibration = Calibration(found.scale_68, source.name, split, found.pixels)
    save_calibration(checkpoint, calibration)
    return calibration


def _calibration_provenance(loaded: LoadedStudent) -> dict[str, object]:
    if loaded.calibration is None:
        return {"calibration": "none: `surround calibrate` lets the report say how sure the student is"}
    return {"calibration": asdict(loaded.calibration)}


def _cloud(source: Source, evaluation: Evaluation, student: SurroundStudent) -> tuple[str, PointCloud] | None:
    """Points of the first frame that the report shows; None if the cameras' places on the vehicle are unknown."""
    if not evaluation.pictures:
        return None
    frame = source.frame(evaluation.pictures[0].frame_id)
    with suppress(FrameError):
        range_m, stride = student.lineage.depth_range_m, student.network.bins.prob_stride
        return frame.id, frame_cloud(frame, student.look(frame), range_m, stride)
    return None


def _evaluate_predictions(recipe: Recipe, folder: RunFolder, predictions: Path) -> EvaluateRun:
    source = open_data(recipe.data)
    frame_ids = frames_to_test(recipe, source)
    opened = open_predictions(predictions, source, frame_ids, recipe.student.input_size)
    _keep_eval_recipe(recipe, folder)
    with preemption() as should_stop:
        evaluation = evaluate(
            source,
            frame_ids,
            recipe.data.named(recipe.data.test),
            opened,
            None,
            recipe.eval,
            device=torch.device("cpu"),
            precision="fp32",
            decode_size=recipe.student.input_size,
            should_stop=should_stop,
        )
    provenance = _recipe_provenance(recipe) | {"predictions": str(predictions), **surroundings()}
    return EvaluateRun(evaluation.report, write_report(folder.eval, evaluation, provenance))


def _keep_eval_recipe(recipe: Recipe, folder: RunFolder) -> None:
    # The recipe of this measurement; written first, so that a read-only folder fails before hours are spent.
    write_atomically(folder.eval / "recipe.toml", recipe_toml(recipe))


def own_checkpoint(recipe: Recipe, folder: RunFolder) -> Path:
    """The checkpoint to use of a run: the best on the selection split, if the recipe names one, else the last."""
    best = recipe.data.selection and recipe.train_student.keep_best
    return folder.student / ("best.safetensors" if best else "last.safetensors")


def _recipe_provenance(recipe: Recipe) -> dict[str, object]:
    return {"recipe": recipe.name, "recipe_sha256": hashlib.sha256(recipe_toml(recipe).encode()).hexdigest()}


def student_provenance(loaded: LoadedStudent, checkpoint: Path) -> dict[str, object]:
    """Provenance of a student's numbers: the student, this program, this machine, this moment.

    `lidar_drives` are the selectors of the training frames whose LiDAR taught it, as its own run's recipe says; left
    out if that is all of them, or if the run is not here.
    """
    lineage = loaded.lineage
    return {
        "cache_id": lineage.cache_id,
        "checkpoint": checkpoint.name,
        "checkpoint_sha256": file_sha256(checkpoint),
        "steps": lineage.steps,
        "teacher": lineage.teacher,
        "teacher_licence": lineage.teacher_licence,
        **_lidar_drives(RunFolder.of_checkpoint(checkpoint)),
        **surroundings(),
    }


def _lidar_drives(run: RunFolder) -> dict[str, object]:
    drives: tuple[str, ...] = ()
    with suppress(RecipeError):
        drives = load_recipe(str(run.recipe)).data.lidar_drives
    return {"lidar_drives": [shown(selector) for selector in drives]} if drives else {}
