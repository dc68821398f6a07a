"""Stage three: measure the student the way the field measures, and keep what a picture of it needs."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8

from data_cache.errors import FrameError, SurroundError
from data_cache.rig import Frame, Sweep
from data_cache.sources import Source
from data_cache.views import RigViews, load_images, rig_views
from stages import metrics
from stages.consistency import Overlap, pooled_overlap, ring_overlaps
from stages.devices import require_known
from stages.latency import Latency, rig_latency
from stages.measure import ImagePixels, ProtocolScores, StudentScores, TeacherScores, depth_at, image_pixels, resized
from stages.predict import predict_rig
from stages.predictions import SUFFIXES, PredictionError, PredictionFolder, prediction_file, read_rig, save_prediction
from stages.progress import Preempted, progress_bar
from stages.protocols import PROTOCOLS, SURROUNDDEPTH
from stages.regions import Regions, regions, truth_at
from stages.resize import resize_rgb, resize_views
from stages.scores import Scores, ScoreTable
from stages.student.model import Student
from stages.teacher.base import Teacher, to_disparity


class EvaluationError(SurroundError):
    """Nothing can be measured."""


@dataclass(frozen=True, kw_only=True)
class EvaluateSpec:
    """How stage three runs.

    Attributes:
        protocol: a name of PROTOCOLS.
        teacher: also measure the teacher, which needs its weights.
        latency: also time student and teacher.
        flip: average each prediction with that of the mirrored rig (test-time augmentation); recorded in the report.
            Of a folder of predictions: they were made so.
        pictures: frames drawn in the report, spread evenly over the split.
        save_predictions: png16 or npy, to keep what the student says of every image; empty to keep nothing.
        precision, device: auto, or as named in stages/devices.py.
    """

    protocol: str = SURROUNDDEPTH.name
    teacher: bool = True
    latency: bool = True
    flip: bool = False
    pictures: int = 4
    save_predictions: str = ""
    precision: str = "auto"
    device: str = "auto"

    def __post_init__(self) -> None:
        require_known(self.device, self.precision)
        if self.protocol not in PROTOCOLS:
            raise ValueError(f"protocol: expected one of {', '.join(PROTOCOLS)}, got {self.protocol!r}")
        if self.save_predictions not in ("", *SUFFIXES):
            raise ValueError(
                f"save_predictions: expected {', '.join(SUFFIXES)} or nothing, got {self.save_predictions!r}"
            )
        if self.pictures < 0:
            raise ValueError(f"pictures: expected 0 or more, got {self.pictures}")


@dataclass(frozen=True)
class Consistency:
    """Agreement of adjacent cameras: the mean of the pairs, and each pair."""

    overlap_abs_rel: float | None
    pairs: dict[str, float]


@dataclass(frozen=True, eq=False)
class FramePictures:
    """What the report draws of one frame, at the student's input size; metres, 0 or all False = nothing there."""

    frame_id: str
    camera_names: tuple[str, ...]
    view_valid: tuple[bool, ...]
    image: UInt8[np.ndarray, "V H W 3"]
    lidar_depth_m: Float[np.ndarray, "V H W"]
    teacher_depth_m: Float[np.ndarray, "V H W"] | None
    student_depth_m: Float[np.ndarray, "V H W"]
    student_abs_rel: float | None


@dataclass(frozen=True)
class EvaluateReport:
    """The measured part of report.json.

    `masked_images` is how many were measured under a self-occlusion mask. `dense_truth` has the student's metric depth
    against dense truth at its input size, by region (stages/regions.py); None for sources that know no dense truth.
    """

    dataset: str
    split: str
    protocol: str
    flip: bool
    range_m: tuple[float, float]
    frames: int
    images: int
    valid_pixels: int
    student: StudentScores
    teacher: TeacherScores | None
    consistency: Consistency
    latency: Latency | None
    quarantined: dict[str, str]
    dense_truth: dict[str, Scores] | None = None
    masked_images: int = 0


