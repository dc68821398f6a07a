from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.fakes import FakeSource

from data_cache.errors import FrameError
from data_cache.frames.geometry import project
from data_cache.frames.views import RigViews
from stages.inference import point_cloud
from stages.inference.point_cloud import frame_cloud, fused_cloud, smooth_pixels, thinned
from stages.inference.predict import Prediction

RANGE_M = (0.1, 80.0)
AHEAD = np.array([[0.0, 0, 1, 0], [-1, 0, 0, 0], [0, -1, 0, 0], [0, 0, 0, 1]])
"""Pose of a camera that looks along x with z up."""


def turned(yaw_deg: float, x_m: float = 0.0, y_m: float = 0.0, z_m: float = 0.0) -> np.ndarray:
    """Pose of a camera that looks `yaw_deg` to the left of x."""
    yaw = np.deg2rad(yaw_deg)
    pose = np.eye(4)
    pose[:2, :2] = [[np.cos(yaw), -np.sin(yaw)], [np.sin(yaw), np.cos(yaw)]]
    pose[:3, 3] = x_m, y_m, z_m
    return pose @ AHEAD


def rig_of(K_px, poses, size: tuple[int, int], valid=None) -> RigViews:
    V = len(poses)
    image = np.random.default_rng(0).integers(0, 256, (V, *size, 3), dtype=np.uint8)
    return RigViews(
        image=image,
        lidar_depth_m=np.zeros((V, *size), np.float32),
        intrinsics=np.tile(np.asarray(K_px, np.float32), (V, 1, 1)),
        world_from_cam=np.stack(poses),
        view_valid=np.ones(V, bool) if valid is None else np.asarray(valid),
    )


def test_a_pixel_lands_where_it_is_by_hand():
    """Row 1, column 2 of 3 x 4 is centred at (u, v) = (2.5, 1.5). With fx 2, fy 4, cx 1.5, cy 0.5 and 4 m it is
    x = (2.5 - 1.5) / 2 * 4 = 2 m to the right and y = (1.5 - 0.5) / 4 * 4 = 1 m below the optical axis. The camera
    stands at (1, 2, 1.5) on the vehicle and looks to its left, along y: right of it is +x. So (1 + 2, 2 + 4, 1.5 - 1).
    """
    depth_m = np.zeros((1, 3, 4), np.float32)
    depth_m[0, 1, 2] = 4.0
    world_from_ego = turned(30, 7.0, -3.0, 0.5) @ np.linalg.inv(AHEAD)
    rig = rig_of([[2, 0, 1.5], [0, 4, 0.5], [0, 0, 1]], [world_from_ego @ turned(90, 1.0, 2.0, 1.5)], (3, 4))
    rig.image[0, 1, 2] = 10, 200, 30
    cloud = fused_cloud(rig, depth_m, world_from_ego, RANGE_M)
    np.testing.assert_allclose(cloud.points_m, [[3.0, 6.0, 0.5]], atol=1e-6)
    assert cloud.rgb.tolist() == [[10, 200, 30]]


@given(st.floats(-180, 180), st.floats(2, 60))
def test_points_project_back_to_their_pixels_in_their_colours(yaw_deg, depth_m):
    world_from_ego = turned(yaw_deg, 100.0, -50.0, 3.0) @ np.linalg.inv(AHEAD)
    K_px = np.array([[9.0, 0.5, 5.25], [0, 7, 3.75], [0, 0, 1]])
    rig = rig_of(K_px, [world_from_ego @ turned(20, 1, 0, 1.5)], (6, 10))
    cloud = fused_cloud(rig, np.full((1, 6, 10), depth_m, np.float32), world_from_ego, RANGE_M)
    back = project(cloud.points_m.astype(float), np.linalg.inv(turned(20, 1, 0, 1.5)), K_px, (6, 10))
    assert len(back.index) == 60
    np.testing.assert_allclose(back.depth_m, depth_m, rtol=1e-4)
    v, u = np.mgrid[0:6, 0:10] + 0.5
    np.testing.assert_allclose(back.u_px, u.ravel(), atol=1e-3)
    np.testing.assert_allclose(back.v_px, v.ravel(), atol=1e-3)
    np.testing.assert_array_equal(cloud.rgb, rig.image.reshape(-1, 3))


def ego_points(depth_m: np.ndarray) -> np.ndarray:
    """Pixels of a camera 1.6 m above the ground that looks ahead, f = 100 px, in the vehicle's frame."""
    height, width = depth_m.shape
    v, u = np.mgrid[0:height, 0:width] + 0.5
    right, below = (u - width / 2) / 100 * depth_m, (v - height / 2) / 100 * depth_m
    return np.stack([depth_m, -right, 1.6 - below], axis=-1)


