"""Where each data set says that the vehicle is: x forward, y left, z up, the road near z = 0."""

import json
from dataclasses import replace

import numpy as np
import pytest
from support.data_sets.loose_images import camera, write_rig

from data_cache.errors import FrameError
from data_cache.frames.rig import Frame
from data_cache.sources.registry import open_source
from data_cache.sources.rig_folder.source import RigFolderSource
from data_cache.sources.selectors import select
from data_cache.sources.synthetic.source import _world_from_ego
from data_cache.sources.synthetic.world import STREET

TURNED = [[0, -1, 0, 10.0], [1, 0, 0, 20], [0, 0, 1, 0], [0, 0, 0, 1]]  # a quarter to the left


def ego_from_cams(frame: Frame) -> dict[str, np.ndarray]:
    ego_from_world = np.linalg.inv(frame.world_from_ego)
    return {view.camera.name: ego_from_world @ view.world_from_cam for view in frame.views if view is not None}


def test_the_synthetic_vehicle_is_that_of_its_lidar():
    """By hand: its LiDAR sits 1.9 m above the ground at its origin; in the 18 ms until the cameras it moves 18 cm."""
    frame = open_source("synthetic", None).frame("drive-00/2")
    np.testing.assert_allclose(frame.world_from_ego[2, :], [0, 0, 1, 0], atol=1e-12)
    front = ego_from_cams(frame)["front"]
    np.testing.assert_allclose(front[:3, 3], [0.4 + 0.18, 0, 1.6], atol=0.02)
    np.testing.assert_allclose(front[:3, 2], [1, 0, 0], atol=0.01)
    lidar = np.linalg.inv(frame.world_from_ego) @ _world_from_ego(STREET, 0, 2, STREET.lidar.lead_s)
    np.testing.assert_allclose(lidar, np.eye(4), atol=1e-12)
    for view in frame.views:
        vehicle = _world_from_ego(STREET, 0, 2)
        np.testing.assert_allclose(vehicle @ view.ego_from_cam, view.world_from_cam, atol=1e-12)


@pytest.mark.parametrize(
    ("kind", "folder", "selector", "front", "left", "lidar_below_m"),
    [
        ("pandaset", "pandaset", "002[11:12]", "front_camera", "left_camera", 0.6),
        ("nuscenes", "nuscenes", "scene-0061", "CAM_FRONT", "CAM_FRONT_LEFT", 0.3),
        ("ddad", "ddad/ddad_train_val", "val[1:2]", "CAMERA_01", "CAMERA_05", 0.3),
    ],
)
def test_real_vehicles_look_ahead_and_stand_on_the_road(real_data, kind, folder, selector, front, left, lidar_below_m):
    source = open_source(kind, real_data / folder, "v1.0-mini" if kind == "nuscenes" else "")
    frame = source.frame(select(source, [selector])[0])
    poses = ego_from_cams(frame)
    np.testing.assert_allclose(poses[front][:3, 2], [1, 0, 0], atol=0.08)
    assert poses[left][1, 2] > 0.7 < poses[left][1, 3] * 2
    assert all(1.4 < pose[2, 3] < 1.9 and np.hypot(*pose[:2, 3]) < 2.5 for pose in poses.values())
    for view in frame.views:
        # PandaSet does not say where its cameras sit. The vehicle turns by less than a degree until the cameras fire.
        assert (view.ego_from_cam is None) == (kind == "pandaset")
        if view.ego_from_cam is not None:
            np.testing.assert_allclose(view.ego_from_cam[:3, :3], poses[view.camera.name][:3, :3], atol=0.02)
            assert np.hypot(*view.ego_from_cam[:2, 3]) < 2.5
    sweep = frame.load_sweep()
    ego_from_lidar = np.linalg.inv(frame.world_from_ego) @ sweep.world_from_lidar
    points_m = sweep.points_m @ ego_from_lidar[:3, :3].T + ego_from_lidar[:3, 3]
    near = points_m[np.hypot(points_m[:, 0], points_m[:, 1]) < 8]
    assert abs(np.percentile(near[:, 2], 5)) < lidar_below_m


def rig_folder(tmp_path, line: dict, *cameras: dict) -> Frame:
    write_rig(tmp_path, *(cameras or (camera("front"), camera("right"))))
    (tmp_path / "frames.jsonl").write_text(json.dumps({"id": "a", "drive": "d", "time_ns": 1, **line}))
    return RigFolderSource(tmp_path).frame("a")


def shot(**more) -> dict:
    return {"image": "x.png", **more}


def test_a_rig_folder_says_it_for_the_frame_or_its_first_sensor(tmp_path):
    """The camera of `camera` sits at (1.5, 0.25, 1.6); a quarter to the left and at (10, 20) of the world it stands at
    (10 - 0.25, 20 + 1.5, 1.6).
    """
    frame = rig_folder(tmp_path, {"world_from_ego": TURNED, "cameras": {"front": shot()}})
    np.testing.assert_array_equal(frame.world_from_ego, TURNED)
    np.testing.assert_allclose(frame.views[0].world_from_cam[:3, 3], [9.75, 21.5, 1.6])
    np.testing.assert_array_equal(frame.views[0].ego_from_cam, camera("front")["ego_from_cam"])
    later = [[*row[:3], row[3] + 1] for row in TURNED[:3]] + [TURNED[3]]
    cameras = {"right": shot(world_from_ego=later), "front": shot(world_from_ego=TURNED)}
    np.testing.assert_allclose(rig_folder(tmp_path, {"cameras": cameras}).world_from_ego, TURNED, atol=1e-12)
    own = {"front": shot(world_from_cam=frame.views[0].world_from_cam.tolist())}
    placed_itself = rig_folder(tmp_path, {"cameras": own})
    np.testing.assert_allclose(placed_itself.world_from_ego, TURNED, atol=1e-12)
    assert placed_itself.views[0].ego_from_cam is None
    np.testing.assert_array_equal(rig_folder(tmp_path, {"cameras": {"front": shot()}}).world_from_ego, np.eye(4))
    nowhere = camera("front")
    del nowhere["ego_from_cam"]
    assert rig_folder(tmp_path, {"cameras": own}, nowhere).world_from_ego is None


def test_a_pose_that_is_none_is_refused():
    frame = open_source("synthetic", None).frame("drive-00/0")
    with pytest.raises(FrameError, match="drive-00/0: world_from_ego: expected a finite"):
        replace(frame, world_from_ego=np.full((4, 4), np.nan))
