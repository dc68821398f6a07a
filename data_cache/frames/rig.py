"""What a surround rig sees at one moment: cameras, views, LiDAR sweeps and frames.

Everything here is frozen and validated when made. Poses are named `dst_from_src`, so names cancel in products; camera
axes are x right, y down, z forward; pixel centres lie at half-integers (the top left pixel is centred at (0.5, 0.5)).
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, UInt8

from data_cache.errors import FrameError


@dataclass(frozen=True, eq=False)
class Camera:
    """A pinhole camera, calibrated for its native image size.

    Attributes:
        name: sensor name, unique in its rig.
        K_px: (3, 3) intrinsics in native pixels; pixel centres lie at half-integers.
        width_px, height_px: native image size.

    Raises:
        FrameError: if K_px is not finite or not upper triangular with a last row (0, 0, 1), or if a focal length or a
            side of the image is not positive.
    """

    name: str
    K_px: Float[np.ndarray, "3 3"]
    width_px: int
    height_px: int

    def __post_init__(self) -> None:
        K = self.K_px
        if K.shape != (3, 3) or not np.isfinite(K).all():
            raise FrameError(f"camera {self.name}: expected finite (3, 3) intrinsics, found {K.tolist()}")
        if K[0, 0] <= 0 or K[1, 1] <= 0 or K[1, 0] != 0 or (K[2] != (0, 0, 1)).any():
            raise FrameError(
                f"camera {self.name}: expected [[fx, s, cx], [0, fy, cy], [0, 0, 1]] with fx, fy > 0 px,"
                f" found {K.tolist()}"
            )
        if self.width_px < 1 or self.height_px < 1:
            raise FrameError(f"camera {self.name}: image size {self.width_px} x {self.height_px} px is empty")


@dataclass(frozen=True, eq=False)
class View:
    """One camera of a frame at the moment its image was taken.

    Attributes:
        camera: the calibration.
        world_from_cam: (4, 4) pose at the camera's own time stamp.
        time_ns: the camera's time stamp.
        load_image: decodes the native (height_px, width_px, 3) RGB image; given the keyword `at_least`, an (H, W) that
            is enough, a smaller image of the same scene if that is cheaper. Raises FrameError if it is damaged.
        image_file: the file that holds exactly this image; None if it is rendered, or undistorted when read.
        load_unoccluded: reads the self-occlusion mask at native size, False where the vehicle hides the scene from its
            own camera; None if the source has none. Raises FrameError if it is damaged.
        ego_from_cam: (4, 4) pose on the vehicle, where `world_from_cam` was computed with it; None where the source
            gives `world_from_cam` alone.
        load_encoded: reads the JPEG or PNG file that holds exactly this image, where it lies inside a recording; None
            elsewhere. Raises FrameError if it is damaged.
    """

    camera: Camera
    world_from_cam: Float[np.ndarray, "4 4"]
    time_ns: int
    load_image: Callable[..., UInt8[np.ndarray, "H W 3"]]
    image_file: Path | None = None
    load_unoccluded: Callable[[], Bool[np.ndarray, "H W"]] | None = None
    ego_from_cam: Float[np.ndarray, "4 4"] | None = None
    load_encoded: Callable[[], bytes] | None = None

    def __post_init__(self) -> None:
        require_rigid(self.world_from_cam, f"camera {self.camera.name}: world_from_cam")
        if self.ego_from_cam is not None:
            require_rigid(self.ego_from_cam, f"camera {self.camera.name}: ego_from_cam")


@dataclass(frozen=True, eq=False)
class Sweep:
    """One LiDAR sweep; every point is finite.

    Attributes:
        points_m: (N, 3) points in the LiDAR frame, metres.
        world_from_lidar: (4, 4) pose at the LiDAR's time stamp.
        dropped_count: points left out because they were not finite.
    """

    points_m: Float[np.ndarray, "N 3"]
    world_from_lidar: Float[np.ndarray, "4 4"]
    dropped_count: int = 0

    def __post_init__(self) -> None:
        require_rigid(self.world_from_lidar, "LiDAR: world_from_lidar")


def make_sweep(points_m: np.ndarray, world_from_lidar: np.ndarray, where: str) -> Sweep:
    """Make a sweep of the finite points of (N, 3 or more) columns x, y, z, ... in metres.

    Raises:
        FrameError: if the array has no x, y, z columns or holds no finite point.
    """
    if points_m.ndim != 2 or points_m.shape[1] < 3:
        raise FrameError(f"{where}: expected LiDAR points (N, 3 or more), found shape {points_m.shape}")
    xyz = np.asarray(points_m[:, :3], dtype=np.float64)
    finite = np.isfinite(xyz).all(axis=1)
    if not len(xyz):
        raise FrameError(f"{where}: expected LiDAR points, found none; record or fetch the file again")
    if not finite.any():
        raise FrameError(f"{where}: expected LiDAR points, found {len(xyz)} of which 0 are finite")
    return Sweep(xyz[finite], world_from_lidar, int((~finite).sum()))


@dataclass(frozen=True)
class Rig:
    """The cameras of a vehicle in ring order: clockwise seen from above, front first.

    Neighbours are (i, i + 1 mod V). A frame may lack a camera of its rig; gaps are never bridged.
    """

    name: str
    camera_names: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.camera_names or len(set(self.camera_names)) != len(self.camera_names):
            raise ValueError(f"rig {self.name}: camera names must be unique and at least one, got {self.camera_names}")

    @property
    def view_count(self) -> int:
        """V, the number of cameras in the ring."""
        return len(self.camera_names)


@dataclass(frozen=True, eq=False)
class Frame:
    """Everything that one rig records at one key time.

    Attributes:
        id: stable id from the data set, never an index.
        views: one entry per camera of the rig, in ring order; None where the frame lacks that camera.
        load_sweep: reads the LiDAR sweep; None if the frame has none. Raises FrameError if it is damaged.
        load_truth_m: one loader per view of dense depth (z, metres, 0 = none) at native size; None if the source has
            no dense depth.
        world_from_ego: (4, 4) pose of the vehicle (x forward, y left, z up) at the time of the LiDAR sweep, or of the
            first camera if there is no sweep; None if the source does not know where its sensors are mounted.
    """

    id: str
    views: tuple[View | None, ...]
    load_sweep: Callable[[], Sweep] | None = None
    load_truth_m: tuple[Callable[[], Float[np.ndarray, "H W"]], ...] | None = None
    world_from_ego: Float[np.ndarray, "4 4"] | None = None

    def __post_init__(self) -> None:
        if self.world_from_ego is not None:
            require_rigid(self.world_from_ego, f"frame {self.id}: world_from_ego")


def require_rigid(pose: np.ndarray, where: str) -> None:
    """Check that a (4, 4) pose is a finite, right-handed rigid transform (tolerance 1e-3).

    Raises:
        FrameError: if it is not; the message names the property that fails.
    """
    if pose.shape != (4, 4) or not np.isfinite(pose).all():
        raise FrameError(f"{where}: expected a finite (4, 4) pose, found {pose.tolist()}")
    rotation = pose[:3, :3]
    if (pose[3] != (0, 0, 0, 1)).any():
        hint = "; it is written as columns: transpose it" if (pose[:, 3] == (0, 0, 0, 1)).all() else ""
        raise FrameError(
            f"{where}: expected a rigid transform as rows, the last one 0 0 0 1, found {pose.tolist()}{hint}"
        )
    off = np.abs(rotation @ rotation.T - np.eye(3)).max()
    if not off <= 1e-3:
        raise FrameError(
            f"{where}: expected a rigid transform: rows of length 1 at right angles, within 0.001, found an error of"
            f" {off:.2g}: {pose.tolist()}"
        )
    if np.linalg.det(rotation) < 0:
        raise FrameError(f"{where}: expected a right-handed rotation, found determinant -1: {pose.tolist()}")


def pose_from_quaternion(
    wxyz: tuple[float, float, float, float], translation_m: tuple[float, float, float]
) -> Float[np.ndarray, "4 4"]:
    """Pose matrix of a quaternion (w, x, y, z; normalised here) and a translation in metres.

    A zero or non-finite quaternion gives a non-finite matrix, which `View` and `Sweep` refuse.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        w, x, y, z = np.asarray(wxyz, dtype=np.float64) / np.linalg.norm(wxyz)
    pose = np.eye(4)
    pose[:3, :3] = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    pose[:3, 3] = translation_m
    return pose