@dataclass(frozen=True, eq=False)
class Evaluation:
    """The report and its pictures."""

    report: EvaluateReport
    pictures: tuple[FramePictures, ...] = field(default=())


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
    should_stop: Callable[[], bool] = lambda: False,
) -> Evaluation:
    """Measure `student` (and `teacher`) on the frames of a split, as a protocol says (stages/protocols.py).

    Unreadable frames are left out and listed. Images are decoded as stage one decoded them where `decode_size` is what
    was enough for it. What a student says goes into files below `save_to`, if `spec` names their format; a folder of
    predictions is measured in place of a student and has no latency.

    Raises:
        EvaluationError: if no image has a LiDAR point in range.
        PredictionError: if a prediction cannot be read, or says nothing about a pixel that is to be measured.
        Preempted: if `should_stop` says so between two frames.
    """
    protocol = PROTOCOLS[spec.protocol]
    range_m = protocol.range_of(source.name)
    network_size = student.size if isinstance(student, PredictionFolder) else student.spec.input_size
    table = ProtocolScores(protocol, range_m)
    dense = {region.name: ScoreTable(range_m) for region in fields(Regions)}
    overlaps: dict[str, list[Overlap]] = defaultdict(list)
    quarantined: dict[str, str] = {}
    pictures = []
    drawn = {round(i) for i in np.linspace(0, len(frame_ids) - 1, min(spec.pictures, len(frame_ids)))}
    rig: RigViews | None = None
    with progress_bar(len(frame_ids), 0, "eval", "frame") as bar:
        for index, frame_id in enumerate(frame_ids):
            if should_stop():
                raise Preempted("stopped during eval; nothing was written, run it again")
            try:
                frame = source.frame(frame_id)
                images = load_images(frame, decode_size)
                sweep = frame.load_sweep() if frame.load_sweep is not None else None
                rig = rig_views(frame, resize_views(images, network_size), sweep, network_size)
                predicted_m = _predictions(student, frame, rig, device, precision, flip=spec.flip)
                disparity = _teacher_disparity(teacher, images) if teacher is not None else {}
                measured: dict[int, ImagePixels] = {}
                for i, view in enumerate(frame.views):
                    depth_m = predicted_m[i]
                    if view is None or sweep is None or depth_m is None:
                        continue
                    pixels = image_pixels(view, sweep, depth_m, disparity.get(i), protocol, range_m, network_size)
                    if pixels is not None:
                        measured[i] = pixels
            except FrameError as error:
                quarantined[frame_id] = str(error)
                bar.update()
                continue
            for pixels in measured.values():
                _require_depth(frame_id, pixels)
            if save_to is not None and spec.save_predictions and not isinstance(student, PredictionFolder):
                _save(save_to, frame, predicted_m, SUFFIXES[spec.save_predictions])
            table.add(list(measured.values()))
            stacked_m = np.stack(
                [
                    depth_at(d, network_size) if d is not None else np.zeros(network_size, np.float32)
                    for d in predicted_m
                ]
            )
            _add_dense(dense, frame, rig, sweep, stacked_m, range_m)
            for name, overlap in ring_overlaps(frame, rig, stacked_m).items():
                overlaps[name].append(overlap)
            if index in drawn:
                pictures.append(
                    FramePictures(
                        frame_id,
                        source.rig.camera_names,
                        tuple(bool(there) for there in rig.view_valid),
                        rig.image,
                        rig.lidar_depth_m,
                        _aligned(disparity, measured, stacked_m, range_m) if teacher is not None else None,
                        stacked_m,
                        _mean_abs_rel(measured.values(), range_m),
                    )
                )
            bar.update()
    scores = table.student()
    if rig is None or scores is None:
        first = next(iter(quarantined.values()), "its frames have no LiDAR point in range")
        raise EvaluationError(f"nothing to measure in {len(frame_ids)} frames of {source.name} {split}: {first}")
    pairs = {name: pooled_overlap(entries).abs_rel for name, entries in overlaps.items()}
    report = EvaluateReport(
        dataset=source.name,
        split=split,
        protocol=protocol.name,
        flip=spec.flip,
        range_m=range_m,
        frames=len(frame_ids) - len(quarantined),
        images=scores.metric.mean.images,
        valid_pixels=scores.metric.mean.pixels,
        student=scores,
        teacher=table.teacher(),
        consistency=Consistency(float(np.mean(list(pairs.values()))) if pairs else None, pairs),
        latency=rig_latency(student, rig, teacher, device, precision)
        if spec.latency and not isinstance(student, PredictionFolder)
        else None,
        quarantined=quarantined,
        dense_truth={name: regional.scores() for name, regional in dense.items() if regional.images} or None,
        masked_images=table.masked_images,
    )
    return Evaluation(report, tuple(pictures))


