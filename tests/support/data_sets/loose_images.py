"""The rig.json of single cameras, and images beside it."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

SIZE = (48, 80)
LENS = {"model": "plumb_bob", "coefficients": [-0.2, 0.05, 0.001, -0.0005]}
LEFT = [[0, 0, 1, 1.5], [-1, 0, 0, 0.25], [0, -1, 0, 1.6], [0, 0, 0, 1]]


def camera(name: str, **more) -> dict:
    intrinsics = [[50.0, 0, 39.5], [0, 50, 23.5], [0, 0, 1]]
    return {"name": name, "width": SIZE[1], "height": SIZE[0], "intrinsics": intrinsics, "ego_from_cam": LEFT, **more}


def write_rig(folder: Path, *cameras: dict) -> Path:
    path = folder / "rig.json"
    table = {"format": 1, "name": "van", "pixel_centers": "integers", "cameras": list(cameras)}
    path.write_text(json.dumps(table))
    return path


def write_image(path: Path, seed: int = 0, size: tuple[int, int] = SIZE) -> np.ndarray:
    rgb = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rgb).save(path)
    return rgb