def test_both_sides_of_an_edge_go_and_nothing_else():
    """10 m beside 10.9 m is a jump of 9 %: an edge. 10 m beside 10.7 m is none."""
    depth_m = np.full((5, 8), 10.0)
    depth_m[:, 4:] = 10.7
    assert smooth_pixels(depth_m, ego_points(depth_m), 1.6).all()
    depth_m[:, 4:] = 10.9
    assert smooth_pixels(depth_m, ego_points(depth_m), 1.6)[0].tolist() == [True] * 3 + [False] * 2 + [True] * 3
    tall = depth_m.T.copy()
    assert smooth_pixels(tall, ego_points(tall), 1.6)[:, 0].tolist() == [True] * 3 + [False] * 2 + [True] * 3
    assert smooth_pixels(depth_m, ego_points(depth_m), 1.6, 2)[0].tolist() == [True] * 2 + [False] * 4 + [True] * 2


def test_pixels_without_depth_are_no_points_and_no_edges():
    depth_m = np.full((3, 3), 10.0)
    depth_m[1, 1] = 0
    assert smooth_pixels(depth_m, ego_points(depth_m), 1.6).tolist() == [[True] * 3, [True, False, True], [True] * 3]


def test_a_flat_street_stays_as_far_as_it_goes_and_a_wall_of_the_same_depths_does_not():
    """160 px of rows below the horizon: at 40 m and more the street jumps by 25 % from row to row."""
    rows = np.arange(160) + 0.5 - 80
    street_m = np.where(rows > 0, 160 / np.maximum(rows, 0.5), 0)[:, None].repeat(20, 1)
    ego_m = ego_points(street_m)
    np.testing.assert_allclose(ego_m[street_m > 0][:, 2], 0, atol=1e-9)
    assert (smooth_pixels(street_m, ego_m, 1.6) == (street_m > 0)).all()
    tilted = ego_m[..., [2, 1, 0]]  # the same depths, standing upright
    assert not smooth_pixels(street_m, tilted, 1.6)[81:90].any()


def test_what_is_level_but_not_below_the_camera_is_an_edge():
    """Rows at the horizon: from a roof at 10 m to a wall at 30 m the line of sight itself is level."""
    depth_m = np.repeat([30.0, 20.0, 10.0, 10.0], 4).reshape(4, 4)
    ego_m = ego_points(depth_m)
    assert np.abs(ego_m[..., 2] - 1.6).max() < 0.5
    assert smooth_pixels(depth_m, ego_m, 1.6)[:, 0].tolist() == [False, False, False, True]


def test_depths_outside_the_trained_range_are_not_believed():
    depth_m = np.full((1, 6, 10), 79.0, np.float32)
    rig = rig_of([[9, 0, 5], [0, 7, 3], [0, 0, 1]], [turned(0)], (6, 10))
    assert len(fused_cloud(rig, depth_m, np.eye(4), RANGE_M).points_m) == 60
    assert len(fused_cloud(rig, depth_m + 2, np.eye(4), RANGE_M).points_m) == 0


def room(yaws_deg, valid=None) -> tuple[RigViews, np.ndarray]:
    """Cameras of 90 degrees at one place in the middle of a round room of 10 m: the depth is 10 cos(angle)."""
    size = (20, 40)
    K_px = np.array([[20.0, 0, 20], [0, 20, 10], [0, 0, 1]])
    across = np.arctan((np.arange(40) + 0.5 - 20) / 20)
    depth_m = np.tile(10 * np.cos(across), (len(yaws_deg), 20, 1)).astype(np.float32)
    rig = rig_of(K_px, [turned(yaw, z_m=1.5) for yaw in yaws_deg], size, valid)
    return rig, depth_m


def test_of_a_surface_that_two_cameras_see_the_one_nearer_to_its_axis_stays(monkeypatch):
    """Cameras of 90 degrees, 60 degrees apart: each gives up beyond 30 degrees, on the side of the other."""
    rig, depth_m = room([0.0, -60.0])
    cloud = fused_cloud(rig, depth_m, np.eye(4), RANGE_M)
    yaw = np.rad2deg(np.arctan2(cloud.points_m[:, 1], cloud.points_m[:, 0]))
    assert -106 < yaw.min() < -103 < 43 < yaw.max() < 46
    hidden_from = {int(i): set(map(tuple, rig.image[i].reshape(-1, 3).tolist())) for i in (0, 1)}
    for point_yaw, rgb in zip(yaw, cloud.rgb.tolist(), strict=True):
        if abs(point_yaw + 30) > 2:  # the border between the two
            assert tuple(rgb) in hidden_from[0 if point_yaw > -30 else 1]
    per_degree = np.histogram(yaw, bins=np.arange(-100, 41, 10))[0]
    assert per_degree.max() < 1.7 * per_degree.min()  # nowhere twice: pixels of 2.9 to 1.6 degrees


def test_what_the_other_camera_does_not_see_stays():
    """Something at 3 m hides the wall from the second camera: then both are there."""
    rig, depth_m = room([0.0, -60.0])
    lone = len(fused_cloud(rig, depth_m[:, :, :], np.eye(4), RANGE_M).points_m)
    depth_m[1] *= 0.3
    both = fused_cloud(rig, depth_m, np.eye(4), RANGE_M)
    assert len(both.points_m) == 2 * 20 * 40 > lone