def _predictions(
    student: Student | PredictionFolder,
    frame: Frame,
    rig: RigViews,
    device: torch.device,
    precision: str,
    *,
    flip: bool,
) -> tuple[Float[np.ndarray, "_ _"] | None, ...]:
    """Depth of every view in metres, None where a camera is missing."""
    if isinstance(student, PredictionFolder):
        return read_rig(student, frame)
    depth_m = predict_rig(student, rig, device, precision, flip=flip)
    if not np.isfinite(depth_m).all():
        raise EvaluationError(f"the student's depth of frame {frame.id} is not finite; train it again")
    return tuple(depth_m[i] if there else None for i, there in enumerate(rig.view_valid))


def _require_depth(frame_id: str, pixels: ImagePixels) -> None:
    holes = int((pixels.predicted_m <= 0).sum())
    if holes:
        raise PredictionError(
            f"prediction of {pixels.camera} in frame {frame_id}: no depth at {holes} of {len(pixels.truth_m)} measured"
            " pixels; a protocol measures all of them: fill the holes"
        )


def _save(folder: Path, frame: Frame, predicted_m: Sequence[Float[np.ndarray, "_ _"] | None], suffix: str) -> None:
    for view, depth_m in zip(frame.views, predicted_m, strict=True):
        if view is not None and depth_m is not None:
            save_prediction(prediction_file(folder, view.camera.name, frame.id, suffix), depth_m)


def _mean_abs_rel(images: Iterable[ImagePixels], range_m: tuple[float, float]) -> float | None:
    """AbsRel of a frame: mean of its images."""
    errors = [metrics.abs_rel(predicted_m=i.predicted_m.clip(*range_m), truth_m=i.truth_m) for i in images]
    return float(np.mean(errors)) if errors else None


def _aligned(
    disparity: Mapping[int, Float[np.ndarray, "_ _"]],
    measured: Mapping[int, ImagePixels],
    like: Float[np.ndarray, "V H W"],
    range_m: tuple[float, float],
) -> Float[np.ndarray, "V H W"]:
    """The teacher's depth after the fit of each image, 0 where there was nothing to fit to."""
    aligned_m = np.zeros_like(like)
    for i, pixels in measured.items():
        if pixels.disparity is not None:
            fit = metrics.fit_affine_disparity(disparity=pixels.disparity, truth_m=pixels.truth_m)
            aligned_m[i] = metrics.affine_depth_m(resized(disparity[i], like.shape[1:]), fit, range_m)
    return aligned_m


def _add_dense(
    tables: Mapping[str, ScoreTable],
    frame: Frame,
    rig: RigViews,
    sweep: Sweep | None,
    student_m: Float[np.ndarray, "V H W"],
    range_m: tuple[float, float],
) -> None:
    """Measure a frame against dense truth, region by region, where its source knows it."""
    if frame.load_truth_m is None:
        return
    for i, view in enumerate(frame.views):
        if view is None:
            continue
        truth_m = truth_at(frame.load_truth_m[i](), (student_m.shape[1], student_m.shape[2]))
        for name, mask in vars(regions(truth_m, rig, i, sweep, range_m)).items():
            if mask.any():
                tables[name].add(view.camera.name, [student_m[i][mask].clip(*range_m)], [truth_m[mask]])


def _teacher_disparity(
    teacher: Teacher, images: Sequence[UInt8[np.ndarray, "H W 3"] | None]
) -> dict[int, Float[np.ndarray, "h w"]]:
    there = {i: rgb for i, rgb in enumerate(images) if rgb is not None}
    if not there:
        return {}
    stacked = torch.from_numpy(np.stack([resize_rgb(rgb, teacher.input_size) for rgb in there.values()]))
    disparity = to_disparity(teacher(stacked).prediction, teacher.space).cpu().numpy()
    return dict(zip(there, disparity, strict=True))
