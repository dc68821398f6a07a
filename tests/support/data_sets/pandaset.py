"""Two frames in PandaSet's layout."""

import gzip
import json
import pickle

import numpy as np
import pytest
from PIL import Image

from data_cache.sources.pandaset import CAMERAS

pandas = pytest.importorskip("pandas")
HERE = {"heading": {"w": 1.0, "x": 0.0, "y": 0.0, "z": 0.0}, "position": {"x": 1.0, "y": 2.0, "z": 3.0}}
LENS = {"fx": 1000.0, "fy": 900.0, "cx": 959.5, "cy": 539.5}
POINTS = [[1.5, 2.0, 8.0, 0], [1.0, 2.9, 12.0, 0], [1.0, 2.0, 4.0, 1], [np.nan, 0, 0, 0]]


def write_sweep(path, points, names=("x", "y", "z", "d")):
    frame = pandas.DataFrame(points, columns=pandas.Index(names, dtype=object))
    with gzip.open(path, "wb") as stream:
        pickle.dump(frame, stream)


def write_example(tmp_path):
    """Two frames of two cameras, with LiDAR."""
    for camera in CAMERAS[:2]:
        folder = tmp_path / "005" / "camera" / camera
        folder.mkdir(parents=True)
        (folder / "intrinsics.json").write_text(json.dumps(LENS))
        (folder / "poses.json").write_text(json.dumps([HERE, HERE]))
        (folder / "timestamps.json").write_text(json.dumps([1557539958.25, 1557539958.75]))
        for stem in ("00", "01"):
            Image.new("RGB", (1920, 1080), (9, 9, 9)).save(folder / f"{stem}.jpg")
    (tmp_path / "005" / "lidar").mkdir()
    (tmp_path / "005" / "lidar" / "timestamps.json").write_text(json.dumps([1557539958.5, 1557539959.0]))
    for stem in ("00", "01"):
        write_sweep(tmp_path / "005" / "lidar" / f"{stem}.pkl.gz", POINTS)
    return tmp_path
