"""Writes and reads RUN/eval/pictures.json: small images, and depth in a form that a browser decodes."""

import base64
import json
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import cattrs
import numpy as np
from jaxtyping import Float

from data_cache.errors import SourceError
from data_cache.files import write_atomically
from pipeline.report.drawing import WEBP_URI, nearest_at, panel_image, panorama_order, scattered, webp_uri
from stages.evaluation.results import FramePictures

NAME = "pictures.json"
FORMAT = "surround-pictures/1"
GRID_WIDTH_PX = 320
"""Wider depth maps are sampled at this many columns; a frame of six 352 x 640 views takes 0.6 MB with its images."""

NEAREST_M = 0.05
LOG_STEP = 0.002
"""Depth is kept in steps of 0.2 %, right to 0.1 %; anything nearer than NEAREST_M is kept as NEAREST_M."""


@dataclass(frozen=True)
class Grid:
    """A depth map: uint16 codes, 0 = none, else 1 + log(depth / NEAREST_M) / LOG_STEP.

    Attributes:
        height, width: in pixels.
        data: each code minus the one to its left (in the first column, above it), zig-zag encoded, all low bytes before
            all high bytes, deflated with a zlib header, base64.
    """

    height: int
    width: int
    data: str


@dataclass(frozen=True)
class ShownView:
    """What a report shows of one camera of a frame.

    Attributes:
        camera: its name.
        image: data URI of a WebP picture; None if the camera is missing, and then everything else is None, too.
        lidar: LiDAR returns, z-buffered; None if there are none.
        teacher: depth, fitted to LiDAR or to the student; None if the teacher was not asked.
        student: metric depth.
        teacher_on_lidar: whether the teacher was fitted to LiDAR.
        sigma: the student's standard deviation of log depth, in percent in place of metres; None if there is none.
    """

    camera: str
    image: str | None
    lidar: Grid | None
    teacher: Grid | None
    student: Grid | None
    teacher_on_lidar: bool
    sigma: Grid | None = None


@dataclass(frozen=True)
class ShownFrame:
    """What a report shows of a frame, its views from left to right (see `panorama_order`).

    Attributes:
        frame_id: which.
        abs_rel, disagreement: see stages/evaluation/ranking.py.
        rank, ranked: place, 1 = worst, and number of ranked frames; rank 0 for a frame outside the ranking.
        views: every camera of the rig.
    """

    frame_id: str
    abs_rel: float | None
    disagreement: float | None
    rank: int
    ranked: int
    views: tuple[ShownView, ...]


def shown_frame(pictures: FramePictures) -> ShownFrame:
    """Make the pictures of a frame small enough for a page."""
    return ShownFrame(
        pictures.frame_id,
        pictures.errors.abs_rel,
        pictures.errors.disagreement,
        pictures.rank,
        pictures.ranked,
        tuple(_view(pictures, i) for i in panorama_order(len(pictures.camera_names))),
    )


def _view(pictures: FramePictures, i: int) -> ShownView:
    name, on_lidar = pictures.camera_names[i], pictures.teacher_on_lidar[i]
    if not pictures.view_valid[i]:
        return ShownView(name, None, None, None, None, on_lidar)
    lidar_m, teacher_m, student_m = pictures.lidar_depth_m[i], pictures.teacher_depth_m, pictures.student_depth_m[i]
    size = grid_size((student_m.shape[0], student_m.shape[1]))
    points_m = scattered(lidar_m, size)
    return ShownView(
        name,
        webp_uri(panel_image(pictures.image[i])),
        encode_depth(np.where(np.isfinite(points_m), points_m, 0)) if lidar_m.any() else None,
        encode_depth(nearest_at(teacher_m[i], size)) if teacher_m is not None else None,
        encode_depth(nearest_at(student_m, size)),
        on_lidar,
        encode_depth(nearest_at(100 * pictures.sigma[i], size)) if pictures.sigma is not None else None,
    )


def grid_size(size: tuple[int, int]) -> tuple[int, int]:
    """The (h, w) at which a depth map of (H, W) is kept."""
    height, width = size
    return (height, width) if width <= GRID_WIDTH_PX else (round(GRID_WIDTH_PX * height / width), GRID_WIDTH_PX)


def encode_depth(depth_m: Float[np.ndarray, "h w"]) -> Grid:
    """Encode metres, 0 = none, as `Grid` says."""
    steps = np.round(np.log(np.maximum(depth_m, NEAREST_M) / NEAREST_M) / LOG_STEP)
    codes = np.where(depth_m > 0, np.minimum(1 + steps, 65535), 0).astype(np.int32)
    change = np.diff(codes, axis=1, prepend=0)
    change[:, 0] = np.diff(codes[:, 0], prepend=0)
    # Wraps around: only the code modulo 2^16 matters.
    signed = change.astype(np.int16).astype(np.int32)
    zigzag = (2 * signed ^ signed >> 31).astype(np.uint16)
    planes = (zigzag & 255).astype(np.uint8).tobytes() + (zigzag >> 8).astype(np.uint8).tobytes()
    height, width = depth_m.shape
    return Grid(height, width, base64.b64encode(zlib.compress(planes, 9)).decode())


def write_frames(folder: Path, frames: Sequence[ShownFrame]) -> Path:
    """Write pictures.json in one step; a report can be made again from it."""
    path = folder / NAME
    content = {"format": FORMAT, "frames": [asdict(frame) for frame in frames]}
    write_atomically(path, json.dumps(content, allow_nan=False) + "\n")
    return path


def read_frames(folder: Path) -> tuple[ShownFrame, ...]:
    """Read the pictures.json of a folder; empty if there is none, as in runs of older versions.

    Raises:
        SourceError: if it is damaged, or of another format.
    """
    path = folder / NAME
    if not path.exists():
        return ()
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise ValueError(f"format {content['format']!r}, not {FORMAT!r}")
        frames = cattrs.structure(content["frames"], tuple[ShownFrame, ...])
        images = [view.image for frame in frames for view in frame.views if view.image is not None]
        if not all(image.startswith(WEBP_URI) for image in images):
            raise ValueError("an image that is no WebP data URI")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, cattrs.BaseValidationError) as error:
        raise SourceError(
            f"{path}: expected pictures of `surround eval`, found {error}; run eval again, or delete the file for a"
            " report without pictures"
        ) from error
    return frames
