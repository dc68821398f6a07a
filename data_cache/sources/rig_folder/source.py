"""The rig folder as a data set: `rig.json`, `frames.jsonl`, images and LiDAR; RIG_FOLDER.md describes it."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import Bool, UInt8

from data_cache.errors import FrameError, SourceError
from data_cache.frames.rig import Frame, Rig, Sweep, View, make_sweep
from data_cache.sources.parsing.metadata import found_in
from data_cache.sources.parsing.points import load_points
from data_cache.sources.rig_folder.frames_jsonl import (
    FRAMES_FILE,
    SPLITS_FILE,
    FrameLine,
    Scan,
    Shot,
    read_frames,
    read_splits,
)
from data_cache.sources.rig_folder.rig_json import RIG_FILE, Calibration, load_image, read_rig


class RigFolderSource:
    """A rig folder as frames, with the ids, drives and splits that it defines.

    All metadata is checked when the folder is opened; images and LiDAR are read when asked for.

    Args:
        root: the folder that holds `rig.json`.

    Raises:
        SourceError: naming the file and the line or key, if any metadata is missing, unknown or impossible.
    """

    name = "rig_folder"

    def __init__(self, root: Path) -> None:
        for name in (RIG_FILE, FRAMES_FILE):
            if not (root / name).is_file():
                raise SourceError(
                    f"rig_folder: expected {RIG_FILE} and {FRAMES_FILE}, {found_in(root)}; pass the folder that holds"
                    " them"
                )
        self._root = root
        described = read_rig(root / RIG_FILE)
        self.rig = Rig(described.name, tuple(described.cameras))
        self._rig_digest = described.digest
        self._lines: dict[str, FrameLine] = {}
        drives: dict[str, list[str]] = {}
        for line in read_frames(root, described):
            self._lines[line.id] = line
            drives.setdefault(line.drive, []).append(line.id)
        if not drives:
            raise SourceError(f"{root / FRAMES_FILE}: expected a frame per line, found none")
        self.drives: Mapping[str, tuple[str, ...]] = {name: tuple(ids) for name, ids in drives.items()}
        self.splits: Mapping[str, tuple[str, ...]] = read_splits(root / SPLITS_FILE, self.drives)

    def frame(self, frame_id: str) -> Frame:
        """One frame; images and LiDAR are read when asked for. Raises FrameError if there is no such frame."""
        line = self._lines.get(frame_id)
        if line is None:
            raise FrameError(f"rig_folder: no frame {frame_id!r} in {self._root / FRAMES_FILE}")
        where = f"{self._root / FRAMES_FILE} line {line.number}"
        views = tuple(self._view(line.shots[name], where) if name in line.shots else None
                      for name in self.rig.camera_names)  # fmt: skip
        load_sweep = partial(_load_sweep, self._root, line.scan, where) if line.scan is not None else None
        return Frame(frame_id, views, load_sweep, world_from_ego=line.world_from_ego)

    def files(self, frame_id: str) -> Mapping[str, Path]:
        """See `data_cache.sources.base.StoredSource`."""
        line = self._lines[frame_id]
        files = {name: self._root / shot.file for name, shot in line.shots.items()}
        files |= {f"{name} mask": self._root / shot.mask for name, shot in line.shots.items() if shot.mask is not None}
        return files | ({"lidar": self._root / line.scan.file} if line.scan is not None else {})

    def metadata_sha256(self, frame_ids: Sequence[str]) -> str:
        """See `data_cache.sources.base.EditableSource`."""
        written = [self._rig_digest, *(self._lines[frame_id].digest for frame_id in frame_ids)]
        return hashlib.sha256(b"".join(written)).hexdigest()

    def _view(self, shot: Shot, where: str) -> View:
        plain = shot.calibration.lens is None
        return View(
            shot.calibration.camera,
            shot.world_from_cam,
            shot.time_ns,
            partial(_load_image, self._root, shot.file, shot.calibration, where),
            self._root / shot.file if plain else None,
            partial(_load_mask, self._root, shot.mask, shot.calibration, where) if shot.mask is not None else None,
            shot.ego_from_cam,
        )


def _load_image(
    root: Path, file: str, calibration: Calibration, where: str, at_least: tuple[int, int] | None = None
) -> UInt8[np.ndarray, "H W 3"]:
    with _listed(root, file, where) as path:
        return load_image(path, calibration, at_least)


def _load_mask(root: Path, file: str, calibration: Calibration, where: str) -> Bool[np.ndarray, "H W"]:
    # The mask is drawn on the distorted photograph, so it is undistorted, too; pixels that touch the vehicle go.
    unoccluded: Bool[np.ndarray, "H W"] = (_load_image(root, file, calibration, where) == 255).all(axis=-1)
    return unoccluded


def _load_sweep(root: Path, scan: Scan, where: str) -> Sweep:
    with _listed(root, scan.file, where) as path:
        return make_sweep(load_points(path), scan.world_from_lidar, str(path))


@contextmanager
def _listed(root: Path, file: str, where: str) -> Iterator[Path]:
    """Path of a file that is read inside the context; every error names the line that lists it."""
    path = _inside(root, file, where)
    try:
        yield path
    except FrameError as error:
        raise FrameError(f"{error}, listed in {where}") from error


def _inside(root: Path, file: str, where: str) -> Path:
    """Path of a listed file, checked: it exists, is a file, and lies in the folder even after following links."""
    path = root / file
    try:
        target = path.resolve(strict=True)
    except (OSError, RuntimeError) as error:  # RuntimeError: links in a circle
        raise FrameError(f"file missing: {path}, listed in {where}") from error
    if not target.is_relative_to(root.resolve()):
        raise FrameError(f"{where}: expected a file in {root}, found that {file} leads to {target}; copy it there")
    if not target.is_file():
        raise FrameError(f"{where}: expected a file at {path}, found something else")
    return path
