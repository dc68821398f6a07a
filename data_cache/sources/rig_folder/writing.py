"""Export of any source to a rig folder that reads back equal."""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from data_cache.errors import FrameError, SourceError
from data_cache.files import open_regular, write_atomically, write_error
from data_cache.frames.images import BYTE_LIMIT
from data_cache.frames.rig import Camera, Frame, Rig, View
from data_cache.sources.base import Source
from data_cache.sources.rig_folder.frames_jsonl import FRAMES_FILE, SPLITS_FILE
from data_cache.sources.rig_folder.rig_json import FORMAT, RIG_FILE


@dataclass(frozen=True)
class RigExport:
    """Counts of frames written, images copied and images encoded, and by frame id why frames were left out."""

    frame_count: int
    copied_count: int
    encoded_count: int
    left_out: Mapping[str, str]


def export_rig(
    source: Source, frame_ids: Iterable[str], out: Path, on_frame: Callable[[], object] = lambda: None
) -> RigExport:
    """Write frames of a source as a rig folder that reads back equal: poses, intrinsics, points, images, masks, stamps.

    An image file is copied if its source can decode it; an image without a file of its own is written as PNG. A frame
    that cannot be read, or has no camera, is left out. `rig.json` is written last: a folder without it is unfinished,
    and the same command starts it again. Equal self-occlusion masks share a file.

    Args:
        source: the data set to export.
        frame_ids: the frames to export; they are written drive by drive, in the order of the source.
        out: a new folder, or an unfinished one.
        on_frame: called after every frame.

    Raises:
        SourceError: if `out` holds a `rig.json`, no frame can be read, or a camera changes its image size.
        WriteError: if the system refuses.
    """
    if (out / RIG_FILE).exists():
        raise SourceError(f"{out}: expected a new folder, found {RIG_FILE} in it; remove it, or name another folder")
    wanted = set(frame_ids)
    chosen = {drive: [one for one in ids if one in wanted] for drive, ids in source.drives.items()}
    cameras: dict[str, Camera] = {}
    lines: list[str] = []
    left_out: dict[str, str] = {}
    drives: dict[str, None] = {}
    masks: dict[tuple[str, bytes], str] = {}
    copied: list[bool] = []
    for drive, ids in chosen.items():
        for frame_id in ids:
            try:
                frame = source.frame(frame_id)
                line, images = _written(frame, drive, out, len(lines), cameras, masks)
            except FrameError as error:
                left_out[frame_id] = str(error)
            else:
                lines.append(json.dumps(line))
                drives[drive] = None
                copied += [image.is_copy for image in images]
            on_frame()
    if not lines:
        reason = f"; the first: {next(iter(left_out.values()))}" if left_out else ""
        raise SourceError(
            f"{source.name}: expected frames to export, found that none of {len(left_out)} can be read{reason}"
        )
    splits = {name: present for name, of in source.splits.items() if (present := [d for d in of if d in drives])}
    write_atomically(out / FRAMES_FILE, "".join(f"{line}\n" for line in lines))
    if splits:
        write_atomically(out / SPLITS_FILE, _pretty(splits))
    write_atomically(out / RIG_FILE, _pretty(_rig_table(source.rig, cameras)))
    return RigExport(len(lines), sum(copied), len(copied) - sum(copied), left_out)


@dataclass(frozen=True)
class _Image:
    """An image that was read: whether its file is copied unchanged, and how to write it."""

    is_copy: bool
    suffix: str
    write: Callable[[Path], object]


def _written(
    frame: Frame,
    drive: str,
    out: Path,
    number: int,
    cameras: dict[str, Camera],
    masks: dict[tuple[str, bytes], str],
) -> tuple[dict[str, Any], list[_Image]]:
    """Read all of a frame, then write its files; returns its line and its images.

    `cameras` keeps the first camera of each name, which `rig.json` will describe. `masks` keeps the mask files written
    so far, by camera and by hash of the mask.
    """
    views = [view for view in frame.views if view is not None]
    if not views:
        raise FrameError(f"{frame.id}: expected at least one camera, found none")
    images = [_read_image(view) for view in views]
    unoccluded = [view.load_unoccluded() if view.load_unoccluded is not None else None for view in views]
    sweep = frame.load_sweep() if frame.load_sweep is not None else None
    line: dict[str, Any] = {"id": frame.id, "drive": drive, "cameras": {}}
    if frame.world_from_ego is not None:
        line["world_from_ego"] = frame.world_from_ego.tolist()
    for view, image, mask in zip(views, images, unoccluded, strict=True):
        camera = view.camera
        first = cameras.setdefault(camera.name, camera)
        if (first.width_px, first.height_px) != (camera.width_px, camera.height_px):
            raise SourceError(
                f"{frame.id}: camera {camera.name}: expected one image size per vehicle, found {camera.width_px} x"
                f" {camera.height_px} px after {first.width_px} x {first.height_px}; export such drives separately"
            )
        file = f"images/{camera.name}/{number:06d}{image.suffix}"
        _write(out / file, image.write)
        shot = {"image": file, "time_ns": view.time_ns, "world_from_cam": view.world_from_cam.tolist()}
        if not np.array_equal(first.K_px, camera.K_px):
            shot["intrinsics"] = camera.K_px.tolist()
        if mask is not None:
            key = camera.name, hashlib.sha256(np.packbits(mask).tobytes()).digest()
            if key not in masks:
                masks[key] = f"masks/{camera.name}/{len(masks)}.png"
                _write(out / masks[key], Image.fromarray(mask.astype(np.uint8) * 255).save)
            shot["mask"] = masks[key]
        line["cameras"][camera.name] = shot
    if sweep is not None:
        points_m, file = sweep.points_m, f"lidar/{number:06d}.npy"
        _write(out / file, lambda path: np.save(path, points_m, allow_pickle=False))
        line["lidar"] = {"points": file, "world_from_lidar": sweep.world_from_lidar.tolist()}
    return line, images


def _read_image(view: View) -> _Image:
    if view.image_file is None:
        return _Image(False, ".png", Image.fromarray(view.load_image()).save)
    # The source knows which files it may read; a file that it cannot decode, even at the smallest size, is refused.
    view.load_image(at_least=(1, 1))
    with open_regular(view.image_file, BYTE_LIMIT, "image") as stream:
        data = stream.read()
    return _Image(True, view.image_file.suffix, lambda path: path.write_bytes(data))


def _write(path: Path, write: Callable[[Path], object]) -> None:
    # Neither atomic nor flushed: without rig.json the folder counts as unfinished.
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path)
    except OSError as error:
        raise write_error(error, path) from error


def _rig_table(rig: Rig, cameras: Mapping[str, Camera]) -> dict[str, Any]:
    """The content of `rig.json`; a camera that no frame has keeps its place in the ring, by name only."""
    return {
        "format": FORMAT,
        "name": rig.name,
        "pixel_centers": "half_integers",
        "cameras": [{"name": name} | _calibration(cameras.get(name)) for name in rig.camera_names],
    }


def _calibration(camera: Camera | None) -> dict[str, Any]:
    if camera is None:
        return {}
    return {"width": camera.width_px, "height": camera.height_px, "intrinsics": camera.K_px.tolist()}


def _pretty(table: Mapping[str, Any]) -> str:
    return json.dumps(table, indent=2) + "\n"
