"""DDAD and other scenes in its format (DGP), read from JSON and npz files."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from data_cache.errors import FrameError, SourceError
from data_cache.frames.images import load_rgb
from data_cache.frames.rig import Camera, Frame, Rig, Sweep, View, make_sweep, pose_from_quaternion
from data_cache.sources.ddad.masks import DdadMasks, find_masks
from data_cache.sources.parsing.metadata import below, fields_of, found_in, read_json
from data_cache.sources.parsing.points import load_points

CAMERAS = ("CAMERA_01", "CAMERA_06", "CAMERA_08", "CAMERA_09", "CAMERA_07", "CAMERA_05")
LIDAR = "LIDAR"
SPLIT_KEYS = {"0": "train", "1": "val", "2": "test"}  # the enum DatasetSplit of DGP


@dataclass(frozen=True, slots=True)
class _Datum:
    """One recording of a sensor for a sample; `size` is (H, W) of an image, (0, 0) for a point cloud."""

    file: str
    stamp_us: int
    size: tuple[int, int]
    wxyz: tuple[float, float, float, float]
    xyz_m: tuple[float, float, float]

    def world_from_sensor(self) -> Float[np.ndarray, "4 4"]:
        return pose_from_quaternion(self.wxyz, self.xyz_m)


@dataclass(frozen=True, slots=True)
class _Sample:
    """A key time: its time stamp, its calibration, and its data by sensor."""

    folder: Path
    stamp_us: int
    calibration: "_Calibration"
    data: Mapping[str, _Datum]

    def world_from_ego(self) -> Float[np.ndarray, "4 4"] | None:
        for name in (LIDAR, *CAMERAS):
            if name in self.data and name in self.calibration.ego_from_sensor:
                pose: np.ndarray = self.data[name].world_from_sensor() @ np.linalg.inv(
                    self.calibration.ego_from_sensor[name]
                )
                return pose
        return None


@dataclass(frozen=True, slots=True)
class _Calibration:
    """Intrinsics by camera, and poses of the sensors on the vehicle."""

    K_px: Mapping[str, Float[np.ndarray, "3 3"]]
    ego_from_sensor: Mapping[str, Float[np.ndarray, "4 4"]]


class DdadSource:
    """DDAD as frames; ids are `SCENE/STAMP`: the scene folder and the sample's time stamp, which names its LiDAR file.

    Args:
        root: the folder that holds `ddad.json` (with train and val splits); or a folder of DGP scenes or a single
            scene (without splits).
        masks: the folder of self-occlusion masks; None to take `ddad_mask` in or beside `root`, if it exists.

    Raises:
        SourceError: if there is no scene, or if the metadata of a scene or the masks cannot be used.
    """

    name = "ddad"

    def __init__(self, root: Path, masks: Path | None = None) -> None:
        folder = masks or find_masks(root)
        self._masks = DdadMasks(folder, CAMERAS) if folder is not None else None
        self.splits: Mapping[str, tuple[str, ...]] = {}
        if (root / "ddad.json").is_file():
            scenes, self.splits = _listed_scenes(root)
        else:
            scenes = _scenes_in(root)
        self._samples: dict[str, _Sample] = {}
        drives: dict[str, tuple[str, ...]] = {}
        for drive, path in scenes.items():
            samples = {f"{drive}/{sample.stamp_us}": sample for sample in _read_scene(path)}
            drives[drive] = tuple(samples)
            self._samples.update(samples)
        self.rig = Rig(self.name, CAMERAS)
        self.drives: Mapping[str, tuple[str, ...]] = drives

    @property
    def published_ids(self) -> Mapping[str, str]:
        """See `data_cache.sources.base.PublishedSource`: SurroundDepth's lists use the time stamps of CAMERA_01."""
        return {
            Path(sample.data[CAMERAS[0]].file).stem: frame_id
            for frame_id, sample in self._samples.items()
            if CAMERAS[0] in sample.data
        }

    def frame(self, frame_id: str) -> Frame:
        """One frame; images and LiDAR are read when asked for.

        Raises:
            FrameError: if there is no such frame, or the calibration or pose of a camera is not finite.
        """
        sample = self._samples.get(frame_id)
        if sample is None:
            raise FrameError(f"ddad: no frame {frame_id!r}; ids look like 000187/15616458251018358")
        views = tuple(self._view(frame_id, sample, name) if name in sample.data else None for name in CAMERAS)
        sweep = sample.data.get(LIDAR)
        if sweep is None:
            return Frame(frame_id, views, world_from_ego=sample.world_from_ego())
        load_sweep = partial(_load_sweep, sample.folder / sweep.file, sweep.world_from_sensor())
        return Frame(frame_id, views, load_sweep, world_from_ego=sample.world_from_ego())

    def _view(self, frame_id: str, sample: _Sample, name: str) -> View:
        datum = sample.data[name]
        scene = frame_id.partition("/")[0]
        return View(
            Camera(name, sample.calibration.K_px[name], width_px=datum.size[1], height_px=datum.size[0]),
            datum.world_from_sensor(),
            _time_ns(datum.stamp_us),
            partial(load_rgb, sample.folder / datum.file, datum.size),
            sample.folder / datum.file,
            self._masks.loader(scene, name, datum.size) if self._masks is not None else None,
            sample.calibration.ego_from_sensor.get(name),
        )

    def files(self, frame_id: str) -> Mapping[str, Path]:
        """See `data_cache.sources.base.StoredSource`."""
        sample = self._samples[frame_id]
        return {name: sample.folder / datum.file for name, datum in sample.data.items()}


