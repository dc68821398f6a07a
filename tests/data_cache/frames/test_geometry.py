import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from data_cache.frames.geometry import cam_from_lidar, project, resized_intrinsics, sparse_depth, unproject, zbuffer
from data_cache.frames.rig import Camera, Sweep, View

K_PX = np.array([[100.0, 0.0, 32.0], [0.0, 50.0, 20.0], [0.0, 0.0, 1.0]])
SIZE = (40, 64)
sides = st.integers(1, 40)


def shifted(x_m: float = 0.0, y_m: float = 0.0, z_m: float = 0.0) -> np.ndarray:
    pose = np.eye(4)
    pose[:3, 3] = x_m, y_m, z_m
    return pose


def view(world_from_cam: np.ndarray) -> View:
    camera = Camera("c", K_PX, width_px=SIZE[1], height_px=SIZE[0])
    return View(camera, world_from_cam, 0, lambda: np.zeros((*SIZE, 3), np.uint8))


def test_a_point_lands_where_the_hand_says():
    """By hand: u = 100 * 0.2 / 2 + 32, v = 50 * -0.1 / 2 + 20."""
    seen = project(np.array([[0.2, -0.1, 2.0]]), np.eye(4), K_PX, SIZE)
    assert (seen.u_px[0], seen.v_px[0], seen.depth_m[0], seen.index[0]) == pytest.approx((42.0, 17.5, 2.0, 0))
    depth_m = zbuffer(seen, SIZE)
    assert depth_m[17, 42] == 2.0
    assert np.count_nonzero(depth_m) == 1


def test_skew_moves_u_only():
    K_px = K_PX.copy()
    K_px[0, 1] = 10.0
    seen = project(np.array([[0.2, -0.1, 2.0]]), np.eye(4), K_px, SIZE)
    assert (seen.u_px[0], seen.v_px[0]) == pytest.approx((41.5, 17.5))


def test_the_pose_takes_points_to_the_camera():
    """A camera one metre to the right of the points' origin sees the point one metre further left."""
    seen = project(np.array([[1.2, -0.1, 2.0]]), shifted(x_m=-1.0), K_PX, SIZE)
    assert seen.u_px[0] == pytest.approx(42.0)


def test_the_image_is_half_open_and_near_points_are_dropped():
    at_edges = np.array([[-0.32, 0, 1], [0.32, 0, 1], [0, -0.4, 1], [0, 0.4, 1], [0, 0, 0.1], [0, 0, -1.0]])
    seen = project(at_edges, np.eye(4), K_PX, SIZE)
    np.testing.assert_array_equal(seen.index, [0, 2])
    np.testing.assert_allclose(seen.u_px, [0, 32])
    assert project(at_edges, np.eye(4), K_PX, SIZE, min_depth_m=1.0).index.size == 0


def test_the_nearer_of_two_points_stays():
    points_m = np.array([[0.0, 0.0, 9.0], [0.0, 0.0, 4.0], [0.0, 0.0, 7.0]])
    assert zbuffer(project(points_m, np.eye(4), K_PX, SIZE), SIZE)[20, 32] == 4.0


def test_a_moving_vehicle_is_undone_through_both_poses():
    """By hand: LiDAR at z = 1, camera at z = 3 by the time of its image; 5 m ahead of the LiDAR is 3 m from it."""
    camera_view, sweep = view(shifted(z_m=3.0)), Sweep(np.array([[0.0, 0.0, 5.0]]), shifted(z_m=1.0))
    np.testing.assert_allclose(cam_from_lidar(camera_view, sweep), shifted(z_m=-2.0))
    assert sparse_depth(camera_view, sweep, SIZE)[20, 32] == 3.0


def test_a_stretch_maps_pixel_centres_to_pixel_centres():
    """The shared corner of four native pixels at (6, 2) is the centre (1.5, 0.5) of a pixel a quarter the size."""
    K_px = np.array([[8.0, 0.0, 4.0], [0.0, 8.0, 1.0], [0.0, 0.0, 1.0]])
    small = resized_intrinsics(K_px, (8, 16), (2, 4))
    np.testing.assert_allclose(small, [[2, 0, 1], [0, 2, 0.25], [0, 0, 1]])
    point = np.array([[0.25, 0.125, 1.0]])
    native, resized = project(point, np.eye(4), K_px, (8, 16)), project(point, np.eye(4), small, (2, 4))
    assert (native.u_px[0], native.v_px[0]) == pytest.approx((6.0, 2.0))
    assert (resized.u_px[0], resized.v_px[0]) == pytest.approx((1.5, 0.5))


def test_height_and_width_scale_apart():
    np.testing.assert_allclose(resized_intrinsics(K_PX, (40, 64), (20, 64)), [[100, 0, 32], [0, 25, 10], [0, 0, 1]])


@given(st.tuples(sides, sides), st.tuples(sides, sides), st.tuples(sides, sides))
def test_two_stretches_are_one(a, b, c):
    twice = resized_intrinsics(resized_intrinsics(K_PX, a, b), b, c)
    np.testing.assert_allclose(twice, resized_intrinsics(K_PX, a, c), rtol=1e-12)


def test_unproject_by_hand():
    """The pixel in row 0, column 3 is centred at u = 3.5, v = 0.5."""
    depth_m = np.zeros((2, 4))
    depth_m[0, 3] = 2.0
    K_px = np.array([[1.0, 0.5, 1.5], [0.0, 2.0, 1.5], [0.0, 0.0, 1.0]])
    point = unproject(depth_m, K_px)[0, 3]
    np.testing.assert_allclose(point, [2 * (3.5 - 1.5 - 0.5 * -0.5), 2 * (0.5 - 1.5) / 2, 2.0])
    np.testing.assert_array_equal(unproject(depth_m, K_px)[1, 0], 0)


@given(
    hnp.arrays(np.float32, st.tuples(sides, sides), elements=st.floats(0.5, 100, width=32)),
    st.floats(5, 500),
    st.floats(5, 500),
    st.floats(-3, 3),
)
def test_projection_undoes_unproject(depth_m, fx, fy, skew):
    height, width = depth_m.shape
    K_px = np.array([[fx, skew, width / 2], [0, fy, height / 2], [0, 0, 1]])
    points_m = unproject(depth_m, K_px).reshape(-1, 3)
    seen = project(points_m, np.eye(4), K_px, depth_m.shape)
    np.testing.assert_array_equal(zbuffer(seen, depth_m.shape), depth_m)
    np.testing.assert_allclose(seen.u_px % 1, 0.5, atol=1e-6)


@given(hnp.arrays(np.float64, st.tuples(st.integers(0, 60), st.just(3)), elements=st.floats(-50, 50)))
def test_the_z_buffer_holds_the_minimum_of_each_pixel(points_m):
    seen = project(points_m, np.eye(4), K_PX, SIZE)
    nearest: dict[tuple[int, int], float] = {}
    for u, v, z in zip(seen.u_px, seen.v_px, seen.depth_m, strict=True):
        pixel = (int(v), int(u))
        nearest[pixel] = min(z, nearest.get(pixel, np.inf))
    depth_m = zbuffer(seen, SIZE)
    assert np.count_nonzero(depth_m) == len(nearest)
    for pixel, z in nearest.items():
        assert depth_m[pixel] == np.float32(z)
