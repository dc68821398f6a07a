"""One frame of an evaluation: what student and teacher predict, and the pixels that are compared."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, UInt8

from data_cache.frames.rig import Frame, Sweep
from data_cache.frames.views import RigViews, load_images, rig_views
from data_cache.sources.base import Source
from stages.compute.devices import synchronize
from stages.compute.resize import depth_at, resize_rgb, resize_views
from stages.evaluation.predictions import (
    PredictionFolder,
    read_rig,
)
from stages.evaluation.protocol_scores import ImagePixels, image_pixels, teacher_fitted_to
from stages.evaluation.protocols import Protocol
from stages.evaluation.results import EvaluationError
from stages.inference.predict import predict_rig, predict_rig_sigma
from stages.student.model import Student
from stages.targets.space import to_disparity
from stages.teacher.base import Teacher


@dataclass(frozen=True, eq=False)
class Setting:
    """The models, data and settings of an evaluation; with `sigma_scale` the student also says how sure it is."""

    source: Source
    student: Student | PredictionFolder
    teacher: Teacher | None
    protocol: Protocol
    range_m: tuple[float, float]
    network_size: tuple[int, int]
    flip: bool
    device: torch.device
    precision: str
    decode_size: tuple[int, int] | None
    sigma_scale: float | None = None


@dataclass(frozen=True, eq=False)
class SeenFrame:
    """A frame with the predictions of student and teacher and the pixels to compare.

    Attributes:
        frame, sweep, rig: the frame, its LiDAR sweep and its views at the student's input size.
        predicted_m: predicted depth of each view at its own size; None where a camera is missing.
        student_m: the same at the student's input size; 0 = none.
        disparity: the teacher's disparity, by view.
        teacher_ms: what the teacher took for all views at once; None where it was not asked or a camera is missing.
        on_student_m: the teacher's depth fitted to the student's, by view.
        measured: pixels with LiDAR, by view.
        sigma: the student's standard deviation of log depth at its input size; None if it was not asked.
    """

    frame: Frame
    sweep: Sweep | None
    rig: RigViews
    predicted_m: tuple[Float[np.ndarray, "_ _"] | None, ...]
    student_m: Float[np.ndarray, "V H W"]
    disparity: dict[int, Float[np.ndarray, "_ _"]]
    teacher_ms: float | None
    on_student_m: dict[int, Float[np.ndarray, "H W"]]
    measured: dict[int, ImagePixels]
    sigma: Float[np.ndarray, "V H W"] | None


def see_frame(setting: Setting, frame_id: str) -> SeenFrame:
    """Read a frame and predict its depth with student and teacher; raises FrameError."""
    frame = setting.source.frame(frame_id)
    images = load_images(frame, setting.decode_size)
    sweep = frame.load_sweep() if frame.load_sweep is not None else None
    size, range_m = setting.network_size, setting.range_m
    rig = rig_views(frame, resize_views(images, size), sweep, size)
    predicted_m, sigma = _predictions(setting, frame, rig)
    disparity, teacher_ms = (
        _teacher_disparity(setting.teacher, images, setting.device) if setting.teacher else ({}, None)
    )
    measured: dict[int, ImagePixels] = {}
    for i, view in enumerate(frame.views):
        depth_m = predicted_m[i]
        if view is None or sweep is None or depth_m is None:
            continue
        sure = sigma[i] if sigma is not None else None
        pixels = image_pixels(view, sweep, depth_m, disparity.get(i), setting.protocol, range_m, size, sure)
        if pixels is not None:
            measured[i] = pixels
    student_m = np.stack([depth_at(d, size) if d is not None else np.zeros(size, np.float32) for d in predicted_m])
    on_student_m = {i: teacher_fitted_to(student_m[i], values, range_m) for i, values in disparity.items()}
    return SeenFrame(frame, sweep, rig, predicted_m, student_m, disparity, teacher_ms, on_student_m, measured, sigma)


def _predictions(
    setting: Setting, frame: Frame, rig: RigViews
) -> tuple[tuple[Float[np.ndarray, "_ _"] | None, ...], Float[np.ndarray, "V H W"] | None]:
    """Depth of every view in metres, None where a camera is missing; and sigma of all views, if it is asked for."""
    if isinstance(setting.student, PredictionFolder):
        return read_rig(setting.student, frame), None
    sigma, how = None, (setting.student, rig, setting.device, setting.precision)
    if setting.sigma_scale is None:
        depth_m = predict_rig(*how, flip=setting.flip)
    else:
        depth_m, sigma = predict_rig_sigma(*how, setting.sigma_scale, flip=setting.flip)
    if not np.isfinite(depth_m).all():
        raise EvaluationError(f"the student's depth of frame {frame.id} is not finite; train it again")
    return tuple(depth_m[i] if there else None for i, there in enumerate(rig.view_valid)), sigma


def _teacher_disparity(
    teacher: Teacher, images: Sequence[UInt8[np.ndarray, "H W 3"] | None], device: torch.device
) -> tuple[dict[int, Float[np.ndarray, "h w"]], float | None]:
    """The teacher's disparity by view, and its milliseconds for the rig; None for the time of an incomplete rig."""
    there = {i: rgb for i, rgb in enumerate(images) if rgb is not None}
    if not there:
        return {}, None
    stacked = torch.from_numpy(np.stack([resize_rgb(rgb, teacher.input_size) for rgb in there.values()]))
    synchronize(device)
    begin = time.perf_counter()
    prediction = teacher(stacked).prediction
    synchronize(device)
    milliseconds = 1e3 * (time.perf_counter() - begin)
    disparity = to_disparity(prediction, teacher.space).cpu().numpy()
    return dict(zip(there, disparity, strict=True)), milliseconds if len(there) == len(images) else None
