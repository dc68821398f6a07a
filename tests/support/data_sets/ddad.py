"""One scene in DDAD's layout, and masks of the vehicle."""

import json
import pickle
from pathlib import Path

import numpy as np
from PIL import Image

from data_cache.sources.ddad.source import CAMERAS

MASK_SIZE = (6, 8)


def write_masks(folder: Path, sets: dict[int, int], size=MASK_SIZE) -> Path:
    """In set s, camera c of the ring: the first s + c columns are the vehicle."""
    for number in set(sets.values()):
        (folder / str(number)).mkdir(parents=True)
        for c, name in enumerate(CAMERAS):
            grey = np.full(size, 255, np.uint8)
            grey[:, : number + c] = 0
            Image.fromarray(grey).save(folder / str(number) / f"{name}_mask.png")
    (folder / "mask_idx_dict.pkl").write_bytes(pickle.dumps(sets, protocol=3))
    return folder


SIZE = (60, 100)
SCENE = "scene_0123abcd.json"


def pose(z_m):
    return {
        "rotation": {"qw": 1.0, "qx": 0.0, "qy": 0.0, "qz": 0.0},
        "translation": {"x": 0.0, "y": 0.0, "z": z_m},
    }


def identity(name, stamp):
    return {"name": name, "timestamp": stamp, "index": "0", "log": ""}


def scene():
    """Two samples, the later first in the file; CAMERA_01 and CAMERA_06 at z = 3 m, LiDAR at z = 1 m."""
    data, samples = [], []
    for stem, second in (("b", "02"), ("a", "01")):
        stamp = f"2019-06-27T17:03:{second}.500000Z"
        for name in ("CAMERA_01", "CAMERA_06", "CAMERA_10"):
            content = {"filename": f"rgb/{name}/{stem}.png", "height": SIZE[0], "width": SIZE[1], "pose": pose(3.0)}
            data.append({"key": f"{name} {stem}", "id": identity(name, stamp), "datum": {"image": content}})
        content = {"filename": f"point_cloud/LIDAR/{stem}.npz", "pose": pose(1.0)}
        data.append({"key": f"LIDAR {stem}", "id": identity("LIDAR", stamp), "datum": {"point_cloud": content}})
        keys = [datum["key"] for datum in data[-4:]]
        samples.append({"id": identity("", stamp), "calibration_key": "c0ffee", "datum_keys": keys})
    return {"data": data, "samples": samples, "name": "", "metadata": {}}


def calibration():
    lens = {"fx": 50.0, "fy": 40.0, "cx": 49.5, "cy": 29.5, "skew": 0.0}
    zero = dict.fromkeys(lens, 0.0)
    return {"names": ["LIDAR", "CAMERA_01", "CAMERA_06"], "intrinsics": [zero, lens, {**lens, "cx": 40.0}]}


def write(folder, scene_content, calibration_content=None):
    (folder / "calibration").mkdir(parents=True, exist_ok=True)
    (folder / SCENE).write_text(json.dumps(scene_content))
    (folder / "calibration" / "c0ffee.json").write_text(json.dumps(calibration_content or calibration()))
    return folder


def write_example(tmp_path):
    """One scene under `ddad.json`."""
    folder = write(tmp_path / "000007", scene())
    (folder / "point_cloud" / "LIDAR").mkdir(parents=True)
    for name in ("CAMERA_01", "CAMERA_06"):
        (folder / "rgb" / name).mkdir(parents=True)
        for stem in "ab":
            Image.new("RGB", (SIZE[1], SIZE[0]), (9, 9, 9)).save(folder / "rgb" / name / f"{stem}.png")
    for stem in "ab":
        points = np.array([[1.0, 0, 7, 0.5], [0, np.nan, 0, 0]])
        np.savez(folder / "point_cloud" / "LIDAR" / f"{stem}.npz", data=points)
    files = {"filenames": [f"000007/{SCENE}"]}
    (tmp_path / "ddad.json").write_text(json.dumps({"scene_splits": {"0": {"filenames": []}, "1": files}}))
    return tmp_path
