"""Preparing a frame for the teacher: read, decoded and stretched, while the teacher runs on earlier frames."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float32, Float64, UInt8, UInt16

from data_cache.errors import FrameError
from data_cache.frames.images import larger
from data_cache.frames.views import load_images, rig_views
from data_cache.shards.records import pack_depth
from data_cache.sources.base import Source
from stages.compute.resize import resize_rgb, resize_views


@dataclass(frozen=True, eq=False)
class PreparedFrame:
    """A frame's input for the teacher, and the arrays that go into the cache unchanged (see `FrameRecord`).

    Attributes:
        id: id of the frame.
        teacher_images: RGB at the teacher's input size, of the views that exist, in ring order.
        note: what the frame lacks; empty if nothing.
    """

    id: str
    teacher_images: list[UInt8[np.ndarray, "H W 3"]]
    image: UInt8[np.ndarray, "V h w 3"]
    lidar_depth: UInt16[np.ndarray, "V h w"]
    view_valid: Bool[np.ndarray, " V"]
    intrinsics: Float32[np.ndarray, "V 3 3"]
    world_from_cam: Float64[np.ndarray, "V 4 4"]
    note: str


def prepare_frame(
    source: Source, frame_id: str, teacher_size: tuple[int, int], student_size: tuple[int, int]
) -> PreparedFrame:
    """Read a frame, stretch its images to both sizes and project its sweep.

    Raises:
        FrameError: if any part of it cannot be read, or it has no camera.
    """
    frame = source.frame(frame_id)
    images = load_images(frame, larger(teacher_size, student_size))
    sweep = frame.load_sweep() if frame.load_sweep is not None else None
    views = rig_views(frame, resize_views(images, student_size), sweep, student_size)
    if not views.view_valid.any():
        raise FrameError(f"frame {frame_id}: expected at least one camera, found none")
    missing = [name for name, there in zip(source.rig.camera_names, views.view_valid, strict=True) if not there]
    notes = [f"no {name}" for name in missing]
    if sweep is None:
        notes.append("no LiDAR sweep")
    elif sweep.dropped_count:
        notes.append(f"{sweep.dropped_count} LiDAR points are not finite and were left out; {len(sweep.points_m)} stay")
    return PreparedFrame(
        id=frame_id,
        teacher_images=[resize_rgb(rgb, teacher_size) for rgb in images if rgb is not None],
        image=views.image,
        lidar_depth=pack_depth(views.lidar_depth_m),
        view_valid=views.view_valid,
        intrinsics=views.intrinsics,
        world_from_cam=views.world_from_cam,
        note=", ".join(notes),
    )