def test_missing_cameras_have_no_points():
    rig, depth_m = room([0.0, -120.0, 120.0], valid=[True, False, True])
    depth_m[1] = 0
    rig.intrinsics[1] = 0
    rig.world_from_cam[1] = np.eye(4)
    with np.errstate(all="raise"):
        cloud = fused_cloud(rig, depth_m, np.eye(4), RANGE_M)
    assert len(cloud.points_m) == 2 * 20 * 40
    nobody = fused_cloud(replace(rig, view_valid=np.zeros(3, bool)), 0 * depth_m, np.eye(4), RANGE_M)
    assert nobody.points_m.shape == (0, 3)


def test_a_frame_s_cloud_has_no_pixels_of_the_vehicle_itself_and_its_neighbours_are_half_a_cell_away(monkeypatch):
    frame = FakeSource(missing={"d/2": (0, 2)}).frame("d/2")
    mask = np.ones((48, 80), bool)
    mask[24:] = False
    views = (None, replace(frame.views[1], load_unoccluded=lambda: mask), None)
    K_px = frame.views[1].camera.K_px
    rig = rig_of(K_px, [view.world_from_cam if view else np.eye(4) for view in views], (48, 80), [False, True, False])
    depth_m = np.zeros((3, 48, 80), np.float32)
    depth_m[1] = 5
    asked = []
    smooth = point_cloud.smooth_pixels
    monkeypatch.setattr(point_cloud, "smooth_pixels", lambda *a: asked.append(a[3]) or smooth(*a))
    cloud = frame_cloud(replace(frame, views=views), Prediction(rig, depth_m), RANGE_M, 4)
    assert asked == [2]
    # The mask is smoothed as the masked protocol has it, which may keep a row more.
    assert 24 * 80 <= len(cloud.points_m) <= 25 * 80
    # By hand: cameras 1.5 m above the vehicle's origin, frame 2 of the fake moves the origin by 0.2 m to the left.
    heights = cloud.points_m[:, 2]
    assert heights.min() > 1.5 - 0.5 / 40 * 5 - 0.13
    assert heights.max() == pytest.approx(1.5 + 23.5 / 40 * 5, abs=1e-4)
    yaw = -2 * np.pi / 3
    assert (cloud.points_m[:, :2] @ (np.cos(yaw), np.sin(yaw))).mean() == pytest.approx(5 - 0.2 * np.sin(yaw), abs=1e-4)


def test_pixels_that_a_calibrated_student_is_not_sure_of_are_left_out():
    """Only if sigma is calibrated: the spread of bins as it is says nothing in units of log depth."""
    frame, (rig, depth_m) = FakeSource().frame("d/0"), room([0.0])
    sigma = np.full(depth_m.shape, point_cloud.SIGMA_LIMIT, np.float32)
    sigma[0, 0, :3] += 0.01
    clouds = [
        frame_cloud(frame, Prediction(rig, depth_m, values, calibrated), RANGE_M, 2)
        for values, calibrated in ((None, False), (sigma, False), (sigma, True))
    ]
    sizes = [len(cloud.points_m) for cloud in clouds]
    assert sizes[0] == sizes[1] == sizes[2] + 3
    np.testing.assert_array_equal(clouds[0].points_m[3:], clouds[2].points_m)


def test_without_the_vehicle_s_place_there_is_no_cloud_but_an_error_with_a_remedy():
    frame = FakeSource().frame("d/0")
    with pytest.raises(FrameError, match="give ego_from_cam in rig.json"):
        frame_cloud(replace(frame, world_from_ego=None), Prediction(*room([0.0])), RANGE_M, 2)


def test_a_frame_without_a_point_in_range_is_an_error_of_that_frame():
    frame, (rig, depth_m) = FakeSource().frame("d/0"), room([0.0, -120.0, 120.0])
    with pytest.raises(FrameError, match="frame d/0: no depth from 0.1 to 80 m"):
        frame_cloud(frame, Prediction(rig, depth_m * 100), RANGE_M, 2)


def test_a_thinned_cloud_is_a_part_of_it_and_always_the_same():
    rig, depth_m = room([0.0])
    cloud = fused_cloud(rig, depth_m, np.eye(4), RANGE_M)
    some = thinned(cloud, 100)
    where = {tuple(point): tuple(rgb) for point, rgb in zip(cloud.points_m.tolist(), cloud.rgb.tolist(), strict=True)}
    assert len(some.points_m) == 100
    assert all(where[tuple(p)] == tuple(c) for p, c in zip(some.points_m.tolist(), some.rgb.tolist(), strict=True))
    np.testing.assert_array_equal(thinned(cloud, 100).points_m, some.points_m)
    assert thinned(cloud, 800) is cloud
