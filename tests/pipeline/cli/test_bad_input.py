"""One drive with one damage per frame, in a real layout, through the real command."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image
from support.data_sets.pandaset import HERE, LENS, POINTS, write_sweep
from support.surround import RECIPE, surround

from data_cache.shards.reader import CacheReader
from data_cache.sources.pandaset import CAMERAS

DAMAGES = {
    "00": None,
    "01": "image cannot be decoded",  # truncated
    "02": "image missing",
    "03": "expected 1080 x 1920 px",
    "04": "found none",  # no point
    "05": "0 are finite",  # NaN points
    "06": "expected a finite",  # NaN pose
    "07": "expected a gzip file",  # sweep cut off
    "08": "LiDAR file missing",
    "09": None,
}


@pytest.fixture
def data(tmp_path):
    """Ten frames of two cameras, damaged as DAMAGES says."""
    root = tmp_path / "data"
    lidar = root / "005" / "lidar"
    lidar.mkdir(parents=True)
    stamps = [1557539958.0 + i for i in range(len(DAMAGES))]
    (lidar / "timestamps.json").write_text(json.dumps(stamps))
    poses = [HERE] * len(DAMAGES)
    poses[6] = {"heading": HERE["heading"], "position": {"x": float("nan"), "y": 0.0, "z": 0.0}}
    for camera in CAMERAS[:2]:
        folder = root / "005" / "camera" / camera
        folder.mkdir(parents=True)
        (folder / "intrinsics.json").write_text(json.dumps(LENS))
        (folder / "poses.json").write_text(json.dumps(poses if camera == CAMERAS[0] else [HERE] * len(DAMAGES)))
        (folder / "timestamps.json").write_text(json.dumps(stamps))
        Image.effect_noise((1920, 1080), 50).convert("RGB").save(folder / "00.jpg")
        for stem in DAMAGES:
            if stem != "00":
                shutil.copy(folder / "00.jpg", folder / f"{stem}.jpg")
    front = root / "005" / "camera" / CAMERAS[0]
    (front / "01.jpg").write_bytes((front / "01.jpg").read_bytes()[:9000])
    (front / "02.jpg").unlink()
    Image.new("RGB", (640, 480)).save(front / "03.jpg")
    for stem in DAMAGES:
        write_sweep(lidar / f"{stem}.pkl.gz", POINTS)
    write_sweep(lidar / "04.pkl.gz", np.zeros((0, 4)))
    write_sweep(lidar / "05.pkl.gz", [[np.nan, 0, 0, 0]])
    (lidar / "07.pkl.gz").write_bytes((lidar / "07.pkl.gz").read_bytes()[:40])
    (lidar / "08.pkl.gz").unlink()
    return root


def test_each_damage_costs_its_own_frame_and_nothing_else(data, tmp_path, teacher_folder):
    recipe = tmp_path / "r.toml"
    text = RECIPE.format(teacher=teacher_folder).replace('"synthetic"', '"pandaset"')
    text = text.replace("drive-00[:1]", "005[:9]").replace("drive-01[:1]", "005[9:]")
    recipe.write_text(text.replace("shard_frames = 1", "shard_frames = 4"))
    options = ("--run", tmp_path / "run", "--data", data)

    code, output = surround("teacher-cache", recipe, *options)
    assert code == 3
    assert "Traceback" not in output
    listed = {line.split(":")[0].strip(): line for line in output.splitlines() if line.startswith("  005/")}
    for stem, reason in DAMAGES.items():
        if reason is not None:
            assert reason in listed[f"005/{stem}"]
    reader = CacheReader(tmp_path / "run/cache")
    assert reader.usable(reader.frames.train) == ("005/00",)
    assert reader.read("005/00").view_valid.tolist() == [True, True, False, False, False, False]

    code, output = surround("train-student", recipe, *options)
    assert (code, "8 quarantined frames left out" in output) == (0, True), output
    # Three points of the good sweep fall into the images: enough to measure, too few to learn from.
    code, output = surround("eval", recipe, *options)
    assert (code, "AbsRel" in output) == (0, True), output
