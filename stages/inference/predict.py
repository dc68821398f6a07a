"""Running a student on one rig."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from data_cache.errors import FrameError
from data_cache.frames.rig import Frame
from data_cache.frames.views import RigViews, load_images, rig_views
from stages.compute.devices import autocast
from stages.compute.resize import depth_at, resize_views, resized
from stages.student.checkpoint import Calibration
from stages.student.model import Student, StudentOutput


@dataclass(frozen=True, eq=False)
class Prediction:
    """A student's depth of a frame, at its input size.

    Attributes:
        rig: the input.
        depth_m: metres, 0 where a camera is missing.
        sigma: standard deviation of log depth, 0 where a camera is missing: depth is right up to a factor exp(sigma) in
            68 % of pixels, if the student is calibrated. None if it was not asked for.
        calibrated: whether sigma is calibrated, or the spread of the bins as it is.
    """

    rig: RigViews
    depth_m: Float[np.ndarray, "V H W"]
    sigma: Float[np.ndarray, "V H W"] | None = None
    calibrated: bool = False

    def at_image_size(self, frame: Frame) -> tuple[Float[np.ndarray, "_ _"] | None, ...]:
        """Depth of each view in metres, resized bilinearly to its image; None where the camera is missing."""
        return tuple(
            depth_at(depth_m, (view.camera.height_px, view.camera.width_px)) if view is not None else None
            for view, depth_m in zip(frame.views, self.depth_m, strict=True)
        )

    def sigma_at_image_size(self, frame: Frame) -> tuple[Float[np.ndarray, "_ _"] | None, ...]:
        """Sigma of each view, resized bilinearly to its image; None where a camera is missing or it was not asked."""
        sigma = self.sigma if self.sigma is not None else [None] * len(frame.views)
        return tuple(
            resized(values, (view.camera.height_px, view.camera.width_px))
            if view is not None and values is not None
            else None
            for view, values in zip(frame.views, sigma, strict=True)
        )


def predict_frame(
    student: Student,
    frame: Frame,
    device: torch.device,
    precision: str,
    calibration: Calibration | None = None,
    *,
    uncalibrated: bool = False,
) -> Prediction:
    """Decode the images of a frame and run the student, which must be in evaluation mode on `device`.

    With a `calibration` the prediction also says how sure it is; without one only if `uncalibrated`, and then sigma is
    the spread of the bins as it is.

    Raises:
        FrameError: if an image cannot be read, or the student's depth is not finite.
    """
    size = student.spec.input_size
    rig = rig_views(frame, resize_views(load_images(frame, size), size), None, size)
    sigma = None
    if calibration is None and not uncalibrated:
        depth_m = predict_rig(student, rig, device, precision)
    else:
        scale = calibration.sigma_scale if calibration is not None else 1.0
        depth_m, sigma = predict_rig_sigma(student, rig, device, precision, scale)
    if not np.isfinite(depth_m).all():
        raise FrameError(f"the student's depth of frame {frame.id} is not finite; train it again")
    return Prediction(rig, depth_m, sigma, calibration is not None)


def predict_rig(
    student: Student, rig: RigViews, device: torch.device, precision: str, *, flip: bool = False
) -> Float[np.ndarray, "V H W"]:
    """Depth in metres for one rig of the student's input size; 0 where a camera is missing.

    Args:
        student: in evaluation mode, on `device`.
        rig: views at the student's input size.
        device, precision: device and precision of the forward pass.
        flip: average with the prediction for the mirrored rig.
    """
    return _predicted(lambda views: (forward_rig(student, views, device, precision),), rig, flip=flip)[0]


def predict_rig_sigma(
    student: Student,
    rig: RigViews,
    device: torch.device,
    precision: str,
    sigma_scale: float,
    *,
    flip: bool = False,
) -> tuple[Float[np.ndarray, "V H W"], Float[np.ndarray, "V H W"]]:
    """The depth of `predict_rig`, up to rounding, and the standard deviation of log depth; 0 where a camera is missing.

    Args:
        student, rig, device, precision: as for `predict_rig`.
        sigma_scale: factor on the spread of the bins, that of the student's calibration.
        flip: average both with those of the mirrored rig.
    """

    def forward(views: RigViews) -> tuple[Tensor, ...]:
        out = _forward(student, views, device, precision, sigma=True)
        assert out.sigma is not None
        return out.depth_m, out.sigma * sigma_scale

    depth_m, sigma = _predicted(forward, rig, flip=flip)
    return depth_m, sigma


def _predicted(
    forward: Callable[[RigViews], tuple[Float[Tensor, "1 V H W"], ...]], rig: RigViews, *, flip: bool
) -> list[Float[np.ndarray, "V H W"]]:
    """The maps that `forward` gives of a rig, or their averages with those of the mirrored rig."""
    maps = [values[0].float().cpu().numpy() for values in forward(rig)]
    if flip:
        ring = [-j % len(rig.view_valid) for j in range(len(rig.view_valid))]  # mirroring swaps left and right
        mirrored = replace(
            rig,
            image=rig.image[ring][:, :, ::-1].copy(),
            intrinsics=rig.intrinsics[ring],
            view_valid=rig.view_valid[ring],
        )
        others = [values[0].float().cpu().numpy()[ring, :, ::-1] for values in forward(mirrored)]
        maps = [(values + other) / 2 for values, other in zip(maps, others, strict=True)]
    return [np.where(rig.view_valid[:, None, None], values, np.float32(0)) for values in maps]


def forward_rig(student: Student, rig: RigViews, device: torch.device, precision: str) -> Float[Tensor, "1 V H W"]:
    """Depth in metres as the network gives it, on `device`; values of missing cameras are meaningless."""
    depth_m: Tensor = _forward(student, rig, device, precision, sigma=False).depth_m
    return depth_m


def _forward(student: Student, rig: RigViews, device: torch.device, precision: str, *, sigma: bool) -> StudentOutput:
    focal_px = torch.from_numpy(np.where(rig.view_valid, rig.intrinsics[:, 0, 0], 1.0)).float()
    image = torch.from_numpy(rig.image).to(device).permute(0, 3, 1, 2).float().div_(255)
    with torch.inference_mode(), autocast(device, precision):
        valid = torch.from_numpy(rig.view_valid)[None].to(device)
        out: StudentOutput = student(image[None], focal_px[None].to(device), valid, sigma=sigma)
    return out
