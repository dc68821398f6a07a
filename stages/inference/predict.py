"""Running a student on one rig."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from data_cache.errors import FrameError
from data_cache.frames.rig import Frame
from data_cache.frames.views import RigViews, load_images, rig_views
from stages.compute.devices import autocast
from stages.compute.resize import depth_at, resize_views
from stages.student.model import Student


@dataclass(frozen=True, eq=False)
class Prediction:
    """A student's depth of a frame, at its input size.

    Attributes:
        rig: the input.
        depth_m: metres, 0 where a camera is missing.
    """

    rig: RigViews
    depth_m: Float[np.ndarray, "V H W"]

    def at_image_size(self, frame: Frame) -> tuple[Float[np.ndarray, "_ _"] | None, ...]:
        """Depth of each view in metres, resized bilinearly to its image; None where the camera is missing."""
        return tuple(
            depth_at(depth_m, (view.camera.height_px, view.camera.width_px)) if view is not None else None
            for view, depth_m in zip(frame.views, self.depth_m, strict=True)
        )


def predict_frame(student: Student, frame: Frame, device: torch.device, precision: str) -> Prediction:
    """Decode the images of a frame and run the student, which must be in evaluation mode on `device`.

    Raises:
        FrameError: if an image cannot be read, or the student's depth is not finite.
    """
    size = student.spec.input_size
    rig = rig_views(frame, resize_views(load_images(frame, size), size), None, size)
    depth_m = predict_rig(student, rig, device, precision)
    if not np.isfinite(depth_m).all():
        raise FrameError(f"the student's depth of frame {frame.id} is not finite; train it again")
    return Prediction(rig, depth_m)


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
    depth_m = forward_rig(student, rig, device, precision)[0].float().cpu().numpy()
    if flip:
        ring = [-j % len(rig.view_valid) for j in range(len(rig.view_valid))]  # mirroring swaps left and right
        mirrored = replace(
            rig,
            image=rig.image[ring][:, :, ::-1].copy(),
            intrinsics=rig.intrinsics[ring],
            view_valid=rig.view_valid[ring],
        )
        depth_m = (
            depth_m + forward_rig(student, mirrored, device, precision)[0].float().cpu().numpy()[ring, :, ::-1]
        ) / 2
    return np.where(rig.view_valid[:, None, None], depth_m, np.float32(0))


def forward_rig(student: Student, rig: RigViews, device: torch.device, precision: str) -> Float[Tensor, "1 V H W"]:
    """Depth in metres as the network gives it, on `device`; values of missing cameras are meaningless."""
    focal_px = torch.from_numpy(np.where(rig.view_valid, rig.intrinsics[:, 0, 0], 1.0)).float()
    image = torch.from_numpy(rig.image).to(device).permute(0, 3, 1, 2).float().div_(255)
    with torch.inference_mode(), autocast(device, precision):
        out = student(image[None], focal_px[None].to(device), torch.from_numpy(rig.view_valid)[None].to(device))
    depth_m: Tensor = out.depth_m
    return depth_m