def _listed_scenes(root: Path) -> tuple[dict[str, Path], dict[str, tuple[str, ...]]]:
    """Scene files by folder name, and folder names by split, as `ddad.json` lists them."""
    path = root / "ddad.json"
    scenes: dict[str, Path] = {}
    splits: dict[str, tuple[str, ...]] = {}
    with fields_of(path):
        for key, entry in read_json(path)["scene_splits"].items():
            files = [root / below(name) for name in entry["filenames"]]
            splits[SPLIT_KEYS.get(key, key)] = tuple(file.parent.name for file in files)
            for file in files:
                if scenes.setdefault(file.parent.name, file) != file:
                    raise SourceError(
                        f"{path}: expected one file per scene, found {scenes[file.parent.name]} and {file}"
                    )
    missing = sorted(str(file) for file in scenes.values() if not file.is_file())
    if missing:
        raise SourceError(
            f"{path} lists {len(scenes)} scenes, {len(missing)} of them are missing: {missing[0]}, ...;"
            " unpack the whole archive, or pass a folder of scenes without ddad.json"
        )
    if not scenes:
        raise SourceError(f"{path}: expected scenes under scene_splits, found none; fetch the file again")
    return scenes, splits


def _scenes_in(root: Path) -> dict[str, Path]:
    """Scene files by folder name, in a folder of scenes or a single scene."""
    files = sorted([*root.glob("scene_*.json"), *root.glob("*/scene_*.json")])
    if not files:
        raise SourceError(
            f"ddad: expected ddad.json, or DGP scenes (scene_*.json, */scene_*.json), {found_in(root)};"
            " pass the folder ddad_train_val of the archive"
        )
    scenes: dict[str, Path] = {}
    for file in files:
        drive = file.parent.resolve().name
        if drive in scenes:
            raise SourceError(f"ddad: expected one scene file per folder, found {scenes[drive]} and {file}; remove one")
        scenes[drive] = file
    return scenes


