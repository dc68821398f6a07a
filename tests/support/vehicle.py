"""A made-up vehicle as a rig folder: five cameras in a rendered street, one of them a fisheye and one distorted.

`python tests/support/vehicle.py FOLDER` writes the one that data_cache/RIG_FOLDER.md is tried on.
"""

import json
import struct
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from data_cache.frames.rig import Camera
from data_cache.frames.undistort import Lens, distort
from data_cache.sources.synthetic import source as synthetic
from data_cache.sources.synthetic.scene import turned
from data_cache.sources.synthetic.world import STREET

SIZE = (192, 320)
LIDAR_LEAD_NS = 18_000_000
MOUNTS = (  # name, yaw in degrees to the left, focal length in pixels, distortion
    ("front", 0.0, 240.0, ("plumb_bob", (-0.21, 0.05, 0.001, -0.0005, 0.0))),
    ("front_right", -72.0, 200.0, None),
    ("back_right", -144.0, 200.0, None),
    ("back_left", 144.0, 200.0, None),
    ("front_left", 72.0, 170.0, ("fisheye", (0.01, -0.004, 0.001, -0.0002))),
)


def write_vehicle(root: Path, drives: Mapping[int, int], splits: Mapping[str, list[int]]) -> Path:
    """Write a rig folder.

    Args:
        root: a new folder.
        drives: frames of each drive, by the number of the synthetic street that it goes through.
        splits: numbers of drives.
    """
    root.mkdir(parents=True, exist_ok=True)
    (root / "rig.json").write_text(json.dumps(_rig(), indent=2))
    with (root / "frames.jsonl").open("w") as lines:
        for drive, frame_count in drives.items():
            for index in range(frame_count):
                lines.write(json.dumps(_line(root, drive, index)) + "\n")
    named = {split: [f"street-{drive}" for drive in numbers] for split, numbers in splits.items()}
    (root / "splits.json").write_text(json.dumps(named, indent=2))
    return root


def _rig() -> dict[str, object]:
    cameras = []
    for name, yaw_deg, focal_px, distortion in MOUNTS:
        # OpenCV's convention: the centre of the image is half a pixel less than half its size.
        K = [[focal_px, 0, SIZE[1] / 2 - 0.5], [0, focal_px, SIZE[0] / 2 - 0.5], [0, 0, 1]]
        camera = {"name": name, "width": SIZE[1], "height": SIZE[0], "intrinsics": K}
        if distortion:
            camera["distortion"] = {"model": distortion[0], "coefficients": distortion[1]}
        cameras.append(camera | {"ego_from_cam": _ego_from_cam(yaw_deg).tolist()})
    ego_from_lidar = np.eye(4)
    ego_from_lidar[2, 3] = STREET.lidar.height_m
    return {
        "format": 1,
        "name": "made-up",
        "pixel_centers": "integers",
        "cameras": cameras,
        "lidar": {"ego_from_lidar": ego_from_lidar.tolist()},
    }


def _ego_from_cam(yaw_deg: float) -> np.ndarray:
    pose = turned(np.deg2rad(yaw_deg), 0.0)
    pose[:3, 3] = 0.0, 0.0, STREET.mounts[0].height_m
    return pose @ synthetic.EGO_FROM_OPTICAL


def _line(root: Path, drive: int, index: int) -> dict[str, object]:
    time_ns = 1_700_000_000_000_000_000 + (drive * 1000 + index) * 500_000_000
    world_from_ego = synthetic._world_from_ego(STREET, drive, index)
    cameras = {}
    for name, yaw_deg, focal_px, distortion in MOUNTS:
        file = root / f"images/{name}/{drive:02d}_{index:03d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        rgb = _photograph(drive, world_from_ego @ _ego_from_cam(yaw_deg), focal_px, distortion)
        Image.fromarray(rgb).save(file)
        cameras[name] = {"image": str(file.relative_to(root))}
    sweep = synthetic._sweep(STREET, drive, index)
    file = root / f"lidar/{drive:02d}_{index:03d}.pcd"
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(pcd(sweep.points_m.astype(np.float32)))
    lead_s = LIDAR_LEAD_NS / 1e9
    return {
        "id": f"street-{drive}/{index}",
        "drive": f"street-{drive}",
        "time_ns": time_ns,
        "world_from_ego": world_from_ego.tolist(),
        "cameras": cameras,
        "lidar": {
            "points": str(file.relative_to(root)),
            "time_ns": time_ns - LIDAR_LEAD_NS,
            "world_from_ego": synthetic._world_from_ego(STREET, drive, index, lead_s).tolist(),
        },
    }


def _photograph(drive: int, world_from_cam: np.ndarray, focal_px: float, distortion: tuple | None) -> np.ndarray:
    """What the camera takes: a wide pinhole image, looked up along the ray of every pixel of the photograph."""
    height, width = SIZE
    if distortion is None:
        K = np.array([[focal_px, 0, width / 2], [0, focal_px, height / 2], [0, 0, 1]])
        return _rendered(drive, Camera("pinhole", K, width, height), world_from_cam)
    rows = ((focal_px, 0.0, width / 2), (0.0, focal_px, height / 2), (0.0, 0.0, 1.0))
    x, y = rays(Lens(*distortion, rows, width, height))
    wide_px = 240.0  # of focal length: as fine as the photograph in its centre
    half_width, half_height = (int(np.abs(a).max() * wide_px) + 2 for a in (x, y))
    K = np.array([[wide_px, 0, half_width], [0, wide_px, half_height], [0, 0, 1]])
    wide = _rendered(drive, Camera("wide", K, 2 * half_width, 2 * half_height), world_from_cam)
    return wide[(y * wide_px + half_height).astype(int), (x * wide_px + half_width).astype(int)]


def rays(lens: Lens) -> tuple[np.ndarray, np.ndarray]:
    """Rays (x, y, 1) of what each pixel of a photograph shows: `distort` undone by fixed-point iteration."""
    v, u = np.mgrid[0 : lens.height_px, 0 : lens.width_px] + 0.5
    (fx, _, cx), (_, fy, cy), _ = lens.K_rows
    wanted_x, wanted_y = (u - cx) / fx, (v - cy) / fy
    x, y = wanted_x, wanted_y
    for _ in range(100):
        found_x, found_y = distort(lens, x, y)
        x, y = x + wanted_x - found_x, y + wanted_y - found_y
    return x, y


def _rendered(drive: int, camera: Camera, world_from_cam: np.ndarray) -> np.ndarray:
    return synthetic._tracer(STREET, drive).render(camera, world_from_cam, np.random.default_rng(drive)).rgb


def pcd(points: np.ndarray) -> bytes:
    """A binary PCD file of (N, 3) float32 points, with an intensity of 1 between y and z."""
    head = "# made up\nVERSION .7\nFIELDS x y intensity z\nSIZE 4 4 1 4\nTYPE F F U F\nCOUNT 1 1 1 1\n"
    head += f"WIDTH {len(points)}\nHEIGHT 1\nVIEWPOINT 0 0 0 1 0 0 0\nPOINTS {len(points)}\nDATA binary\n"
    return head.encode() + b"".join(struct.pack("<ffBf", x, y, 1, z) for x, y, z in points)


if __name__ == "__main__":
    write_vehicle(Path(sys.argv[1]), {0: 6, 1: 6, 2: 6, 50: 3}, {"train": [0, 1, 2], "test": [50]})
