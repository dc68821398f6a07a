"""A rig folder of a van that drives a bend: each camera has a size, a file format, a lens and a time of its own."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

START_NS = 1_700_000_000_123_456_789
STEP_NS = 500_000_000
LIDAR_LEAD_NS = 15_000_000
TOUR, YARD = "tour", "yard"
"""The drives: the bend, and one without poses."""
TURNED = np.array([[0.0, 0, 1, 0], [-1, 0, 0, 0], [0, -1, 0, 0], [0, 0, 0, 1]])  # a camera that looks ahead


@dataclass(frozen=True)
class Mount:
    """A camera: size (h, w), intrinsics with pixel centres at integers, yaw to the left, place, delay, file name."""

    name: str
    size: tuple[int, int]
    K_px: tuple[tuple[float, float, float], ...]
    yaw_deg: float
    place_m: tuple[float, float, float]
    delay_ns: int
    suffix: str
    placed: bool = True
    distorted: bool = False

    def ego_from_cam(self) -> np.ndarray:
        return pose(self.yaw_deg, self.place_m) @ TURNED


MOUNTS = (
    Mount("front", (32, 64), ((30.0, 0, 20.25), (0, 28, 14.5), (0, 0, 1)), 0, (1.5, 0.25, 1.6), 0, "jpg"),
    Mount("right", (40, 96), ((60.0, 0, 50.5), (0, 45, 20.5), (0, 0, 1)), -90, (0.3, -0.8, 1.5), 20_000_000, "png"),
    Mount("rear.cam", (32, 64), ((34.0, 0, 31.5), (0, 34, 15.5), (0, 0, 1)), 180, (-1, 0, 1.4), 30_000_000, "bmp",
          placed=False),
    Mount("left", (48, 80), ((50.0, 0, 39.5), (0, 50, 23.5), (0, 0, 1)), 90, (0.3, 0.8, 1.5), 45_000_000, "png",
          distorted=True),
)  # fmt: skip


def pose(yaw_deg: float, place_m: tuple[float, float, float]) -> np.ndarray:
    c, s = np.cos(np.deg2rad(yaw_deg)), np.sin(np.deg2rad(yaw_deg))
    made = np.eye(4)
    made[:3, :3] = [[c, -s, 0], [s, c, 0], [0, 0, 1]]
    made[:3, 3] = place_m
    return made


def world_from_ego(time_ns: int) -> np.ndarray:
    """At 8 m/s through a bend of 30 degrees a second, far from the origin of the world."""
    t = (time_ns - START_NS) / 1e9
    return pose(20 + 30 * t, (400 + 8 * t, -250 + 2 * t * t, 3))


def write_moving_van(root: Path, frame_count: int = 3, yard_count: int = 3) -> Path:
    for mount in MOUNTS:
        (root / mount.name).mkdir(parents=True)
    (root / "rig.json").write_text(json.dumps(
        {"format": 1, "name": "van", "pixel_centers": "integers", "cameras": [_camera(mount) for mount in MOUNTS]}
    ))  # fmt: skip
    mask = np.full((40, 96), 255, np.uint8)
    mask[30:, :48] = 0  # the van's own flank, at the lower left
    Image.fromarray(mask).save(root / "flank.png")
    lines = [_line(root, TOUR, i, with_poses=True) for i in range(frame_count)]
    lines += [_line(root, YARD, i, with_poses=False) for i in range(yard_count)]
    (root / "frames.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return root


def time_ns(index: int, mount: Mount) -> int:
    return START_NS + index * STEP_NS + mount.delay_ns


def _camera(mount: Mount) -> dict:
    table = {"name": mount.name, "width": mount.size[1], "height": mount.size[0], "intrinsics": mount.K_px}
    if mount.placed:
        table["ego_from_cam"] = mount.ego_from_cam().tolist()
    if mount.distorted:
        table["distortion"] = {"model": "plumb_bob", "coefficients": [-0.2, 0.05, 0.001, -0.0005]}
    return table


def _line(root: Path, drive: str, index: int, *, with_poses: bool) -> dict:
    cameras = {}
    for number, mount in enumerate(MOUNTS):
        if not with_poses and not mount.placed:
            continue
        file = f"{mount.name}/{drive}{index}.{mount.suffix}"
        rng = np.random.default_rng([index, number])
        coarse = rng.integers(0, 256, (mount.size[0] // 8, mount.size[1] // 8, 3), dtype=np.uint8)
        Image.fromarray(coarse.repeat(8, 0).repeat(8, 1)).save(root / file)
        shot = {"image": file, "time_ns": time_ns(index, mount)}
        if with_poses:
            ego = world_from_ego(shot["time_ns"])
            key, value = ("world_from_ego", ego) if mount.placed else ("world_from_cam", ego @ mount.ego_from_cam())
            shot[key] = value.tolist()
        if mount.name == "right":
            shot["mask"] = "flank.png"
        cameras[mount.name] = shot
    line = {"id": f"{drive}/{index}", "drive": drive, "cameras": cameras}
    if with_poses:
        line["world_from_ego"] = world_from_ego(START_NS + index * STEP_NS - LIDAR_LEAD_NS).tolist()
    return line
