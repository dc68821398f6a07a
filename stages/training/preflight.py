"""The job of stage two, and all checks before its first step."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data_cache.dataset import CachedFrames
from data_cache.errors import SettingError
from data_cache.shards.reader import CacheReader
from stages.compute.devices import resolve_precision
from stages.compute.parallel import process_count, rank
from stages.losses.spec import LossSpec
from stages.student.checkpoint import TrainingState, architecture, load_state
from stages.student.model import Student
from stages.targets.binning import stored_binning
from stages.training.schedule import split
from stages.training.spec import HOW_NOT_WHAT, TrainStudentSpec
from stages.training.step import Setting, Training, TrainingError

STATES = "states"


@dataclass(frozen=True, eq=False)
class TrainingJob:
    """A training to be run or planned.

    Attributes:
        reader: the cache.
        student: the student before its first step.
        train_ids, selection_ids: frames to train on, and frames to select the best student on (may be empty).
        folder: folder for states, checkpoints and logs.
        spec, losses: sections of the recipe.
        depth_range_m: LiDAR depths outside are ignored.
        device: device of this process.
        fresh: start anew even if `folder` holds a state.
        lidar_ids: training frames whose LiDAR teaches; None for all.
        teacher_fits: the teacher's scale and shift in frames without LiDAR, see `CachedRigs.teacher_fit`; None without.
        metres: files of metres that are taken in place of LiDAR in frames without; None without.
        metres_id: what tells them from other metres; empty without.
    """

    reader: CacheReader
    student: Student
    train_ids: Sequence[str]
    selection_ids: Sequence[str]
    folder: Path
    spec: TrainStudentSpec
    losses: LossSpec
    depth_range_m: tuple[float, float]
    device: torch.device
    fresh: bool = False
    lidar_ids: frozenset[str] | None = None
    teacher_fits: Mapping[str, Tensor] | None = None
    metres: Mapping[str, Path] | None = None
    metres_id: str = ""


@dataclass(frozen=True, eq=False)
class CheckedJob:
    """A job that passed all checks.

    Attributes:
        frames, selection: the usable frames of both splits.
        run: settings that must be equal for two runs to be the same run.
        state: the state to continue from, None to start at the beginning.
    """

    frames: CachedFrames
    selection: CachedFrames
    run: Mapping[str, Any]
    state: TrainingState | None


def check_job(job: TrainingJob) -> CheckedJob:
    """Check everything that a job needs, cheap checks first. Nothing is written; metres need not be there yet.

    Raises:
        SettingError: if the frames of a step cannot be divided evenly, or are too few.
        TrainingError: if no frame is usable, no training or selection frame has LiDAR in range although it is needed,
            or the cache lacks the teacher tokens that a loss needs.
        CheckpointError: if states exist but none can be read, or the state belongs to another run.
        DamagedCacheError: if the cache is damaged.
    """
    reader, spec, losses = job.reader, job.spec, job.losses
    split(list(range(spec.batch_rigs)), rank(), process_count(), spec.accumulate)
    require_tokens(reader, losses)
    frames = training_frames(job)
    selection = CachedFrames(reader, reader.usable(tuple(job.selection_ids)))
    if len(selection) and not _any_lidar(selection, job.depth_range_m):
        raise TrainingError("the selection split has no LiDAR point in range; choose other frames for data.selection")
    run = _identity(job, frames.frame_ids, resolve_precision(spec.precision, job.device))
    return CheckedJob(frames, selection, run, None if job.fresh else load_state(job.folder / STATES, run))


def open_training(job: TrainingJob) -> Training:
    """The training of a job before its first step; no state is restored yet."""
    reader, losses = job.reader, job.losses
    setting = Setting(
        stored_binning(job.student.bins, reader.identity.bin_knots),
        losses,
        job.depth_range_m,
        resolve_precision(job.spec.precision, job.device),
    )
    token_channels = reader.identity.token_channels if losses.feature else 0
    return Training(job.student, token_channels, setting, job.spec, job.device)


def training_frames(job: TrainingJob) -> CachedFrames:
    """The usable training frames of a job; cheap.

    Raises:
        SettingError: if there are frames with LiDAR and frames without, and a step has room for one.
        TrainingError: if no frame is usable, or none has LiDAR in range although it is needed.
    """
    reader = job.reader
    usable = reader.usable(tuple(job.train_ids))
    if not usable:
        raise TrainingError(
            f"{reader.store.location}: all {len(job.train_ids)} training frames are quarantined; see teacher-cache"
        )
    if job.lidar_ids is not None and job.losses.lidar_alone:
        usable = tuple(frame_id for frame_id in usable if frame_id in job.lidar_ids)
    frames = CachedFrames(
        reader,
        usable,
        neighbours=job.losses.photometric > 0,
        lidar_ids=job.lidar_ids,
        teacher_fits=job.teacher_fits,
        metres=job.metres,
    )
    if job.losses.supervised and not _any_lidar(frames, job.depth_range_m):
        raise TrainingError(
            f"{reader.store.location}: no training frame has a LiDAR return between {job.depth_range_m[0]} and"
            f" {job.depth_range_m[1]} m, so nothing gives metric supervision; check the LiDAR files and"
            " data.depth_range_m, or set losses.supervised = 0.0"
        )
    if job.spec.batch_rigs < len(frame_groups(frames)):
        raise SettingError(
            f"train_student.batch_rigs: expected at least 2, one with LiDAR and one without, got {job.spec.batch_rigs}"
        )
    return frames


def frame_groups(frames: CachedFrames) -> list[list[int]]:
    """Positions of the frames with LiDAR and of those without: both take part in each step, half and half."""
    groups: tuple[list[int], list[int]] = ([], [])
    for position in range(len(frames)):
        groups[not frames.has_lidar(position)].append(position)
    return [group for group in groups if group]


def require_tokens(reader: CacheReader, losses: LossSpec) -> None:
    """Raise TrainingError if a loss needs teacher tokens that the cache does not hold."""
    if (losses.feature or losses.all_relation) and not reader.identity.token_channels:
        raise TrainingError(
            f"{reader.store.location} holds no teacher tokens, from which losses.feature and losses.all_relation learn;"
            " set teacher_cache.tokens = true and write the cache again, or do without these losses"
        )


def _any_lidar(frames: CachedFrames, depth_range_m: tuple[float, float]) -> bool:
    """Whether any frame has a return in range; usually one frame with LiDAR is read."""
    near_m, far_m = depth_range_m
    return any(
        bool(((rig.lidar_depth_m > near_m) & (rig.lidar_depth_m < far_m)).any())
        for rig in (frames[i] for i in range(len(frames)) if frames.has_lidar(i))
    )


def _identity(job: TrainingJob, frame_ids: Sequence[str], precision: str) -> Mapping[str, Any]:
    train = {key: value for key, value in asdict(job.spec).items() if key not in HOW_NOT_WHAT}
    lidar: dict[str, Any] = {} if job.lidar_ids is None else {"lidar_frames": sorted(job.lidar_ids)}
    losses = asdict(job.losses)
    if job.metres_id:
        lidar["metres"] = job.metres_id
    # States of before these settings are continued.
    if job.lidar_ids is None:
        del losses["without_lidar"]
    if not job.losses.bin_relation:
        del losses["bin_relation"]
    return lidar | {
        "cache": job.reader.identity.sha256,
        "train_frames": list(frame_ids),
        "student": asdict(job.student.spec),
        "bins": architecture(job.student.bins),  # the teacher's side of the bins is part of the cache identity
        "train_student": train | {"precision": precision},
        "losses": losses,
        "depth_range_m": list(job.depth_range_m),
    }
