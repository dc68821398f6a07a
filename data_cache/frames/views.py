"""A frame as arrays of one image size: the common start of cache, student and evaluation."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float32, Float64, UInt8

from data_cache.frames.geometry import resized_intrinsics, sparse_depth
from data_cache.frames.rig import Frame, Sweep


@dataclass(frozen=True, eq=False)
class RigViews:
    """All views of a frame, stretched to one size; a missing camera has zeros, and the identity as its pose.

    Attributes:
        image: RGB.
        lidar_depth_m: z-buffered depth in metres, 0 = no return.
        intrinsics: pixels of `image`, pixel centres at half-integers.
        world_from_cam: pose at the camera's own time stamp.
        view_valid: False where a camera is missing.
    """

    image: UInt8[np.ndarray, "V H W 3"]
    lidar_depth_m: Float32[np.ndarray, "V H W"]
    intrinsics: Float32[np.ndarray, "V 3 3"]
    world_from_cam: Float64[np.ndarray, "V 4 4"]
    view_valid: Bool[np.ndarray, " V"]


def load_images(frame: Frame, at_least: tuple[int, int] | None = None) -> tuple[UInt8[np.ndarray, "H W 3"] | None, ...]:
    """Decode the images of a frame, None where a camera is missing; raises FrameError.

    Args:
        frame: the frame.
        at_least: (H, W) that is enough, see `View.load_image`; None for native size.
    """
    return tuple(view.load_image(at_least=at_least) if view is not None else None for view in frame.views)


def rig_views(
    frame: Frame,
    images: tuple[UInt8[np.ndarray, "h w 3"] | None, ...],
    sweep: Sweep | None,
    size: tuple[int, int],
) -> RigViews:
    """Stack the images of a frame, already stretched to (h, w) `size`, and project the sweep into them."""
    V = len(frame.views)
    rig = RigViews(
        image=np.zeros((V, *size, 3), np.uint8),
        lidar_depth_m=np.zeros((V, *size), np.float32),
        intrinsics=np.zeros((V, 3, 3), np.float32),
        world_from_cam=np.tile(np.eye(4), (V, 1, 1)),
        view_valid=np.array([view is not None for view in frame.views]),
    )
    for i, (view, rgb) in enumerate(zip(frame.views, images, strict=True)):
        if view is None or rgb is None:
            continue
        camera = view.camera
        rig.image[i] = rgb
        rig.intrinsics[i] = resized_intrinsics(camera.K_px, (camera.height_px, camera.width_px), size)
        rig.world_from_cam[i] = view.world_from_cam
        if sweep is not None:
            rig.lidar_depth_m[i] = sparse_depth(view, sweep, size)
    return rig
