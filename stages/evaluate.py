"""Stage three: evaluate the student under a protocol of the field, and keep the maps that the report draws."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float

from data_cache.errors import FrameError
from data_cache.frames.views import RigViews
from data_cache.sources.base import Source
from stages.compute.preemption import Preempted
from stages.compute.progress import progress_bar
from stages.compute.resize import resized
from stages.evaluation import metrics
from stages.evaluation.consistency import Overlap, ring_consistency, ring_overlaps
from stages.evaluation.latency import rig_latency
from stages.evaluation.predictions import (
    SUFFIXES,
    PredictionError,
    PredictionFolder,
    prediction_file,
    save_prediction,
)
from stages.evaluation.protocol_scores import ImagePixels, ProtocolScores
from stages.evaluation.protocols import PROTOCOLS
from stages.evaluation.ranking import FrameErrors, place, ranking, shown_frames
from stages.evaluation.regions import Regions, regions, truth_at
from stages.evaluation.results import EvaluateReport, Evaluation, EvaluationError, FramePictures
from stages.evaluation.scores import BAND_EDGES_M, ScoreTable
from stages.evaluation.seen_frame import SeenFrame, Setting, see_frame
from stages.evaluation.spec import EvaluateSpec
from stages.student.checkpoint import Calibration
from stages.student.model import Student
from stages.teacher.base import Teacher
from stages.uncertainty.coverage import SurenessTable, Uncertainty

Pixels = Float[np.ndarray, " N"]


def evaluate(
    source: Source,
    frame_ids: Sequence[str],
    split: str,
    student: Student | PredictionFolder,
    teacher: Teacher | None,
    spec: EvaluateSpec,
    *,
    device: torch.device,
    precision: str,
    decode_size: tuple[int, int] | None = None,
    save_to: Path | None = None,
    calibration: Calibration | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Evaluation:
    """Evaluate `student` (and `teacher`) on the frames of a split under a protocol (stages/evaluation/protocols.py).

    Unreadable frames are left out and listed. With stage one's `decode_size` images are decoded as in stage one.
    Predictions are saved below `save_to` if `spec` names a format. With a `calibration` the student also says how
    sure it is, and that is measured, too. A folder of predictions is evaluated in place of a student, without latency.

    Raises:
        EvaluationError: if no frame can be read. If no LiDAR point is in range, the report has no scores against LiDAR.
        PredictionError: if a prediction cannot be read, or has no depth at a pixel to be measured.
        Preempted: if `should_stop` returns True between two frames.
    """
    protocol = PROTOCOLS[spec.protocol]
    setting = Setting(
        source,
        student,
        teacher,
        protocol,
        protocol.range_of(source.name),
        student.size if isinstance(student, PredictionFolder) else student.spec.input_size,
        spec.flip,
        device,
        precision,
        decode_size,
        calibration.sigma_scale if calibration is not None else None,
    )
    range_m = setting.range_m
    sure, sure_dense = SurenessTable(BAND_EDGES_M), defaultdict[str, SurenessTable](lambda: SurenessTable(BAND_EDGES_M))
    table, alike, aligned = ProtocolScores(protocol, range_m), ScoreTable(range_m), ScoreTable(range_m)
    dense = {region.name: ScoreTable(range_m) for region in fields(Regions)}
    overlaps: dict[str, list[Overlap]] = defaultdict(list)
    quarantined: dict[str, str] = {}
    errors: dict[str, FrameErrors] = {}
    drawn: dict[str, FramePictures] = {}
    middle = frame_ids[len(frame_ids) // 2] if frame_ids else ""
    teacher_ms: list[float] = []
    rig: RigViews | None = None
    with progress_bar(len(frame_ids), 0, "eval", "frame") as bar:
        for frame_id in frame_ids:
            if should_stop():
                raise Preempted("stopped during eval; nothing was written")
            try:
                seen = see_frame(setting, frame_id)
            except FrameError as error:
                quarantined[frame_id] = str(error)
                bar.update()
                continue
            rig = seen.rig
            teacher_ms += [seen.teacher_ms] if seen.teacher_ms is not None else []
            for pixels in seen.measured.values():
                _require_depth(frame_id, pixels)
            if save_to is not None and spec.save_predictions and not isinstance(student, PredictionFolder):
                _save(save_to, seen, SUFFIXES[spec.save_predictions])
            table.add(list(seen.measured.values()))
            for camera, fitted_m, student_m in _compared(seen, range_m):
                alike.add(camera, [fitted_m], [student_m])
            for pixels in seen.measured.values():
                if pixels.sigma is not None:
                    sure.add(pixels.camera, pixels.predicted_m.clip(*range_m), pixels.truth_m, pixels.sigma)
            _add_dense(dense, aligned, sure_dense, seen, range_m)
            for name, overlap in ring_overlaps(seen.frame, rig, seen.student_m).items():
                overlaps[name].append(overlap)
            errors[frame_id] = _frame_errors(seen, range_m)
            # A frame that ends up among the worst or the best is already among them now.
            shown = shown_frames(errors, spec.pictures, middle)
            if frame_id in shown:
                drawn[frame_id] = _pictures(seen, setting)
            drawn = {frame_id: pictures for frame_id, pictures in drawn.items() if frame_id in shown}
            bar.update()
    if rig is None:
        first = next(iter(quarantined.values()), "there are none")
        raise EvaluationError(f"nothing to measure in {len(frame_ids)} frames of {source.name} {split}: {first}")
    scores = table.student()
    report = EvaluateReport(
        dataset=source.name,
        split=split,
        protocol=protocol.name,
        flip=spec.flip,
        range_m=range_m,
        frames=len(frame_ids) - len(quarantined),
        images=scores.metric.mean.images if scores is not None else 0,
        valid_pixels=scores.metric.mean.pixels if scores is not None else 0,
        student=scores,
        teacher=table.teacher(),
        consistency=ring_consistency(overlaps),
        latency=rig_latency(
            student,
            rig,
            device,
            precision,
            teacher,
            teacher_ms,
        )
        if spec.latency and not isinstance(student, PredictionFolder)
        else None,
        quarantined=quarantined,
        dense_truth={name: regional.scores() for name, regional in dense.items() if regional.images} or None,
        masked_images=table.masked_images,
        disagreement=alike.scores() if alike.images else None,
        dense_affine_invariant=aligned.scores() if aligned.images else None,
        uncertainty=_uncertainty(calibration, sure, sure_dense) if calibration is not None else None,
    )
    ranked = ranking(errors)
    pictures = []
    for frame_id in shown_frames(errors, spec.pictures, middle):
        if frame_id not in drawn:  # the median, for one, may not have been the median when it was measured
            with suppress(FrameError):
                drawn[frame_id] = _pictures(see_frame(setting, frame_id), setting)
        if frame_id in drawn:
            pictures.append(replace(drawn[frame_id], rank=place(ranked, frame_id), ranked=len(ranked)))
    return Evaluation(report, tuple(pictures))


def _require_depth(frame_id: str, pixels: ImagePixels) -> None:
    holes = int((pixels.predicted_m <= 0).sum())
    if holes:
        raise PredictionError(
            f"prediction of {pixels.camera} in frame {frame_id}: no depth at {holes} of {len(pixels.truth_m)} measured"
            " pixels; a protocol needs depth at all of them: fill the holes"
        )


def _save(folder: Path, seen: SeenFrame, suffix: str) -> None:
    for view, depth_m in zip(seen.frame.views, seen.predicted_m, strict=True):
        if view is not None and depth_m is not None:
            save_prediction(prediction_file(folder, view.camera.name, seen.frame.id, suffix), depth_m)


def _compared(seen: SeenFrame, range_m: tuple[float, float]) -> Iterator[tuple[str, Pixels, Pixels]]:
    """For each camera its name, the fitted teacher's depth and the student's depth, at every pixel with depth."""
    for i, fitted_m in seen.on_student_m.items():
        view, there = seen.frame.views[i], seen.student_m[i] > 0
        if view is not None and there.any():
            yield view.camera.name, fitted_m[there], seen.student_m[i][there].clip(*range_m)


def _frame_errors(seen: SeenFrame, range_m: tuple[float, float]) -> FrameErrors:
    errors = [
        metrics.abs_rel(predicted_m=pixels.predicted_m.clip(*range_m), truth_m=pixels.truth_m)
        for pixels in seen.measured.values()
    ]
    unlike = [
        metrics.abs_rel(predicted_m=fitted_m, truth_m=student_m) for _, fitted_m, student_m in _compared(seen, range_m)
    ]
    return FrameErrors(float(np.mean(errors)) if errors else None, float(np.mean(unlike)) if unlike else None)


def _pictures(seen: SeenFrame, setting: Setting) -> FramePictures:
    on_lidar = [i for i, pixels in seen.measured.items() if pixels.disparity is not None]
    teacher_m = None
    if setting.teacher is not None:
        teacher_m = np.zeros_like(seen.student_m)
        for i, fitted_m in seen.on_student_m.items():
            teacher_m[i] = fitted_m
        for i in on_lidar:
            teacher_m[i] = _on_lidar(seen.measured[i], seen.disparity[i], setting.network_size, setting.range_m)
    return FramePictures(
        seen.frame.id,
        setting.source.rig.camera_names,
        tuple(bool(there) for there in seen.rig.view_valid),
        seen.rig.image,
        seen.rig.lidar_depth_m,
        teacher_m,
        seen.student_m,
        tuple(i in on_lidar for i in range(len(seen.student_m))),
        _frame_errors(seen, setting.range_m),
        sigma=seen.sigma,
    )


def _on_lidar(
    pixels: ImagePixels, disparity: Float[np.ndarray, "_ _"], size: tuple[int, int], range_m: tuple[float, float]
) -> Float[np.ndarray, "H W"]:
    """The teacher's depth of an image after its fit to LiDAR."""
    assert pixels.disparity is not None
    fit = metrics.fit_affine_disparity(disparity=pixels.disparity, truth_m=pixels.truth_m)
    return metrics.affine_depth_m(resized(disparity, size), fit, range_m)


