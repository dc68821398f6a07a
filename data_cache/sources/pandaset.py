"""PandaSet in its original layout: one folder per sequence, LiDAR as pandas pickles in world coordinates."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from data_cache.errors import FrameError, SourceError
from data_cache.frames.images import load_rgb
from data_cache.frames.rig import Camera, Frame, Rig, Sweep, View, make_sweep, pose_from_quaternion
from data_cache.sources.base import LIDARS, MECHANICAL
from data_cache.sources.parsing.metadata import fields_of, found_in, read_json
from data_cache.sources.parsing.pickles import load_columns

CAMERAS = ("front_camera", "front_right_camera", "right_camera", "back_camera", "left_camera", "front_left_camera")
IMAGE_SIZE = (1080, 1920)  # of every PandaSet camera; the metadata does not state it
EGO_FROM_OURS = np.array([[0.0, -1, 0, 0], [1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
"""PandaSet's vehicle frame is x right, y forward, z up, on the ground below the LiDAR; ours is x forward, y left."""
LIDAR_NUMBERS = dict(zip(LIDARS, ((0,), (1,), (0, 1)), strict=True))
"""Values of column d by LiDAR: 0 is the mechanical 360-degree sensor, 1 the solid-state one that faces forward."""


@dataclass(frozen=True, eq=False)
class _Track:
    """One camera throughout a sequence."""

    K_px: Float[np.ndarray, "3 3"]
    poses: Float[np.ndarray, "T 7"]  # quaternion w, x, y, z, then position x, y, z in metres
    time_ns: Int[np.ndarray, " T"]


@dataclass(frozen=True, eq=False)
class _Sequence:
    """The metadata of one sequence."""

    folder: Path
    tracks: Mapping[str, _Track]
    sweep_count: int
    ego_poses: Float[np.ndarray, "T 7"]  # of the vehicle at each sweep, as in _Track; empty where the file is missing

    @property
    def frame_count(self) -> int:
        return max([self.sweep_count, *(len(track.time_ns) for track in self.tracks.values())])


class PandasetSource:
    """PandaSet as frames; ids are `sequence/NN`, the file stem. The data set defines no splits.

    Args:
        root: the folder that holds the sequences (`root/002/camera/...`).
        lidar: one of LIDARS; the sensors whose points a sweep holds.

    Raises:
        SourceError: if `root` holds no sequence, or the metadata of one cannot be used.
    """

    name = "pandaset"

    def __init__(self, root: Path, lidar: str = MECHANICAL) -> None:
        if not root.is_dir() or _is_sequence(root):
            raise SourceError(
                f"pandaset: expected a folder of sequences (NNN/camera, NNN/lidar), {found_in(root)};"
                " pass the folder above the sequences"
            )
        folders = sorted(path for path in root.iterdir() if _is_sequence(path))
        if not folders:
            raise SourceError(
                f"pandaset: expected sequences (NNN/camera/front_camera/poses.json), {found_in(root)};"
                " pass the folder that holds 001, 002, ..."
            )
        self.rig = Rig(self.name, CAMERAS)
        self._lidar = lidar
        self._sequences = {folder.name: _read_sequence(folder) for folder in folders}
        self.drives: Mapping[str, tuple[str, ...]] = {
            name: tuple(f"{name}/{index:02d}" for index in range(sequence.frame_count))
            for name, sequence in self._sequences.items()
        }
        self.splits: Mapping[str, tuple[str, ...]] = {}

    def frame(self, frame_id: str) -> Frame:
        """One frame; images and LiDAR are read when asked for.

        Raises:
            FrameError: if there is no such frame, or its calibration or a pose is not finite.
        """
        drive, _, stem = frame_id.partition("/")
        if frame_id not in self.drives.get(drive, ()):
            raise FrameError(f"pandaset: no frame {frame_id!r}; ids look like 002/07")
        sequence, index = self._sequences[drive], int(stem)
        views = tuple(_view(sequence, name, index) for name in CAMERAS)
        ego = sequence.ego_poses[index : index + 1]
        world_from_ego = _pose(ego[0]) @ EGO_FROM_OURS if len(ego) else None
        if index >= sequence.sweep_count:
            return Frame(frame_id, views, world_from_ego=world_from_ego)
        load_sweep = partial(_load_sweep, _sweep_file(sequence, index), self._lidar)
        return Frame(frame_id, views, load_sweep, world_from_ego=world_from_ego)

    def files(self, frame_id: str) -> Mapping[str, Path]:
        """See `data_cache.sources.base.StoredSource`."""
        drive, _, stem = frame_id.partition("/")
        sequence, index = self._sequences[drive], int(stem)
        files = {
            name: _image_file(sequence, name, index)
            for name, track in sequence.tracks.items()
            if index < len(track.time_ns)
        }
        return files | ({"lidar": _sweep_file(sequence, index)} if index < sequence.sweep_count else {})


def _image_file(sequence: _Sequence, name: str, index: int) -> Path:
    return sequence.folder / "camera" / name / f"{index:02d}.jpg"


def _sweep_file(sequence: _Sequence, index: int) -> Path:
    return sequence.folder / "lidar" / f"{index:02d}.pkl.gz"


def _is_sequence(folder: Path) -> bool:
    return (folder / "camera").is_dir() or (folder / "lidar").is_dir()


def _read_sequence(folder: Path) -> _Sequence:
    present = [name for name in CAMERAS if (folder / "camera" / name).is_dir()]
    tracks = {name: _read_track(folder / "camera" / name) for name in present}
    stamps = folder / "lidar" / "timestamps.json"
    sweep_count = len(_times_ns(stamps)) if stamps.parent.is_dir() else 0
    ego = folder / "lidar" / "poses.json"
    sequence = _Sequence(folder, tracks, sweep_count, _read_poses(ego) if ego.is_file() else np.empty((0, 7)))
    if sequence.frame_count == 0:
        raise SourceError(f"pandaset: expected frames in {folder}, found none; complete or remove this sequence")
    return sequence


def _read_track(folder: Path) -> _Track:
    with fields_of(folder / "intrinsics.json"):
        lens = read_json(folder / "intrinsics.json")
        # The devkit projects onto pixels centred at integers, as OpenCV calibrates them; ours are centred at
        # half-integers.
        K_px = np.array(
            [[lens["fx"], 0, lens["cx"] + 0.5], [0, lens["fy"], lens["cy"] + 0.5], [0, 0, 1]], dtype=np.float64
        )
    poses = _read_poses(folder / "poses.json")
    time_ns = _times_ns(folder / "timestamps.json")
    if len(poses) != len(time_ns):
        raise SourceError(f"{folder}: expected as many poses as time stamps, found {len(poses)} and {len(time_ns)}")
    return _Track(K_px, poses, time_ns)


def _read_poses(path: Path) -> Float[np.ndarray, "T 7"]:
    with fields_of(path):
        return np.array([_pose_row(pose) for pose in read_json(path)], dtype=np.float64).reshape(-1, 7)


def _pose(row: Float[np.ndarray, " 7"]) -> Float[np.ndarray, "4 4"]:
    w, x, y, z, *position_m = row.tolist()
    return pose_from_quaternion((w, x, y, z), (position_m[0], position_m[1], position_m[2]))


def _pose_row(pose: Mapping[str, Mapping[str, float]]) -> list[float]:
    return [pose["heading"][key] for key in "wxyz"] + [pose["position"][key] for key in "xyz"]


def _times_ns(path: Path) -> Int[np.ndarray, " T"]:
    with fields_of(path):
        times_s: list[Any] = list(read_json(path))
        # Seconds since 1970 in a float64 are precise to a quarter of a microsecond: nanoseconds would only be noise.
        return np.array([round(time_s * 1e6) * 1000 for time_s in times_s], dtype=np.int64)


def _view(sequence: _Sequence, name: str, index: int) -> View | None:
    track = sequence.tracks.get(name)
    if track is None or index >= len(track.time_ns):
        return None
    return View(
        Camera(name, track.K_px, width_px=IMAGE_SIZE[1], height_px=IMAGE_SIZE[0]),
        _pose(track.poses[index]),
        int(track.time_ns[index]),
        partial(load_rgb, _image_file(sequence, name, index), IMAGE_SIZE),
        _image_file(sequence, name, index),
    )


def _load_sweep(path: Path, lidar: str) -> Sweep:
    table = load_columns(path, ("x", "y", "z", "d"))
    points = table[np.isin(table[:, 3], LIDAR_NUMBERS[lidar])]
    # The points are stored in world coordinates, so the pose of the sensor is already applied.
    return make_sweep(points, np.eye(4), f"{path} (lidar {lidar}, column d)")
