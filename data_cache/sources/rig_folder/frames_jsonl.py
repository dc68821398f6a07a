"""`frames.jsonl` and `splits.json` of a rig folder, parsed and checked line by line."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from jaxtyping import Float

from data_cache.errors import SourceError
from data_cache.sources.parsing import strict_json
from data_cache.sources.parsing.metadata import decoded, read_text
from data_cache.sources.rig_folder.rig_json import RIG_FILE, Calibration, RigDescription, recalibrated, rigid
from data_cache.sources.selectors import LIST

FRAMES_FILE = "frames.jsonl"
SPLITS_FILE = "splits.json"
_LINE_LIMIT = 2**20  # bytes; six cameras with poses of their own take three thousand
_SPLITS_LIMIT = 16 * 2**20
_LATEST_NS = 2**62  # the year 2116


@dataclass(frozen=True, slots=True, eq=False)
class Shot:
    """The image of one camera in a frame: its file, time stamp, pose and calibration.

    `ego_from_cam` is None if the line gives `world_from_cam` itself: the two need not agree then.
    """

    file: str
    time_ns: int
    world_from_cam: Float[np.ndarray, "4 4"]
    calibration: Calibration
    mask: str | None
    ego_from_cam: Float[np.ndarray, "4 4"] | None


@dataclass(frozen=True, slots=True, eq=False)
class Scan:
    """The LiDAR sweep of a frame: its file and pose."""

    file: str
    world_from_lidar: Float[np.ndarray, "4 4"]


@dataclass(frozen=True, slots=True, eq=False)
class FrameLine:
    """A checked line of `frames.jsonl`."""

    number: int
    id: str
    drive: str
    has_poses: bool
    shots: Mapping[str, Shot]
    scan: Scan | None
    world_from_ego: Float[np.ndarray, "4 4"] | None
    stamps: Mapping[str, int]
    """Time stamps in the line, by owner: the frame, a camera or the LiDAR."""
    digest: bytes


def read_frames(root: Path, described: RigDescription) -> Iterator[FrameLine]:
    """The frames that `frames.jsonl` lists, each checked by itself and against those before it.

    Args:
        root: the rig folder.
        described: the content of its rig.json.

    Raises:
        SourceError: naming the line and the key.
    """
    return _in_order(_lines(root, described), str(root / FRAMES_FILE))


def _lines(root: Path, described: RigDescription) -> Iterator[FrameLine]:
    """The frames of `frames.jsonl`, each checked by itself; blank lines are skipped."""
    path = root / FRAMES_FILE
    folders: dict[PurePosixPath, None] = {}
    try:
        with path.open("rb") as stream:
            number = 0
            while data := stream.readline(_LINE_LIMIT + 1):
                number += 1
                where = f"{path} line {number}"
                if len(data) > _LINE_LIMIT:
                    raise SourceError(f"{where}: expected at most {_LINE_LIMIT} bytes, found more")
                if not data.strip():
                    continue
                line = _read_line(strict_json.parse(decoded(data, where), where), number, where, described)
                files = [shot.file for shot in line.shots.values()] + ([line.scan.file] if line.scan else [])
                files += [shot.mask for shot in line.shots.values() if shot.mask is not None]
                for folder in {PurePosixPath(file).parent for file in files} - folders.keys():
                    # Folders are checked here, once each; files are checked when they are read.
                    _require_inside(root, folder, where)
                    folders[folder] = None
                yield line
    except OSError as error:
        raise SourceError(f"{path}: cannot be read: {error.strerror or error}") from error


def _require_inside(root: Path, folder: PurePosixPath, where: str) -> None:
    try:
        target = (root / folder).resolve()
    except (OSError, RuntimeError) as error:
        raise SourceError(f"{where}: the folder {folder} cannot be followed: {error}") from error
    if not target.is_relative_to(root.resolve()):
        raise SourceError(
            f"{where}: expected files in {root}, found that {folder} leads to {target}; move the files there, or put"
            f" {RIG_FILE} and {FRAMES_FILE} beside them"
        )


def _read_line(value: Any, number: int, where: str, described: RigDescription) -> FrameLine:
    table = strict_json.fields(value, where, ("id", "drive", "cameras"), ("time_ns", "world_from_ego", "lidar"))
    frame_id = strict_json.string(table["id"], f"{where}: id")
    drive = _label(table["drive"], f"{where}: drive")
    stamps = _stamp(table, "frame", where)
    cameras = strict_json.entries(table["cameras"], f"{where}: cameras")
    if not cameras:
        raise SourceError(f"{where}: cameras: expected at least one camera, found none; leave the frame out")
    sensors: dict[str, dict[str, Any]] = {}
    for name, entry in cameras.items():
        if name not in described.cameras:
            raise SourceError(
                f"{where}: cameras: no camera {name[:80]!r} in {RIG_FILE}; it has {', '.join(described.cameras)}"
            )
        at = f"{where}: cameras.{name}"
        optional = ("time_ns", "world_from_ego", "world_from_cam", "intrinsics", "mask")
        sensors[name] = strict_json.fields(entry, at, ("image",), optional)
        stamps |= _stamp(entry, name, at)
        if name not in stamps and "frame" not in stamps:
            raise SourceError(f"{at}: expected the key 'time_ns' here or in the line, found neither")
    lidar = None
    if "lidar" in table:
        at = f"{where}: lidar"
        lidar = strict_json.fields(table["lidar"], at, ("points",), ("time_ns", "world_from_ego", "world_from_lidar"))
        stamps |= _stamp(lidar, "LiDAR", at)
    has_poses = any(key.startswith("world_from_") for entry in (table, *sensors.values(), lidar or {}) for key in entry)
    if not has_poses:
        table = table | {"world_from_ego": np.eye(4).tolist()}
    shots: dict[str, Shot] = {}
    for name, entry in sensors.items():
        at = f"{where}: cameras.{name}"
        calibration = _calibration(entry, name, described, at)
        mount = described.cameras[name].ego_from_cam
        pose = _pose(table, entry, "world_from_cam", mount, at)
        file = _relative(entry["image"], f"{at}.image")
        mask = _relative(entry["mask"], f"{at}.mask") if "mask" in entry else None
        time_ns = stamps.get(name, stamps.get("frame", 0))
        shots[name] = Shot(file, time_ns, pose, calibration, mask, None if "world_from_cam" in entry else mount)
    scan = None
    if lidar is not None:
        scan = Scan(
            _relative(lidar["points"], f"{where}: lidar.points"),
            _pose(table, lidar, "world_from_lidar", described.ego_from_lidar, f"{where}: lidar"),
        )
    ego = _world_from_ego(table, shots, scan, described, where)
    return FrameLine(number, frame_id, drive, has_poses, shots, scan, ego, stamps, strict_json.digest(value))


def _world_from_ego(
    line: Mapping[str, Any], shots: Mapping[str, Shot], scan: Scan | None, described: RigDescription, where: str
) -> Float[np.ndarray, "4 4"] | None:
    """Vehicle pose of a frame: from its line, else from its LiDAR or the first camera with a pose on the vehicle."""
    if "world_from_ego" in line:
        return rigid(line["world_from_ego"], f"{where}: world_from_ego")
    places = [(scan.world_from_lidar, described.ego_from_lidar)] if scan is not None else []
    places += [
        (shots[name].world_from_cam, camera.ego_from_cam) for name, camera in described.cameras.items() if name in shots
    ]
    for world_from_sensor, ego_from_sensor in places:
        if ego_from_sensor is not None:
            pose: np.ndarray = world_from_sensor @ np.linalg.inv(ego_from_sensor)
            return pose
    return None


def _calibration(entry: Mapping[str, Any], name: str, described: RigDescription, where: str) -> Calibration:
    calibration = described.cameras[name].calibration
    if calibration is None:
        raise SourceError(f"{where}: expected its width, height and intrinsics in {RIG_FILE}, found only its name")
    if "intrinsics" not in entry:
        return calibration
    return recalibrated(calibration, entry["intrinsics"], where, described.center_shift_px)


def _stamp(table: Mapping[str, Any], of: str, where: str) -> dict[str, int]:
    if "time_ns" not in table:
        return {}
    return {of: strict_json.whole(table["time_ns"], f"{where}: time_ns", 0, _LATEST_NS)}


def _pose(
    line: Mapping[str, Any],
    sensor: Mapping[str, Any],
    own: str,
    ego_from_sensor: Float[np.ndarray, "4 4"] | None,
    where: str,
) -> Float[np.ndarray, "4 4"]:
    """Pose of a sensor: its own, under the key `own`, or from the vehicle's pose, given for the sensor or the frame."""
    if own in sensor:
        if "world_from_ego" in sensor:
            raise SourceError(f"{where}: expected one of {own} and world_from_ego, found both")
        return rigid(sensor[own], f"{where}.{own}")
    if "world_from_ego" not in sensor and "world_from_ego" not in line:
        raise SourceError(
            f"{where}: expected a pose, found none while others of this line have one; give it {own} or world_from_ego,"
            " or give the line world_from_ego"
        )
    if ego_from_sensor is None:
        key = own.replace("world", "ego")
        raise SourceError(
            f"{where}: expected {own} here or {key} in {RIG_FILE}, found neither; say where the sensor is"
        )
    at = where if "world_from_ego" in sensor else where.rpartition(":")[0]
    given = sensor["world_from_ego"] if "world_from_ego" in sensor else line["world_from_ego"]
    pose: np.ndarray = rigid(given, f"{at}: world_from_ego") @ ego_from_sensor
    return pose


