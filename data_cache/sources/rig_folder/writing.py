"""Export of any source to a rig folder that reads back equal."""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from PIL import Image

from data_cache.errors import FrameError, SourceError
from data_cache.files import PARTIAL, fsync, open_regular, write_atomically, write_error
from data_cache.frames.images import BYTE_LIMIT
from data_cache.frames.rig import Camera, Frame, Rig, View
from data_cache.frames.undistort import Lens
from data_cache.sources.base import Photograph, RecordedSource, Source
from data_cache.sources.rig_folder.frames_jsonl import FRAMES_FILE, SPLITS_FILE
from data_cache.sources.rig_folder.rig_json import FORMAT, RIG_FILE


@dataclass(frozen=True)
class RigExport:
    """Counts of frames in the folder, images copied and encoded now, and by frame id why frames were left out.

    `continued_count` of the frames were there from an export that was stopped.
    """

    frame_count: int
    copied_count: int
    encoded_count: int
    left_out: Mapping[str, str]
    continued_count: int = 0


@dataclass(frozen=True, eq=False)
class _Calibration:
    """What `rig.json` says of a camera's image files."""

    camera: Camera
    lens: Lens | None


def export_rig(
    source: Source, frame_ids: Iterable[str], out: Path, on_frame: Callable[[], object] = lambda: None
) -> RigExport:
    """Write frames of a source as a rig folder that reads back equal: poses, intrinsics, points, images, masks, stamps.

    An image file is copied if its source can decode it; an image without a file of its own is written as PNG. The
    photographs of a `RecordedSource` are copied as they are, with their lens in `rig.json`. A frame that cannot be
    read, or has no camera, is left out. `rig.json` is written last: a folder without it is unfinished. The same command
    continues an unfinished folder of a `RecordedSource`, and starts any other again. Equal self-occlusion masks share a
    file; points are stored as float32 if that is what they are.

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
    chosen = [(drive, one) for drive, ids in source.drives.items() for one in ids if one in wanted]
    recorded = source if isinstance(source, RecordedSource) else None
    unfinished, begun = _begin(out, recorded.identity if recorded is not None else None)
    cameras: dict[str, _Calibration] = {}
    left_out: dict[str, str] = {}
    drives: dict[str, None] = {}
    masks: dict[tuple[str, bytes], str] = {}
    copied: list[bool] = []
    count = 0
    try:
        with unfinished.open("a", encoding="utf-8") as stream:
            for number, (drive, frame_id) in enumerate(chosen):
                try:
                    frame = source.frame(frame_id)
                    photographs = recorded.photographs(frame_id) if recorded is not None else {}
                    if frame_id not in begun:
                        line, images = _written(frame, photographs, drive, out, number, cameras, masks)
                        stream.write(f"{json.dumps(line)}\n")
                        stream.flush()
                        copied += [image.is_copy for image in images]
                    else:
                        _calibrations(frame, photographs, cameras)
                except FrameError as error:
                    left_out[frame_id] = str(error)
                else:
                    count += 1
                    drives[drive] = None
                on_frame()
        if not count:
            reason = f"; the first: {next(iter(left_out.values()))}" if left_out else ""
            raise SourceError(
                f"{source.name}: expected frames to export, found that none of {len(left_out)} can be read{reason}"
            )
        fsync(unfinished)
        unfinished.replace(out / FRAMES_FILE)
    except OSError as error:
        raise write_error(error, unfinished) from error
    splits = {name: present for name, of in source.splits.items() if (present := [d for d in of if d in drives])}
    if splits:
        write_atomically(out / SPLITS_FILE, _pretty(splits))
    mounts = recorded.mounts if recorded is not None else {}
    write_atomically(out / RIG_FILE, _pretty(_rig_table(source.rig, cameras, mounts)))
    return RigExport(count, sum(copied), len(copied) - sum(copied), left_out, len(begun))


def _begin(out: Path, identity: str | None) -> tuple[Path, frozenset[str]]:
    """The file of lines to append to, and the ids that an export of this identity has finished; else none."""
    unfinished = out / f"{FRAMES_FILE}.{(identity or 'new')[:16]}{PARTIAL}"
    try:
        out.mkdir(parents=True, exist_ok=True)
        for other in out.glob(f"{FRAMES_FILE}.*{PARTIAL}"):
            if identity is None or other != unfinished:
                other.unlink()
        if not unfinished.exists():
            return unfinished, frozenset()
        done, size = set(), 0
        for data in _whole_lines(unfinished):
            done.add(str(json.loads(data)["id"]))
            size += len(data)
        os.truncate(unfinished, size)
    except OSError as error:
        raise write_error(error, unfinished) from error
    return unfinished, frozenset(done)


def _whole_lines(path: Path) -> Iterator[bytes]:
    """Lines up to the first that a killed process left unfinished."""
    with path.open("rb") as stream:
        for data in stream:
            if not data.endswith(b"}\n"):
                return
            yield data


@dataclass(frozen=True)
class _Image:
    """An image that was read: whether its file is copied unchanged, and how to write it."""

    is_copy: bool
    suffix: str
    write: Callable[[Path], object]


def _calibrations(
    frame: Frame, photographs: Mapping[str, Photograph], cameras: dict[str, _Calibration]
) -> list[_Calibration]:
    """Of each view, what its image file is calibrated as; `cameras` keeps the first of each name, for `rig.json`.

    Raises:
        SourceError: if a camera changes its image size.
    """
    found = []
    for view in frame.views:
        if view is None:
            continue
        name, photograph = view.camera.name, photographs.get(view.camera.name)
        one = _Calibration(photograph.camera, photograph.lens) if photograph else _Calibration(view.camera, None)
        first = cameras.setdefault(name, one).camera
        if (first.width_px, first.height_px) != (one.camera.width_px, one.camera.height_px):
            raise SourceError(
                f"{frame.id}: camera {name}: expected one image size per vehicle, found {one.camera.width_px} x"
                f" {one.camera.height_px} px after {first.width_px} x {first.height_px}; export such drives separately"
            )
        found.append(one)
    return found


def _written(
    frame: Frame,
    photographs: Mapping[str, Photograph],
    drive: str,
    out: Path,
    number: int,
    cameras: dict[str, _Calibration],
    masks: dict[tuple[str, bytes], str],
) -> tuple[dict[str, Any], list[_Image]]:
    """Read all of a frame, then write its files; returns its line and its images.

    `masks` keeps the mask files written so far, by camera and by hash of the mask.
    """
    views = [view for view in frame.views if view is not None]
    if not views:
        raise FrameError(f"{frame.id}: expected at least one camera, found none")
    images = [_read_image(view, photographs.get(view.camera.name)) for view in views]
    unoccluded = [view.load_unoccluded() if view.load_unoccluded is not None else None for view in views]
    sweep = frame.load_sweep() if frame.load_sweep is not None else None
    line: dict[str, Any] = {"id": frame.id, "drive": drive, "cameras": {}}
    if frame.world_from_ego is not None:
        line["world_from_ego"] = frame.world_from_ego.tolist()
    calibrations = _calibrations(frame, photographs, cameras)
    for view, image, mask, one in zip(views, images, unoccluded, calibrations, strict=True):
        name = view.camera.name
        file = f"images/{name}/{number:06d}{image.suffix}"
        _write(out / file, image.write)
        shot = {"image": file, "time_ns": view.time_ns, "world_from_cam": view.world_from_cam.tolist()}
        if not np.array_equal(cameras[name].camera.K_px, one.camera.K_px):
            shot["intrinsics"] = one.camera.K_px.tolist()
        if mask is not None:
            key = name, hashlib.sha256(np.packbits(mask).tobytes()).digest()
            if key not in masks:
                masks[key] = f"masks/{name}/{len(masks)}.png"
                _write(out / masks[key], Image.fromarray(mask.astype(np.uint8) * 255).save)
            shot["mask"] = masks[key]
        line["cameras"][name] = shot
    if sweep is not None:
        points_m, file = _smallest(sweep.points_m), f"lidar/{number:06d}.npy"
        _write(out / file, lambda path: np.save(path, points_m, allow_pickle=False))
        line["lidar"] = {"points": file, "world_from_lidar": sweep.world_from_lidar.tolist()}
    return line, images


def _smallest(points_m: Float[np.ndarray, "N 3"]) -> Float[np.ndarray, "N 3"]:
    """The points as float32 if that is exact, as they come from most LiDARs."""
    with np.errstate(over="ignore"):
        single = points_m.astype(np.float32)
    return single if np.array_equal(single, points_m) else points_m


def _read_image(view: View, photograph: Photograph | None) -> _Image:
    if photograph is not None:
        file = photograph.read()
        return _Image(file.is_copy, file.suffix, lambda path: path.write_bytes(file.data))
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


def _rig_table(
    rig: Rig, cameras: Mapping[str, _Calibration], mounts: Mapping[str, Float[np.ndarray, "4 4"]]
) -> dict[str, Any]:
    """The content of `rig.json`; a camera that no frame has keeps its place in the ring, by name only."""
    table: dict[str, Any] = {
        "format": FORMAT,
        "name": rig.name,
        "pixel_centers": "half_integers",
        "cameras": [{"name": name} | _camera_table(cameras.get(name), mounts.get(name)) for name in rig.camera_names],
    }
    return table | ({"lidar": {"ego_from_lidar": mounts["lidar"].tolist()}} if "lidar" in mounts else {})


def _camera_table(one: _Calibration | None, mount: Float[np.ndarray, "4 4"] | None) -> dict[str, Any]:
    if one is None:
        return {}
    camera, lens = one.camera, one.lens
    table: dict[str, Any] = {
        "width": camera.width_px, "height": camera.height_px, "intrinsics": camera.K_px.tolist()
    }  # fmt: skip
    if lens is not None:
        table["distortion"] = {"model": lens.model, "coefficients": list(lens.coefficients)}
    return table | ({"ego_from_cam": mount.tolist()} if mount is not None else {})


def _pretty(table: Mapping[str, Any]) -> str:
    return json.dumps(table, indent=2) + "\n"
