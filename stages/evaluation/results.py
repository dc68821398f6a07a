"""Results of stage three: the measured part of report.json, and the maps that its pictures show. Needs no torch."""

from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float, UInt8

from data_cache.errors import SurroundError
from stages.evaluation.ranking import FrameErrors
from stages.evaluation.scores import Scores
from stages.uncertainty.coverage import Uncertainty


class EvaluationError(SurroundError):
    """Nothing can be measured."""


@dataclass(frozen=True)
class StudentScores:
    """The student under each alignment."""

    metric: Scores
    median_scaled: Scores
    affine_invariant: Scores


@dataclass(frozen=True)
class TeacherScores:
    """The teacher after a least-squares fit of its disparity per image."""

    affine_invariant: Scores


@dataclass(frozen=True)
class Consistency:
    """Agreement of neighbouring cameras: the mean of the pairs, and each pair (`consistency.py`, `Overlap`).

    Reports of older versions have the first two alone.

    Attributes:
        overlap_abs_rel, pairs: relative difference where both see one surface: depths within a factor of 1.5.
        overlap_with_gross, pairs_with_gross: the same with the points where a camera sees through the other's surface.
        overlap_share, pairs_share: points that `overlap_abs_rel` compares, of those that land in the neighbour's image.
    """

    overlap_abs_rel: float | None
    pairs: dict[str, float]
    overlap_with_gross: float | None = None
    pairs_with_gross: dict[str, float] = field(default_factory=dict)
    overlap_share: float | None = None
    pairs_share: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Latency:
    """Milliseconds for one rig; medians unless named p95. The student runs in PyTorch."""

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
    teacher_runtime: str | None = None


@dataclass(frozen=True)
class EvaluateReport:
    """The measured part of report.json.

    Attributes:
        dataset, split, protocol, flip, range_m: what was measured, and how.
        frames: number of frames that could be read.
        images, valid_pixels: numbers compared with LiDAR; 0 if no frame has LiDAR.
        student: scores against LiDAR; None if no frame has LiDAR.
        teacher: scores against LiDAR; None without LiDAR or teacher.
        consistency: agreement of neighbouring cameras.
        latency: None if not measured.
        quarantined: frames that could not be read, reason by frame id.
        dense_truth: the student's metric depth against dense truth at its input size, by region (`regions.py`);
            None if the source has no dense truth.
        masked_images: number of images measured with a self-occlusion mask.
        disagreement: errors of the teacher against the student at every pixel of the student's input size, after a fit
            of scale and shift of disparity per image. It needs no LiDAR and says how alike they are, not which is
            right. None without a teacher.
        dense_affine_invariant: the student against dense truth everywhere, after a fit of scale and shift of disparity
            per image; None if the source has no dense truth.
        uncertainty: whether the student's sigma is right; None for a student without a calibration, and for depth maps
            of a folder.
    """

    dataset: str
    split: str
    protocol: str
    flip: bool
    range_m: tuple[float, float]
    frames: int
    images: int
    valid_pixels: int
    student: StudentScores | None
    teacher: TeacherScores | None
    consistency: Consistency
    latency: Latency | None
    quarantined: dict[str, str]
    dense_truth: dict[str, Scores] | None = None
    masked_images: int = 0
    disagreement: Scores | None = None
    dense_affine_invariant: Scores | None = None
    uncertainty: Uncertainty | None = None


@dataclass(frozen=True, eq=False)
class FramePictures:
    """The maps of one frame that the report draws, at the student's input size; depths in metres, 0 = none.

    Attributes:
        frame_id, camera_names: the frame and its cameras.
        view_valid: False where a camera is missing.
        image: RGB.
        lidar_depth_m: z-buffered LiDAR depth.
        teacher_depth_m: the teacher's depth fitted to LiDAR, or to the student in views without LiDAR; None without a
            teacher.
        student_depth_m: the student's depth, not aligned.
        teacher_on_lidar: views in which the teacher was fitted to LiDAR.
        errors: errors of the whole frame.
        rank, ranked: rank of the frame, 1 = worst, among `ranked` frames; rank 0 for a frame outside the ranking.
        sigma: the student's standard deviation of log depth; None if it was not asked.
    """

    frame_id: str
    camera_names: tuple[str, ...]
    view_valid: tuple[bool, ...]
    image: UInt8[np.ndarray, "V H W 3"]
    lidar_depth_m: Float[np.ndarray, "V H W"]
    teacher_depth_m: Float[np.ndarray, "V H W"] | None
    student_depth_m: Float[np.ndarray, "V H W"]
    teacher_on_lidar: tuple[bool, ...]
    errors: FrameErrors
    rank: int = 0
    ranked: int = 0
    sigma: Float[np.ndarray, "V H W"] | None = None


@dataclass(frozen=True, eq=False)
class Evaluation:
    """The report and its pictures."""

    report: EvaluateReport
    pictures: tuple[FramePictures, ...] = field(default=())


def against_lidar(report: EvaluateReport) -> StudentScores:
    """The student's scores against LiDAR, for callers that cannot do without them.

    Raises:
        EvaluationError: if no frame has a LiDAR point in range.
    """
    if report.student is None:
        raise EvaluationError(
            f"nothing to measure in {report.frames} frames of {report.dataset} {report.split}: its frames have no LiDAR"
            " point in range; name drives that have LiDAR"
        )
    return report.student