def _label(value: Any, where: str) -> str:
    """Check that text can stand in a selector: printable, without brackets or `list:` in front. Raises SourceError."""
    text = strict_json.string(value, where)
    if "[" in text or "]" in text:
        raise SourceError(
            f"{where}: expected a name without [ and ], which slice a selector, found {strict_json.shown(text)}"
        )
    if text.startswith(LIST):
        raise SourceError(
            f"{where}: expected a name that does not begin with {LIST}, which selects a file of frame ids"
        )
    return text


def _relative(value: Any, where: str) -> str:
    """Check that a path is below the folder and has forward slashes. Raises SourceError."""
    text = strict_json.string(value, where)
    path = PurePosixPath(text)
    if path.is_absolute() or ".." in path.parts or "\\" in text or text[1:2] == ":" or not path.parts:
        raise SourceError(f"{where}: expected a path below the folder, with / and without .., found {text!r}")
    return str(path)


def _in_order(lines: Iterator[FrameLine], path: str) -> Iterator[FrameLine]:
    """Check the lines as a sequence: unique ids, time stamps in order, poses in all frames of a drive or in none."""
    numbers: dict[str, int] = {}
    latest: dict[tuple[str, str], int] = {}
    with_poses: dict[str, FrameLine] = {}
    for line in lines:
        where = f"{path} line {line.number}"
        if line.id in numbers:
            raise SourceError(f"{where}: expected each id once, found {line.id!r} also in line {numbers[line.id]}")
        numbers[line.id] = line.number
        first = with_poses.setdefault(line.drive, line)
        if first.has_poses != line.has_poses:
            raise SourceError(
                f"{where}: expected poses in every frame of drive {line.drive} or in none, found"
                f" {'some' if line.has_poses else 'none'} here and {'some' if first.has_poses else 'none'} in line"
                f" {first.number}"
            )
        for of, time_ns in line.stamps.items():
            before = latest.get((line.drive, of), 0)
            if time_ns < before:
                raise SourceError(
                    f"{where}: expected time stamps in order, found that the {of} goes back {before - time_ns} ns in"
                    f" drive {line.drive}"
                )
            latest[line.drive, of] = time_ns
        yield line


def read_splits(path: Path, drives: Mapping[str, object]) -> dict[str, tuple[str, ...]]:
    """Drive names by split; empty if there is no such file. Raises SourceError."""
    if not path.exists():
        return {}
    splits: dict[str, tuple[str, ...]] = {}
    for split, value in strict_json.entries(
        strict_json.parse(read_text(path, _SPLITS_LIMIT), str(path)), str(path)
    ).items():
        where = f"{path}: {_label(split, f'{path}: split')}"
        names = [_label(name, where) for name in strict_json.items(value, where, len(drives))]
        unknown = [name for name in names if name not in drives]
        if unknown:
            raise SourceError(f"{where}: expected drives of {FRAMES_FILE}, found {unknown[0]!r}, which has no frame")
        if len(set(names)) != len(names):
            raise SourceError(f"{where}: expected each drive once, found one twice")
        if split in drives:
            raise SourceError(f"{where}: expected a name that is not a drive's, as a selector could mean either")
        splits[split] = tuple(names)
    return splits
