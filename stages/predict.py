"""A student looking at one rig."""

from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from data_cache.views import RigViews
from stages.devices import autocast
from stages.student.model import Student


def predict_rig(
    student: Student, rig: RigViews, device: torch.device, precision: str, *, flip: bool = False
) -> Float[np.ndarray, "V H W"]:
    """Depth in metres for one rig of the student's input size; 0 where a camera is missing.

    Args:
        student: in evaluation mode, on `device`.
        rig: views at the student's input size.
        device, precision: where and how.
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
    """Depth in metres as the network gives it, on `device`; what it says of missing cameras means nothing."""
    focal_px = torch.from_numpy(np.where(rig.view_valid, rig.intrinsics[:, 0, 0], 1.0)).float()
    image = torch.from_numpy(rig.image).to(device).permute(0, 3, 1, 2).float().div_(255)
    with torch.inference_mode(), autocast(device, precision):
        out = student(image[None], focal_px[None].to(device), torch.from_numpy(rig.view_valid)[None].to(device))
    depth_m: Tensor = out.depth_m
    return depth_m
