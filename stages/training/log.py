"""The log of stage two: log.jsonl and TensorBoard, with pictures of the student's depth."""

import json
import math
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8

from data_cache.dataset import CachedRigs
from data_cache.errors import SurroundWarning
from data_cache.files import write_atomically, write_error
from stages.compute.devices import autocast
from stages.inference.colours import colour_depth, depth_scale
from stages.student.model import Student


class TrainingLog:
    """Writes log.jsonl and TensorBoard; entries after the step at which a run resumes are dropped."""

    def __init__(self, folder: Path, begin: int):
        """Open the logs in `folder`, which is created if needed; `begin` steps are done."""
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise write_error(error, folder) from error
        self._path = folder / "log.jsonl"
        if self._path.exists():
            kept = [line for line in self._path.read_text(errors="replace").splitlines() if _logged_step(line) <= begin]
            write_atomically(self._path, "".join(line + "\n" for line in kept if begin))
        from torch.utils.tensorboard import SummaryWriter

        self._board: SummaryWriter | None = None
        with self._board_may_fail():
            self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=begin + 1)

    def __enter__(self) -> "TrainingLog":
        return self

    def __exit__(self, *_: object) -> None:
        with self._board_may_fail():
            if self._board is not None:
                self._board.close()

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Log numbers after `step` steps."""
        try:
            with self._path.open("a") as file:
                file.write(json.dumps({"step": step, **values}) + "\n")
        except OSError as error:  # a line that cannot be written must not end the training
            warnings.warn(f"{self._path} cannot be written: {error}; training goes on", SurroundWarning, stacklevel=2)
        with self._board_may_fail():
            board = self._board
            for name, value in values.items():
                if board is not None:
                    board.add_scalar(name, value, step)

    def show(self, step: int, picture: UInt8[np.ndarray, "h w 3"]) -> None:
        """Log a picture to TensorBoard."""
        with self._board_may_fail():
            if self._board is not None:
                self._board.add_image("depth", picture, step, dataformats="HWC")

    @contextmanager
    def _board_may_fail(self) -> Iterator[None]:
        """If TensorBoard cannot be written, warn and go on without it: it must not end the training."""
        try:
            yield
        except OSError as error:
            self._board = None
            text = f"TensorBoard cannot be written: {error}; training goes on without it"
            warnings.warn(text, SurroundWarning, stacklevel=3)


def training_picture(
    student: Student, rigs: CachedRigs, depth_range_m: tuple[float, float], precision: str
) -> UInt8[np.ndarray, "h w 3"]:
    """A picture of the first rig of a batch: images in the top row, then LiDAR, then the student's depth.

    Args:
        student: the student; put into evaluation mode and back into training mode.
        rigs: rigs on the device of the student.
        depth_range_m: range of the colour scale, see `depth_scale`.
        precision: precision of the forward pass.
    """
    depth_m = predicted_depth_m(student, rigs, precision)[0]
    scale = depth_scale(depth_range_m)
    images = rigs.image[0].permute(0, 2, 3, 1).cpu().numpy()
    lidar_m = rigs.lidar_depth_m[0].cpu().numpy()
    rows = [list(images)]
    rows += [[colour_depth(view, scale) for view in views] for views in (lidar_m, depth_m.float().cpu().numpy())]
    return np.concatenate([np.concatenate(row, axis=1) for row in rows])


def predicted_depth_m(student: Student, rigs: CachedRigs, precision: str) -> torch.Tensor:
    """Depth (B V H W) in metres by a student in training; it is put into evaluation mode and back."""
    student.eval()
    with torch.inference_mode(), autocast(rigs.image.device, precision):
        # `forward`, not a call: a compiled student would be recompiled for this.
        out = student.forward(rigs.image.float() / 255, rigs.focal_px, rigs.view_valid)
    student.train()
    depth_m: torch.Tensor = out.depth_m
    return depth_m


def _logged_step(line: str) -> float:
    """Step of a log line; infinite for a line truncated by a kill, so that it is dropped."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf
