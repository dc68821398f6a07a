"""nuScenes keyframes, read from its JSON tables."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from data_cache.errors import FrameError, SourceError
from data_cache.frames.images import load_rgb
from data_cache.frames.rig import Camera, Frame, Rig, Sweep, View, make_sweep, pose_from_quaternion
from data_cache.sources.parsing.metadata import below, fields_of, found_in, read_json, text
from data_cache.sources.parsing.points import load_points

CAMERAS = ("CAM_FRONT", "CAM_FRONT_RIGHT", "CAM_BACK_RIGHT", "CAM_BACK", "CAM_BACK_LEFT", "CAM_FRONT_LEFT")
LIDAR = "LIDAR_TOP"
LIDAR_COLUMNS = 5  # x, y, z, intensity, ring; float32


@dataclass(frozen=True, slots=True)
class _Pose:
    """A rotation (w, x, y, z) and a translation in metres; compact, because a quarter of a million are kept."""

    wxyz: tuple[float, float, float, float]
    xyz_m: tuple[float, float, float]

    def matrix(self) -> Float[np.ndarray, "4 4"]:
        return pose_from_quaternion(self.wxyz, self.xyz_m)


@dataclass(frozen=True, slots=True)
class _Calibration:
    """A sensor on a vehicle: its channel, its pose in the ego frame and, for a camera, its 3 x 3 intrinsics."""

    channel: str
    ego_from_sensor: _Pose
    intrinsic: Any


@dataclass(frozen=True, slots=True)
class _Datum:
    """One recording of a sensor: for a keyframe or, of the LiDAR, between two keyframes."""

    file: str
    time_us: int
    size: tuple[int, int]
    calibration: _Calibration
    ego_pose_token: str


class NuscenesSource:
    """nuScenes as frames; ids are sample tokens, drives are scenes.

    The splits are the official ones (train, val, test, mini_train, mini_val), restricted to the scenes in the tables;
    a split without scenes is not listed.

    Args:
        root: the folder that holds `v1.0-*`, `samples` and so on.
        version: the table folder; may be empty if there is only one.
        nearby_sweep_s: a keyframe without LiDAR takes the nearest sweep of its scene within this many seconds, with the
            pose of the sweep's own time; 0 for none.

    Raises:
        SourceError: if there is no table folder, there are several and `version` is empty, or a table cannot be used.
    """

    name = "nuscenes"

    def __init__(self, root: Path, version: str = "", nearby_sweep_s: float = 0.0) -> None:
        self.rig = Rig(self.name, CAMERAS)
        self._root = root
        tables = root / _choose_version(root, version)
        calibrations = _read_calibrations(tables)
        samples = _read_samples(tables)
        self.drives: Mapping[str, tuple[str, ...]] = {
            scene: tuple(times_us) for scene, times_us in samples.items() if times_us
        }
        self.splits: Mapping[str, tuple[str, ...]] = _present_splits(self.drives)
        self._data, sweeps = _read_data(tables, calibrations, samples, with_sweeps=nearby_sweep_s > 0)
        for scene, times_us in samples.items():
            for token, time_us in times_us.items():
                nearest = _nearest(sweeps[scene], time_us, nearby_sweep_s)
                if nearest is not None:
                    self._data[token].setdefault(LIDAR, nearest)
        self._ego_poses = _read_ego_poses(tables, self._data)

    def frame(self, frame_id: str) -> Frame:
        """One keyframe; images and LiDAR are read when asked for.

        Raises:
            FrameError: if there is no such sample, or the calibration or pose of a camera cannot be used.
        """
        data = self._data.get(frame_id)
        if data is None:
            raise FrameError(f"nuscenes: no sample with token {frame_id!r} in the tables")
        views = tuple(self._view(data[name]) if name in data else None for name in CAMERAS)
        first = next((data[name] for name in (LIDAR, *CAMERAS) if name in data), None)
        world_from_ego = self._ego_poses[first.ego_pose_token].matrix() if first is not None else None
        sweep = data.get(LIDAR)
        if sweep is None:
            return Frame(frame_id, views, world_from_ego=world_from_ego)
        load_sweep = partial(_load_sweep, self._root / sweep.file, self._world_from_sensor(sweep))
        return Frame(frame_id, views, load_sweep, world_from_ego=world_from_ego)

    def files(self, frame_id: str) -> Mapping[str, Path]:
        """See `data_cache.sources.base.StoredSource`."""
        return {channel: self._root / datum.file for channel, datum in self._data[frame_id].items()}

    def _view(self, datum: _Datum) -> View:
        return View(
            Camera(
                datum.calibration.channel,
                _intrinsics(datum.calibration),
                width_px=datum.size[1],
                height_px=datum.size[0],
            ),
            self._world_from_sensor(datum),
            datum.time_us * 1000,
            partial(load_rgb, self._root / datum.file, datum.size),
            self._root / datum.file,
            ego_from_cam=datum.calibration.ego_from_sensor.matrix(),
        )

    def _world_from_sensor(self, datum: _Datum) -> Float[np.ndarray, "4 4"]:
        world_from_ego = self._ego_poses[datum.ego_pose_token].matrix()
        with np.errstate(invalid="ignore"):  # View and Sweep refuse a pose that is not finite, and name it
            pose: np.ndarray = world_from_ego @ datum.calibration.ego_from_sensor.matrix()
        return pose


def _choose_version(root: Path, version: str) -> str:
    versions = sorted(path.name for path in root.glob("v1.0-*") if path.is_dir())
    if not versions:
        hint = "the folder above the tables" if (root / "sample_data.json").exists() else "the folder that holds v1.0-*"
        raise SourceError(f"nuscenes: expected a table folder v1.0-*, {found_in(root)}; pass {hint}")
    if version and version not in versions:
        raise SourceError(f"nuscenes: expected the version {version!r} in {root}, found {', '.join(versions)}")
    if not version and len(versions) > 1:
        raise SourceError(
            f"nuscenes: expected one table folder in {root}, found {', '.join(versions)}; set data.version to one"
        )
    return version or versions[0]


def _read_calibrations(tables: Path) -> dict[str, _Calibration]:
    with fields_of(tables / "sensor.json"):
        channels = {row["token"]: text(row["channel"]) for row in read_json(tables / "sensor.json")}
    with fields_of(tables / "calibrated_sensor.json"):
        return {
            row["token"]: _Calibration(channels[row["sensor_token"]], _pose(row), row["camera_intrinsic"])
            for row in read_json(tables / "calibrated_sensor.json")
        }


def _read_samples(tables: Path) -> dict[str, dict[str, int]]:
    """For each scene, its samples in time order: time stamp in microseconds by token."""
    with fields_of(tables / "scene.json"):
        names = {text(row["token"]): text(row["name"]) for row in read_json(tables / "scene.json")}
    with fields_of(tables / "sample.json"):
        rows = sorted(
            (int(row["timestamp"]), text(row["token"]), names[row["scene_token"]])
            for row in read_json(tables / "sample.json")
        )
    if not rows:
        raise SourceError(f"{tables / 'sample.json'}: expected samples, found none; fetch the tables again")
    samples: dict[str, dict[str, int]] = {name: {} for name in sorted(names.values())}
    for time_us, token, name in rows:
        samples[name][token] = time_us
    return samples


def _read_data(
    tables: Path,
    calibrations: Mapping[str, _Calibration],
    samples: Mapping[str, Mapping[str, int]],
    *,
    with_sweeps: bool,
) -> tuple[dict[str, dict[str, _Datum]], dict[str, list[_Datum]]]:
    """The recordings of each sample by channel, and the LiDAR sweeps between samples by scene."""
    scenes = {token: scene for scene, tokens in samples.items() for token in tokens}
    data: dict[str, dict[str, _Datum]] = {token: {} for token in scenes}
    sweeps: dict[str, list[_Datum]] = {scene: [] for scene in samples}
    wanted = {*CAMERAS, LIDAR}

    # The full set has 2.6 million rows, and one in eleven is wanted: rows are filtered while the file is parsed, so
    # that the others are never all in memory.
    def visit(row: dict[str, Any]) -> None:
        calibration = calibrations[row["calibrated_sensor_token"]]
        if row["is_key_frame"] and calibration.channel in wanted:
            data[row["sample_token"]][calibration.channel] = _datum(row, calibration)
        # In trimmed tables a sweep may belong to a sample, and so a scene, that is missing.
        elif with_sweeps and calibration.channel == LIDAR and row["sample_token"] in scenes:
            sweeps[scenes[row["sample_token"]]].append(_datum(row, calibration))

    with fields_of(tables / "sample_data.json"):
        read_json(tables / "sample_data.json", visit)
    return data, sweeps


def _nearest(sweeps: Sequence[_Datum], time_us: int, within_s: float) -> _Datum | None:
    nearest = min(sweeps, key=lambda sweep: abs(sweep.time_us - time_us), default=None)
    return nearest if nearest is not None and abs(nearest.time_us - time_us) <= 1e6 * within_s else None


def _datum(row: Mapping[str, Any], calibration: _Calibration) -> _Datum:
    return _Datum(
        below(row["filename"]),
        int(row["timestamp"]),
        (int(row["height"]), int(row["width"])),
        calibration,
        text(row["ego_pose_token"]),
    )


def _read_ego_poses(tables: Path, data: Mapping[str, Mapping[str, _Datum]]) -> dict[str, _Pose]:
    wanted = {datum.ego_pose_token for by_channel in data.values() for datum in by_channel.values()}
    poses: dict[str, _Pose] = {}

    def visit(row: dict[str, Any]) -> None:
        if row["token"] in wanted:
            poses[row["token"]] = _pose(row)

    path = tables / "ego_pose.json"
    with fields_of(path):
        read_json(path, visit)
    missing = wanted - poses.keys()
    if missing:
        raise SourceError(
            f"{path}: expected a pose for each of {len(wanted)} keyframe files, found {len(poses)};"
            f" missing {min(missing)}, ...; fetch the tables again"
        )
    return poses


def _pose(row: Mapping[str, Any]) -> _Pose:
    w, x, y, z = map(float, row["rotation"])
    x_m, y_m, z_m = map(float, row["translation"])
    return _Pose((w, x, y, z), (x_m, y_m, z_m))


def _present_splits(drives: Mapping[str, object]) -> dict[str, tuple[str, ...]]:
    # Scene numbers of the official lists, from `nuscenes/utils/splits.py` of nuscenes-devkit 1.2.0.
    listed = (resources.files("data_cache.sources") / "nuscenes_scenes.json").read_text(encoding="utf-8")
    official: dict[str, list[int]] = json.loads(listed)
    splits = {
        split: tuple(name for name in (f"scene-{number:04d}" for number in numbers) if name in drives)
        for split, numbers in official.items()
    }
    return {split: names for split, names in splits.items() if names}


def _intrinsics(calibration: _Calibration) -> Float[np.ndarray, "3 3"]:
    try:
        K_px = np.array(calibration.intrinsic, dtype=np.float64).reshape(3, 3)
    except (TypeError, ValueError) as error:
        raise FrameError(
            f"camera {calibration.channel}: expected 3 x 3 intrinsics, found {calibration.intrinsic!r}"
        ) from error
    # The devkit projects onto pixels centred at integers, as OpenCV calibrates them; ours are centred at half-integers.
    K_px[:2, 2] += 0.5
    return K_px


def _load_sweep(path: Path, world_from_lidar: Float[np.ndarray, "4 4"]) -> Sweep:
    return make_sweep(load_points(path, bin_columns=LIDAR_COLUMNS), world_from_lidar, str(path))
