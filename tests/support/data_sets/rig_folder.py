"""A rig folder of three frames of two cameras."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

MOUNT = [[0, 0, 1, 1.5], [-1, 0, 0, 0], [0, -1, 0, 1], [0, 0, 0, 1]]  # looks along the vehicle's x, 1.5 m ahead of it
RIG = {
    "format": 1,
    "name": "van",
    "pixel_centers": "integers",
    "cameras": [
        {"name": "front", "width": 8, "height": 6, "intrinsics": [[10, 0, 3.5], [0, 12, 2.5], [0, 0, 1]],
         "ego_from_cam": MOUNT},
        {"name": "back", "width": 8, "height": 4, "intrinsics": [[9, 0, 4], [0, 9, 2], [0, 0, 1]],
         "ego_from_cam": MOUNT, "distortion": {"model": "fisheye", "coefficients": [0.01, 0, 0, 0]}},
    ],
    "lidar": {"ego_from_lidar": [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 2], [0, 0, 0, 1]]},
}  # fmt: skip
AHEAD = [[1, 0, 0, 10], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
BEHIND = [[1, 0, 0, 9.5], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]


def line(number, **more):
    return {
        "id": f"m/{number}",
        "drive": "morning",
        "time_ns": 1000 + number,
        "world_from_ego": AHEAD,
        "cameras": {
            "front": {"image": f"images/{number}.png"},
            "back": {"image": f"images/b{number}.png", "time_ns": 5},
        },
        "lidar": {"points": f"lidar/{number}.npy", "time_ns": 990 + number, "world_from_ego": BEHIND},
    } | more  # fmt: skip


def write(root, rig=RIG, lines=None, splits=None):
    (root / "rig.json").write_text(json.dumps(rig))
    lines = [line(1), line(2), line(3)] if lines is None else lines
    (root / "frames.jsonl").write_text(
        "".join((one if isinstance(one, str) else json.dumps(one)) + "\n" for one in lines)
    )
    if splits is not None:
        (root / "splits.json").write_text(json.dumps(splits))
    return root


def van(beside: Path) -> Path:
    """The folder `van` with all its files; beside it a file that is nobody's business."""
    root = beside / "van"
    (root / "images").mkdir(parents=True)
    (root / "lidar").mkdir()
    for number in (1, 2, 3):
        Image.new("RGB", (8, 6), (number, 0, 0)).save(root / f"images/{number}.png")
        Image.new("RGB", (8, 4), (0, number, 0)).save(root / f"images/b{number}.png")
        np.save(root / f"lidar/{number}.npy", [[12.0, 0.5, -1.0], [np.nan, 0, 0]])
    Image.new("RGB", (8, 6)).save(beside / "secret.png")
    return write(root)
