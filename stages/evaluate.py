"""Stage three: measure the student the way the field measures, and keep what a picture of it needs."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch.nn.functional import interpolate

from data_cache.errors import FrameError, SurroundError
from data_cache.geometry import sparse_depth
from data_cache.rig import Frame, Sweep
from data_cache.sources import Source
from data_cache.views import RigViews, load_images, rig_views
from stages import metrics
from stages.consistency import Overlap, overlap_consistency
from stages.devices import require_known
from stages.latency import measure
from stages.predict import forward_rig, predict_rig
from stages.progress import Preempted, progress_bar
from stages.regions import Regions, regions, truth_at
from stages.resize import resize_rgb, resize_views
from stages.scores import Scores, ScoreTable
from stages.student.model import Student
from stages.teacher.base import Teacher, to_disparity

ZERO_SHOT = "zero-shot"
PROTOCOLS = ("surrounddepth", ZERO_SHOT)
"""zero-shot measures as surrounddepth does, frames of a data set that the student has not learnt from."""
RANGE_M = {"ddad": (0.1, 200.0)}
DEFAULT_RANGE_M = (0.1, 80.0)
FULL_SPLITS = {("ddad", "val"): (50, 3950), ("nuscenes", "val"): (150, 6019)}
"""Drives and frames of official splits: all samples of DDAD val, all keyframes of nuScenes val."""


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
        pictures: frames drawn in the report, spread evenly over the split.
        precision, device: auto, or as named in stages/devices.py.
    """

    protocol: str = "surrounddepth"
    teacher: bool = True
    latency: bool = True
    flip: bool = False
    pictures: int = 4
    precision: str = "auto"
    device: str = "auto"

    def __post_init__(self) -> None:
        require_known(self.device, self.precision)
        if self.protocol not in PROTOCOLS:
            raise ValueError(f"protocol: expected one of {', '.join(PROTOCOLS)}, got {self.protocol!r}")
        if self.pictures < 0:
            raise ValueError(f"pictures: expected 0 or more, got {self.pictures}")


@dataclass(frozen=True)
class StudentScores:
    """The student under each alignment."""

    metric: Scores
    median_scaled: Scores
    affine_invariant: Scores


@dataclass(frozen=True)
class TeacherScores:
    """The teacher, which knows no metres, after a least-squares fit per image in disparity."""

    affine_invariant: Scores


@dataclass(frozen=True)
class Consistency:
    """Agreement of adjacent cameras: the mean of the pairs, and each pair."""

    overlap_abs_rel: float | None
    pairs: dict[str, float]


@dataclass(frozen=True)
class Latency:
    """Milliseconds for one rig; p50 where no percentile is named."""

    student_ms_per_rig: float
    student_p95_ms_per_rig: float
    teacher_ms_per_rig: float | None
    teacher_p95_ms_per_rig: float | None
    speedup: float | None
    precision: str
    device: str
    input: tuple[int, int]
    teacher_input: tuple[int, int] | None
    images_per_rig: int


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

    `dense_truth` has the student's metric depth against dense truth at its input size, by region (stages/regions.py);
    None for sources that know no dense truth.
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


@dataclass(frozen=True, eq=False)
class Evaluation:
    """The report and its pictures."""

    report: EvaluateReport
    pictures: tuple[FramePictures, ...] = field(default=())