def _read_scene(path: Path) -> list[_Sample]:
    """Samples of a scene in time order."""
    with fields_of(path):
        scene = read_json(path)
        data = {datum["key"]: datum for datum in scene["data"]}
        keys = {below(sample["calibration_key"]) for sample in scene["samples"]}
    calibrations = {key: _read_calibration(path.parent / "calibration" / f"{key}.json") for key in keys}
    with fields_of(path):
        samples = [
            _Sample(
                path.parent,
                _stamp_us(sample["id"]["timestamp"]),
                calibrations[sample["calibration_key"]],
                # A key without a datum is a sensor that the sample lacks, as in tiny and trimmed releases.
                _sensor_data([data[key] for key in sample["datum_keys"] if key in data]),
            )
            for sample in scene["samples"]
        ]
    if len({sample.stamp_us for sample in samples}) != len(samples) or not samples:
        raise SourceError(f"{path}: expected samples, each with its own time stamp, found {len(samples)} samples")
    for sample in samples:
        uncalibrated = [name for name in CAMERAS if name in sample.data and name not in sample.calibration.K_px]
        if uncalibrated:
            raise SourceError(
                f"{path}: sample {sample.stamp_us}: expected a calibration for {uncalibrated[0]}, found none"
            )
    return sorted(samples, key=lambda sample: sample.stamp_us)


def _read_calibration(path: Path) -> _Calibration:
    with fields_of(path):
        calibration = read_json(path)
        names = calibration["names"]
        K_px = {
            name: _intrinsics(lens)
            for name, lens in zip(names, calibration["intrinsics"], strict=True)
            if name in CAMERAS
        }
        # Only point clouds need the poses of the sensors on the vehicle; trimmed scenes may lack them.
        ego_from_sensor = {
            name: _pose(pose)
            for name, pose in zip(names, calibration.get("extrinsics", ()), strict=False)
            if name in (*CAMERAS, LIDAR)
        }
        return _Calibration(K_px, ego_from_sensor)


def _pose(pose: Mapping[str, Mapping[str, float]]) -> Float[np.ndarray, "4 4"]:
    rotation, translation = pose["rotation"], pose["translation"]
    w, x, y, z = (float(rotation[key]) for key in ("qw", "qx", "qy", "qz"))
    x_m, y_m, z_m = (float(translation[key]) for key in "xyz")
    return pose_from_quaternion((w, x, y, z), (x_m, y_m, z_m))


def _intrinsics(lens: Mapping[str, float]) -> Float[np.ndarray, "3 3"]:
    # Nothing is added to cx, cy. The official loader makes its depth maps by truncating u, v from this very matrix to
    # whole numbers, and published DDAD results rest on those maps; without an offset, the floor of our u, v is the
    # same pixel.
    return np.array([[lens["fx"], lens["skew"], lens["cx"]], [0, lens["fy"], lens["cy"]], [0, 0, 1]], dtype=np.float64)


def _sensor_data(data: list[Mapping[str, Any]]) -> dict[str, _Datum]:
    wanted = {*CAMERAS, LIDAR}
    return {datum["id"]["name"]: _datum(datum) for datum in data if datum["id"]["name"] in wanted}


def _datum(datum: Mapping[str, Any]) -> _Datum:
    is_lidar = datum["id"]["name"] == LIDAR
    content = datum["datum"]["point_cloud" if is_lidar else "image"]
    rotation, translation = content["pose"]["rotation"], content["pose"]["translation"]
    # The official loader rounds poses to float32. That moves a point by 0.1 mm at most, but a few points per image
    # change pixels, so only the same rounding gives the same ground truth.
    w, x, y, z = (float(np.float32(rotation[key])) for key in ("qw", "qx", "qy", "qz"))
    x_m, y_m, z_m = (float(np.float32(translation[key])) for key in ("x", "y", "z"))
    return _Datum(
        below(content["filename"]),
        _stamp_us(datum["id"]["timestamp"]),
        (0, 0) if is_lidar else (int(content["height"]), int(content["width"])),
        (w, x, y, z),
        (x_m, y_m, z_m),
    )


def _stamp_us(text: str) -> int:
    """A JSON time stamp in microseconds since 1970, as the file names have it."""
    return (datetime.fromisoformat(text) - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)


def _time_ns(stamp_us: int) -> int:
    # Some scenes have stamps ten times too large (the year 2464 for 2019), which in ns would not fit an int64.
    return stamp_us * (100 if stamp_us >= 10**16 else 1000)


def _load_sweep(path: Path, world_from_lidar: Float[np.ndarray, "4 4"]) -> Sweep:
    return make_sweep(load_points(path, "data"), world_from_lidar, str(path))