def _add_dense(
    tables: Mapping[str, ScoreTable],
    aligned: ScoreTable,
    sure: Mapping[str, SurenessTable],
    seen: SeenFrame,
    range_m: tuple[float, float],
) -> None:
    """Measure a frame against dense truth, by region and after a fit to all of it, if its source has dense truth."""
    if seen.frame.load_truth_m is None:
        return
    for i, view in enumerate(seen.frame.views):
        if view is None:
            continue
        student_m = seen.student_m[i]
        truth_m = truth_at(seen.frame.load_truth_m[i](), (student_m.shape[0], student_m.shape[1]))
        found = regions(truth_m, seen.rig, i, seen.sweep, range_m)
        if found.all.any():
            there_m = truth_m[found.all]
            disparity = 1 / student_m[found.all].clip(*range_m)
            fitted_m = metrics.aligned_m(disparity=disparity, truth_m=there_m, range_m=range_m)
            aligned.add(view.camera.name, [fitted_m], [there_m])
        for name, mask in vars(found).items():
            if mask.any():
                predicted_m = student_m[mask].clip(*range_m)
                tables[name].add(view.camera.name, [predicted_m], [truth_m[mask]])
                if seen.sigma is not None:
                    sure[name].add(view.camera.name, predicted_m, truth_m[mask], seen.sigma[i][mask])


def _uncertainty(
    calibration: Calibration, lidar: SurenessTable, dense: Mapping[str, SurenessTable]
) -> Uncertainty | None:
    """What was measured about sigma; None if nothing was."""
    regions = {name: scores for name, table in dense.items() if (scores := table.scores()) is not None}
    at_lidar = lidar.scores()
    return Uncertainty(calibration, at_lidar, regions or None) if at_lidar is not None or regions else None
