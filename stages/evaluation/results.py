"""What stage three has found: the measured part of report.json, and what its pictures are drawn from. No torch."""

from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float, UInt8

from data_cache.errors import SurroundError
from stages.evaluation.ranking import FrameErrors
from stages.evaluation.scores import Scores


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
    """The teacher, which knows no metres, after a least-squares fit per image in disparity."""

    affine_invariant: Scores


@dataclass(frozen=True)
class Consistency:
    """Agreement of adjacent cameras: the mean of the pairs, and each pair."""

    overlap_abs_rel: float | None
    pairs: dict[str, float]


@dataclass(frozen=True)
class Latency:
    """Milliseconds for one rig; p50 where no percentile is named. The student runs in PyTorch."""

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
        frames: that could be read.
        images, valid_pixels: compared with LiDAR; 0 where no frame has any.
        student: against LiDAR; None where no frame has any.
        teacher: against LiDAR; None without LiDAR, or where it was not asked.
        consistency: of adjacent cameras.
        latency: None where it was not measured.
        quarantined: frames that could not be read, with the reason.
        dense_truth: the student's metric depth against dense truth at its input size, by region (`regions.py`);
            None for sources that know no dense truth.
        masked_images: how many were measured under a self-occlusion mask.
        disagreement: the teacher, fitted to the student per image by scale and shift of disparity, measured against the
            student at its input size, every pixel. It needs no LiDAR and tells how alike they are, not who is right;
            None where the teacher was not asked.
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


@dataclass(frozen=True, eq=False)
class FramePictures:
    """What the report draws of one frame, at the student's input size; metres, 0 or all False = nothing there.

    Attributes:
        frame_id, camera_names: which.
        view_valid: False where a camera is missing.
        image: RGB.
        lidar_depth_m: z-buffered.
        teacher_depth_m: after its fit to LiDAR, or to the student where a view has none; None where it was not asked.
        student_depth_m: as it is.
        teacher_on_lidar: which views of the teacher were fitted to LiDAR.
        errors: of the whole frame.
        rank, ranked: place of the frame among so many, 1 = worst; 0 for a frame outside the ranking.
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


@dataclass(frozen=True, eq=False)
class Evaluation:
    """The report and its pictures."""

    report: EvaluateReport
    pictures: tuple[FramePictures, ...] = field(default=())


def against_lidar(report: EvaluateReport) -> StudentScores:
    """The student's scores against LiDAR, for those who have no use for a report without.

    Raises:
        EvaluationError: if no frame has a LiDAR point in range.
    """
    if report.student is None:
        raise EvaluationError(
            f"nothing to measure in {report.frames} frames of {report.dataset} {report.split}: its frames have no LiDAR"
            " point in range; name drives that have LiDAR"
        )
    return report.student
