"""`rig.json` of a rig folder: the cameras of a vehicle, their calibration and their poses."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from data_cache.errors import FrameError, SourceError
from data_cache.frames.images import load_rgb
from data_cache.frames.rig import Camera, require_rigid
from data_cache.frames.undistort import Lens, load_undistorted, pinhole_rows
from data_cache.sources.parsing import strict_json
from data_cache.sources.parsing.metadata import read_text

RIG_FILE = "rig.json"
FORMAT = 1
CENTER_SHIFTS_PX = {"half_integers": 0.0, "integers": 0.5}
"""What to add to cx and cy, by the pixel centres of a calibration: at half-integers, as ours, or at integers."""

_BYTE_LIMIT = 2**20
_CAMERA_LIMIT = 64
_SIDE_LIMIT_PX = 16384
_WORLD_LIMIT_M = 1e8  # poses on earth are nearer than this in any map
_VEHICLE_LIMIT_M = 100.0  # no sensor is farther from its vehicle; a larger value is probably in millimetres


@dataclass(frozen=True, eq=False)
class Calibration:
    """The pinhole camera of the images as read, and the lens of the photographs; None if they are not distorted."""

    camera: Camera
    lens: Lens | None


@dataclass(frozen=True, eq=False)
class RigCamera:
    """A camera as `rig.json` describes it.

    Attributes:
        calibration: None for a camera without images, which only has a place in the ring.
        ego_from_cam: (4, 4) pose on the vehicle; None if every frame must give `world_from_cam`.
    """

    calibration: Calibration | None
    ego_from_cam: Float[np.ndarray, "4 4"] | None


@dataclass(frozen=True, eq=False)
class RigDescription:
    """A vehicle: its name, its cameras by name in ring order, and the pose of its LiDAR, None if not given.

    `digest` is the hash of the whole content of the file.
    """

    name: str
    center_shift_px: float
    cameras: Mapping[str, RigCamera]
    ego_from_lidar: Float[np.ndarray, "4 4"] | None
    digest: bytes


def read_rig(path: Path) -> RigDescription:
    """Read and check `rig.json`.

    Raises:
        SourceError: naming the file and the key, if anything in it is missing, unknown or impossible.
    """
    where = str(path)
    content = strict_json.parse(read_text(path, _BYTE_LIMIT), where)
    rig = strict_json.fields(content, where, ("format", "name", "pixel_centers", "cameras"), ("lidar",))
    if type(rig["format"]) is not int or rig["format"] != FORMAT:
        raise SourceError(
            f"{where}: format: expected {FORMAT}, found {rig['format']!r:.80}; this program reads no other"
        )
    centers = rig["pixel_centers"]
    if not isinstance(centers, str) or centers not in CENTER_SHIFTS_PX:
        raise SourceError(
            f'{where}: pixel_centers: expected "integers" (OpenCV, ROS, Kalibr: the top left pixel\'s centre is (0, 0))'
            f' or "half_integers" (COLMAP: it is (0.5, 0.5)), found {centers!r:.80}'
        )
    shift_px = CENTER_SHIFTS_PX[centers]
    cameras: dict[str, RigCamera] = {}
    for i, entry in enumerate(strict_json.items(rig["cameras"], f"{where}: cameras", _CAMERA_LIMIT)):
        at = f"{where}: cameras[{i}]"
        table = strict_json.fields(
            entry, at, ("name",), ("width", "height", "intrinsics", "distortion", "ego_from_cam")
        )
        name = strict_json.name(table["name"], f"{at}.name")
        if name in cameras:
            raise SourceError(f"{at}.name: expected each name once, found {name!r} twice")
        cameras[name] = _camera(name, table, f"{at} ({name})", shift_px)
    lidar = None
    if "lidar" in rig:
        entry = strict_json.fields(rig["lidar"], f"{where}: lidar", ("ego_from_lidar",))
        lidar = rigid(entry["ego_from_lidar"], f"{where}: lidar.ego_from_lidar", _VEHICLE_LIMIT_M)
    name = strict_json.name(rig["name"], f"{where}: name")
    return RigDescription(name, shift_px, cameras, lidar, strict_json.digest(content))


def rigid(value: Any, where: str, limit_m: float = _WORLD_LIMIT_M) -> Float[np.ndarray, "4 4"]:
    """A pose, given as four rows of four numbers.

    Raises:
        SourceError: if it is not finite, rigid and right-handed, or a coordinate exceeds `limit_m` (by default, more
            than any place on earth).
    """
    pose = strict_json.matrix(value, where, 4)
    try:
        require_rigid(pose, where)
    except FrameError as error:
        raise SourceError(str(error)) from error
    if np.abs(pose[:3, 3]).max() > limit_m:
        raise SourceError(
            f"{where}: expected a translation below {limit_m:g} m, found {pose[:3, 3].tolist()}; poses are in metres"
        )
    return pose


def recalibrated(one: Calibration, intrinsics: Any, where: str, shift_px: float) -> Calibration:
    """The same camera with other intrinsics of its photographs, which a frame may give. Raises SourceError."""
    camera = one.camera
    model = None if one.lens is None else (one.lens.model, one.lens.coefficients)
    return _calibrated(camera.name, (camera.height_px, camera.width_px), intrinsics, model, where, shift_px)


def load_image(
    path: Path, calibration: Calibration, at_least: tuple[int, int] | None = None
) -> UInt8[np.ndarray, "H W 3"]:
    """Decode a photograph and undistort it if its lens distorts; raises FrameError as `load_rgb` does."""
    camera = calibration.camera
    if calibration.lens is None:
        return load_rgb(path, (camera.height_px, camera.width_px), at_least)
    return load_undistorted(path, calibration.lens, at_least)


def _camera(name: str, table: Mapping[str, Any], where: str, shift_px: float) -> RigCamera:
    if len(table) == 1:
        return RigCamera(None, None)
    for key in ("width", "height", "intrinsics"):
        if key not in table:
            raise SourceError(f"{where}: expected the key {key!r}, found {', '.join(table)}")
    size = (
        strict_json.whole(table["height"], f"{where}.height", 1, _SIDE_LIMIT_PX),
        strict_json.whole(table["width"], f"{where}.width", 1, _SIDE_LIMIT_PX),
    )
    model = None
    if "distortion" in table:
        entry = strict_json.fields(table["distortion"], f"{where}.distortion", ("model", "coefficients"))
        model = (
            strict_json.string(entry["model"], f"{where}.distortion.model"),
            strict_json.numbers(entry["coefficients"], f"{where}.distortion.coefficients", 16),
        )
    pose = None
    if "ego_from_cam" in table:
        pose = rigid(table["ego_from_cam"], f"{where}.ego_from_cam", _VEHICLE_LIMIT_M)
    return RigCamera(_calibrated(name, size, table["intrinsics"], model, where, shift_px), pose)


def _calibrated(
    name: str,
    size: tuple[int, int],
    intrinsics: Any,
    model: tuple[str, tuple[float, ...]] | None,
    where: str,
    shift_px: float,
) -> Calibration:
    """Camera and lens for images of (H, W) `size`; `model` is the name and coefficients of the distortion."""
    written = strict_json.matrix(intrinsics, f"{where}.intrinsics", 3)
    K_px = written + np.array([[0, 0, shift_px], [0, 0, shift_px], [0, 0, 0]])
    height, width = size
    try:
        Camera(name, written, width, height)  # checks the numbers as in the file, so that an error shows those
        camera = Camera(name, K_px, width, height)
        if model is None:
            return Calibration(camera, None)
        a, b, c = (tuple(row) for row in K_px.tolist())
        lens = Lens(*model, (a, b, c), width, height)
        return Calibration(Camera(name, np.array(pinhole_rows(lens)), width, height), lens)
    except FrameError as error:
        raise SourceError(f"{where}: {str(error).removeprefix(f'camera {name}: ')}") from error
