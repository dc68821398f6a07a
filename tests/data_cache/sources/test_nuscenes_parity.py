"""The nuScenes reader against the official devkit: the same points, pixels and depths, before the z-buffer.

The devkit centres pixels at integers, we at half-integers: half a pixel is taken off our u, v before anything is
compared. It moves points in float32, at coordinates of a kilometre; told to compute in float64 it is compared a
thousand times as closely.
"""

import importlib.util
import json
import sys
import types
from collections.abc import Iterator
from importlib import resources

import numpy as np
import pytest

from data_cache.frames.geometry import cam_from_lidar, project
from data_cache.sources.nuscenes import CAMERAS, LIDAR, NuscenesSource

MIN_DEPTH_M = 1.0
BORDER_PX = 1.0


@pytest.fixture(scope="module")
def devkit() -> Iterator[types.ModuleType]:
    """The devkit. It imports packages, large ones, that only its drawing and its confusion matrix need."""
    if importlib.util.find_spec("nuscenes") is None:
        pytest.skip("the devkit is not installed; pip install --no-deps nuscenes-devkit==1.2.0 pyquaternion cachetools")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("cv2", "sklearn", "sklearn.metrics"):
            patch.setitem(sys.modules, name, types.ModuleType(name))
        import nuscenes.nuscenes
        import nuscenes.utils.data_classes
        import nuscenes.utils.splits

        yield nuscenes


@pytest.fixture(scope="module")
def official(devkit, real_data):
    """The devkit's tables of both real releases, by version."""
    folder = real_data / "nuscenes"
    versions = ("v1.0-mini", "v1.0-mini-camonly")
    return {name: devkit.nuscenes.NuScenes(name, str(folder), verbose=False) for name in versions}


@pytest.fixture(params=[np.float32, np.float64])
def tolerance_m(request, devkit, monkeypatch) -> float:
    """How closely the devkit can be compared, as it comes and with its points in float64."""
    cloud = devkit.utils.data_classes.LidarPointCloud
    read = cloud.from_file
    monkeypatch.setattr(cloud, "from_file", lambda path: cloud(read(path).points.astype(request.param)))
    return 1e-3 if request.param is np.float32 else 1e-6


def require_the_same_points(view, sweep, tables, lidar_token: str, camera_token: str, tolerance_m: float) -> int:
    """Compare one camera; returns how many points it sees."""
    theirs_px, their_depth_m, _ = tables.explorer.map_pointcloud_to_image(lidar_token, camera_token, MIN_DEPTH_M)
    camera = view.camera
    ours = project(
        sweep.points_m,
        cam_from_lidar(view, sweep),
        camera.K_px,
        (camera.height_px, camera.width_px),
        min_depth_m=MIN_DEPTH_M,
    )
    u_px, v_px = ours.u_px - 0.5, ours.v_px - 0.5
    inner = (np.minimum(u_px, v_px) > BORDER_PX) & (u_px < camera.width_px - BORDER_PX)
    inner &= v_px < camera.height_px - BORDER_PX
    assert inner.sum() == theirs_px.shape[1], camera.name
    depth_m = ours.depth_m[inner]
    np.testing.assert_allclose(depth_m, their_depth_m, rtol=0, atol=tolerance_m)
    # How far apart, at the distance of the point, the two rays are.
    right_m = (u_px[inner] - theirs_px[0]) * depth_m / camera.K_px[0, 0]
    down_m = (v_px[inner] - theirs_px[1]) * depth_m / camera.K_px[1, 1]
    assert max(np.abs(right_m).max(), np.abs(down_m).max()) < tolerance_m
    return int(inner.sum())


def test_every_camera_sees_the_same_points_at_the_same_pixels_and_depths(official, real_data, tolerance_m):
    tables, source = official["v1.0-mini"], NuscenesSource(real_data / "nuscenes", "v1.0-mini")
    counts = {}
    for frame_id in source.drives["scene-0061"]:
        data, frame = tables.get("sample", frame_id)["data"], source.frame(frame_id)
        sweep = frame.load_sweep()
        for name, view in zip(CAMERAS, frame.views, strict=True):
            counts[name] = require_the_same_points(view, sweep, tables, data[LIDAR], data[name], tolerance_m)
    assert counts == {
        "CAM_FRONT": 3053,
        "CAM_FRONT_RIGHT": 3076,
        "CAM_BACK_RIGHT": 3369,
        "CAM_BACK": 4820,
        "CAM_BACK_LEFT": 4089,
        "CAM_FRONT_LEFT": 3696,
    }


def test_a_nearby_sweep_falls_where_the_devkit_puts_it(official, real_data, tolerance_m):
    """The one sweep is 50.338 ms before its keyframe."""
    tables = official["v1.0-mini-camonly"]
    sweeps = [row for row in tables.sample_data if row["channel"] == LIDAR]
    assert [row["is_key_frame"] for row in sweeps] == [False]
    token = sweeps[0]["sample_token"]
    folder, version = real_data / "nuscenes", "v1.0-mini-camonly"
    assert NuscenesSource(folder, version, nearby_sweep_s=0.0503).frame(token).load_sweep is None
    source = NuscenesSource(folder, version, nearby_sweep_s=0.0504)
    frames = {frame_id: source.frame(frame_id) for frame_id in source.drives["scene-0103"]}
    assert [frame_id for frame_id, frame in frames.items() if frame.load_sweep is not None] == [token]
    data, sweep = tables.get("sample", token)["data"], frames[token].load_sweep()
    for name, view in zip(CAMERAS, frames[token].views, strict=True):
        assert require_the_same_points(view, sweep, tables, sweeps[0]["token"], data[name], tolerance_m) > 1500


@pytest.mark.parametrize("version", ["v1.0-mini", "v1.0-mini-camonly"])
def test_scenes_samples_images_and_times_are_the_devkits(official, real_data, version):
    tables, source = official[version], NuscenesSource(real_data / "nuscenes", version)
    for scene in tables.scene:  # not by their links, which end at a trimmed sample
        samples = [sample for sample in tables.sample if sample["scene_token"] == scene["token"]]
        samples.sort(key=lambda sample: sample["timestamp"])
        assert source.drives[scene["name"]] == tuple(sample["token"] for sample in samples)
    assert len(source.drives) == len(tables.scene)
    for token in (sample["token"] for sample in tables.sample):
        data, views = tables.get("sample", token)["data"], source.frame(token).views
        for name, view in zip(CAMERAS, views, strict=True):
            row = tables.get("sample_data", data[name])
            assert (view.time_ns, view.camera.name) == (1000 * row["timestamp"], name)
            assert view.load_image.args[0] == real_data / "nuscenes" / row["filename"]


def test_the_split_lists_are_the_devkits(devkit):
    ours = json.loads((resources.files("data_cache.sources") / "nuscenes_scenes.json").read_text())
    theirs = devkit.utils.splits.create_splits_scenes()
    assert {split: [f"scene-{number:04d}" for number in numbers] for split, numbers in ours.items()} == {
        split: theirs[split] for split in ours
    }