def evaluate(
    source: Source,
    frame_ids: Sequence[str],
    split: str,
    student: Student,
    teacher: Teacher | None,
    spec: EvaluateSpec,
    *,
    device: torch.device,
    precision: str,
    decode_size: tuple[int, int] | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Evaluation:
    """Measure `student` (and `teacher`) on the frames of a split.

    Predictions are resized (bilinear) to native size and clipped to the range; errors are per image, then a mean per
    camera, then a mean of cameras. Unreadable frames are left out and listed. Images are decoded as stage one decoded
    them where `decode_size` is what was enough for it.

    Raises:
        EvaluationError: if no image has a LiDAR point in range.
        Preempted: if `should_stop` says so between two frames.
    """
    range_m = RANGE_M.get(source.name, DEFAULT_RANGE_M)
    tables = {name: ScoreTable(range_m) for name in ("metric", "median_scaled", "affine_invariant", "teacher")}
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
            except FrameError as error:
                quarantined[frame_id] = str(error)
                bar.update()
                continue
            student_size = student.spec.input_size
            rig = rig_views(frame, resize_views(images, student_size), sweep, student_size)
            student_m = predict_rig(student, rig, device, precision, flip=spec.flip)
            if not np.isfinite(student_m).all():
                raise EvaluationError(f"the student's depth of frame {frame_id} is not finite; train it again")
            disparity = _teacher_disparity(teacher, images) if teacher is not None else {}
            aligned_m = np.zeros_like(student_m)
            scores = []
            for i, view in enumerate(frame.views):
                if view is None or sweep is None:
                    continue
                size = (view.camera.height_px, view.camera.width_px)
                truth_m = sparse_depth(view, sweep, size)
                valid = (truth_m > range_m[0]) & (truth_m < range_m[1])
                if not valid.any():
                    continue
                name, truth = view.camera.name, truth_m[valid]
                predicted = _resized(student_m[i], size)[valid].clip(*range_m)
                scores.append(tables["metric"].add(name, predicted, truth))
                scaled = metrics.median_scaled(predicted_m=predicted, truth_m=truth).clip(*range_m)
                tables["median_scaled"].add(name, scaled, truth)
                fit = metrics.fit_affine_disparity(disparity=1 / predicted, truth_m=truth)
                tables["affine_invariant"].add(name, metrics.affine_depth_m(1 / predicted, fit, range_m), truth)
                if i in disparity:
                    relative = _resized(disparity[i], size)[valid]
                    fit = metrics.fit_affine_disparity(disparity=relative, truth_m=truth)
                    tables["teacher"].add(name, metrics.affine_depth_m(relative, fit, range_m), truth)
                    small = _resized(disparity[i], student.spec.input_size)
                    aligned_m[i] = metrics.affine_depth_m(small, fit, range_m)
            _add_dense(dense, frame, rig, sweep, student_m, range_m)
            for name, overlap in _pair_overlaps(frame, rig, student_m).items():
                overlaps[name].append(overlap)
            if index in drawn:
                pictures.append(
                    FramePictures(
                        frame_id,
                        source.rig.camera_names,
                        tuple(bool(there) for there in rig.view_valid),
                        rig.image,
                        rig.lidar_depth_m,
                        aligned_m if teacher is not None else None,
                        student_m,
                        float(np.mean(scores)) if scores else None,
                    )
                )
            bar.update()
    if rig is None or not tables["metric"].images:
        first = next(iter(quarantined.values()), "its frames have no LiDAR point in range")
        raise EvaluationError(f"nothing to measure in {len(frame_ids)} frames of {source.name} {split}: {first}")
    pairs = {name: _pooled(entries) for name, entries in overlaps.items()}
    metric = tables["metric"].scores()
    report = EvaluateReport(
        dataset=source.name,
        split=split,
        protocol=spec.protocol,
        flip=spec.flip,
        range_m=range_m,
        frames=len(frame_ids) - len(quarantined),
        images=metric.mean.images,
        valid_pixels=metric.mean.pixels,
        student=StudentScores(metric, tables["median_scaled"].scores(), tables["affine_invariant"].scores()),
        teacher=TeacherScores(tables["teacher"].scores()) if teacher is not None else None,
        consistency=Consistency(float(np.mean(list(pairs.values()))) if pairs else None, pairs),
        latency=_latency(student, rig, teacher, device, precision) if spec.latency else None,
        quarantined=quarantined,
        dense_truth={name: table.scores() for name, table in dense.items() if table.images} or None,
    )
    return Evaluation(report, tuple(pictures))


def require_full_count(source: Source, split: str, frame_count: int) -> None:
    """Check that a published split that is there with all its drives is there with all its frames.

    Raises:
        EvaluationError: if frames are missing or too many; a number measured on them would compare with nothing.
    """
    drives, frames = FULL_SPLITS.get((source.name, split), (0, 0))
    if drives and len(source.splits.get(split, ())) == drives and frame_count != frames:
        raise EvaluationError(
            f"{source.name} {split}: all {drives} drives are there, expected {frames} frames, found {frame_count};"
            " complete the data set, or name the drives you want in data.test"
        )


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
                tables[name].add(view.camera.name, student_m[i][mask].clip(*range_m), truth_m[mask])


def _teacher_disparity(
    teacher: Teacher, images: Sequence[UInt8[np.ndarray, "H W 3"] | None]
) -> dict[int, Float[np.ndarray, "h w"]]:
    there = {i: rgb for i, rgb in enumerate(images) if rgb is not None}
    if not there:
        return {}
    stacked = torch.from_numpy(np.stack([resize_rgb(rgb, teacher.input_size) for rgb in there.values()]))
    disparity = to_disparity(teacher(stacked).prediction, teacher.space).cpu().numpy()
    return dict(zip(there, disparity, strict=True))


def _resized(values: Float[np.ndarray, "h w"], size: tuple[int, int]) -> Float[np.ndarray, "H W"]:
    resized = interpolate(torch.from_numpy(values)[None, None], size=size, mode="bilinear", align_corners=False)
    return np.asarray(resized[0, 0].numpy())


def _pair_overlaps(frame: Frame, rig: RigViews, depth_m: Float[np.ndarray, "V H W"]) -> dict[str, Overlap]:
    """Agreement of each pair of ring neighbours that this frame has, both ways pooled."""
    V = len(frame.views)
    found: dict[str, Overlap] = {}
    for i in range(V):
        j = (i + 1) % V
        first, second = frame.views[i], frame.views[j]
        if first is None or second is None or i == j:
            continue
        both = [
            overlap_consistency(depth_m[[a, b]], rig.intrinsics[[a, b]], rig.world_from_cam[[a, b]])
            for a, b in ((i, j), (j, i))
        ]
        kept = [overlap for overlap in both if overlap is not None]
        if kept:
            found[f"{first.camera.name}-{second.camera.name}"] = Overlap(_pooled(kept), sum(o.pixels for o in kept))
    return found


def _pooled(overlaps: Sequence[Overlap]) -> float:
    return float(np.average([o.abs_rel for o in overlaps], weights=[o.pixels for o in overlaps]))


def _latency(student: Student, rig: RigViews, teacher: Teacher | None, device: torch.device, precision: str) -> Latency:
    student_time = measure(lambda: forward_rig(student, rig, device, precision), device, warmup=3, repeats=20)
    teacher_time = None
    if teacher is not None:
        images = torch.zeros(len(rig.image), *teacher.input_size, 3, dtype=torch.uint8).random_(0, 256)
        teacher_time = measure(lambda: teacher(images), device, warmup=1, repeats=5)
    return Latency(
        student_ms_per_rig=student_time.p50_ms,
        student_p95_ms_per_rig=student_time.p95_ms,
        teacher_ms_per_rig=teacher_time.p50_ms if teacher_time else None,
        teacher_p95_ms_per_rig=teacher_time.p95_ms if teacher_time else None,
        speedup=teacher_time.p50_ms / student_time.p50_ms if teacher_time else None,
        precision=precision,
        device=str(device),
        input=student.spec.input_size,
        teacher_input=teacher.input_size if teacher is not None else None,
        images_per_rig=len(rig.image),
    )
