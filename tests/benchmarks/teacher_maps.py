"""A teacher's maps and LiDAR of a few frames, kept in a folder: the teacher runs once per input and flip."""

import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float

from data_cache.frames.geometry import sparse_depth
from data_cache.frames.images import larger
from data_cache.frames.views import load_images
from data_cache.sources.base import Source
from pipeline.recipe.config import Recipe
from pipeline.runs.stage_one import open_teacher
from stages.compute.resize import resize_rgb
from stages.targets.space import to_disparity
from stages.teacher.base import Teacher


@dataclass(frozen=True, eq=False)
class SeenRig:
    """The teacher's disparity of one rig, of its images and of these mirrored (and mirrored back), and its LiDAR.

    Attributes:
        straight, mirrored: larger is nearer.
        lidar_m: metres at the student's size, 0 = no return.
        teacher_ms: processor time of the teacher for the straight images.
    """

    straight: Float[np.ndarray, "V H W"]
    mirrored: Float[np.ndarray, "V H W"]
    lidar_m: Float[np.ndarray, "V h w"]
    teacher_ms: float


def seen_rigs(
    recipe: Recipe, source: Source, frame_ids: tuple[str, ...], input_size: tuple[int, int], folder: Path
) -> list[SeenRig]:
    """What the recipe's teacher sees in frames at an input size; what `folder` holds already is read from there."""
    size = recipe.student.input_size
    folder = folder / f"{source.name}-{input_size[0]}x{input_size[1]}-{size[0]}x{size[1]}"
    folder.mkdir(parents=True, exist_ok=True)
    teacher: Teacher | None = None
    for frame_id in frame_ids:
        path = _path(folder, frame_id)
        if path.is_file():
            continue
        if teacher is None:
            teacher = open_teacher(replace(recipe, teacher_cache=replace(recipe.teacher_cache, input_size=input_size)))
        frame = source.frame(frame_id)
        assert frame.load_sweep is not None
        images = [rgb for rgb in load_images(frame, larger(input_size, size)) if rgb is not None]
        stretched = np.stack([resize_rgb(rgb, input_size) for rgb in images])
        begin = time.process_time()
        straight = _looked_at(teacher, stretched)
        teacher_ms = 1e3 * (time.process_time() - begin)
        mirrored = _looked_at(teacher, stretched[:, :, ::-1].copy())[:, :, ::-1]
        sweep = frame.load_sweep()
        lidar_m = np.stack([sparse_depth(view, sweep, size) for view in frame.views if view is not None])
        begun = path.with_suffix(".part.npz")
        np.savez(begun, straight=straight, mirrored=mirrored, lidar_m=lidar_m, teacher_ms=teacher_ms)
        begun.rename(path)
    return [_read(_path(folder, frame_id)) for frame_id in frame_ids]


def _looked_at(teacher: Teacher, images: np.ndarray) -> Float[np.ndarray, "V H W"]:
    seen = [teacher(torch.from_numpy(images[i : i + 2])).prediction for i in range(0, len(images), 2)]
    return to_disparity(torch.cat(seen), teacher.space).float().cpu().numpy()


def _path(folder: Path, frame_id: str) -> Path:
    return folder / f"{frame_id.replace('/', '-')}.npz"


def _read(path: Path) -> SeenRig:
    with np.load(path) as file:
        return SeenRig(file["straight"], file["mirrored"], file["lidar_m"], float(file["teacher_ms"]))
