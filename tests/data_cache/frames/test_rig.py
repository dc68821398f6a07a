import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from data_cache.errors import FrameError
from data_cache.frames.rig import Camera, Rig, Sweep, View, make_sweep, pose_from_quaternion, require_rigid

K_PX = np.array([[100.0, 0.0, 32.0], [0.0, 50.0, 20.0], [0.0, 0.0, 1.0]])
component = st.floats(-1, 1)


def edited(matrix: np.ndarray, *changes: tuple[int, int, float]) -> np.ndarray:
    matrix = matrix.copy()
    for row, column, value in changes:
        matrix[row, column] = value
    return matrix


@pytest.mark.parametrize(
    "K_px",
    [
        edited(K_PX, (0, 2, np.nan)),
        edited(K_PX, (0, 0, 0.0)),
        edited(K_PX, (1, 1, -50.0)),
        edited(K_PX, (1, 0, 0.1)),
        edited(K_PX, (2, 2, 2.0)),
    ],
)
def test_a_camera_refuses_intrinsics_that_are_none(K_px):
    with pytest.raises(FrameError, match="camera front"):
        Camera("front", K_px, width_px=64, height_px=40)


def test_a_camera_refuses_an_empty_image():
    with pytest.raises(FrameError, match="0 x 40"):
        Camera("front", K_PX, width_px=0, height_px=40)


@pytest.mark.parametrize(
    ("pose", "reason"),
    [
        (edited(np.eye(4), (0, 3, np.inf)), "finite"),
        (edited(np.eye(4), (0, 0, 1.1)), "rigid"),
        (edited(np.eye(4), (3, 0, 1.0)), "rigid"),
        (edited(np.eye(4), (0, 0, -1.0)), "right-handed"),
    ],
)
def test_poses_are_rigid(pose, reason):
    with pytest.raises(FrameError, match=reason):
        require_rigid(pose, "here")
    with pytest.raises(FrameError, match="camera front: world_from_cam"):
        View(Camera("front", K_PX, 64, 40), pose, 0, lambda: np.zeros((40, 64, 3), np.uint8))
    with pytest.raises(FrameError, match="LiDAR"):
        Sweep(np.zeros((1, 3)), pose)


def test_a_pose_has_four_rows_and_columns():
    with pytest.raises(FrameError, match=r"\(4, 4\)"):
        require_rigid(np.eye(3), "here")


def test_a_sweep_drops_points_that_are_not_finite_and_counts_them():
    points = np.array([[1, 2, 3, 0.5], [np.nan, 0, 0, 0], [4, 5, 6, np.nan], [0, np.inf, 0, 0]])
    sweep = make_sweep(points, np.eye(4), "file")
    np.testing.assert_array_equal(sweep.points_m, [[1, 2, 3], [4, 5, 6]])
    assert sweep.dropped_count == 2


@pytest.mark.parametrize("points", [np.zeros((0, 3)), np.full((5, 3), np.nan), np.zeros((4, 2)), np.zeros(3)])
def test_a_sweep_without_points_is_refused(points):
    with pytest.raises(FrameError, match="file: expected LiDAR points"):
        make_sweep(points, np.eye(4), "file")


def test_a_quaternion_is_w_first_and_turns_to_the_left():
    """By hand: a quarter turn about z takes x to y; then 1, 2, 3 is added."""
    pose = pose_from_quaternion((np.sqrt(0.5), 0.0, 0.0, np.sqrt(0.5)), (1.0, 2.0, 3.0))
    np.testing.assert_allclose(pose @ [10, 0, 0, 1], [1, 12, 3, 1], atol=1e-12)


@given(st.tuples(component, component, component, component), st.floats(0.1, 10))
def test_every_quaternion_is_a_rotation_whatever_its_length_and_sign(wxyz, factor):
    assume(np.linalg.norm(wxyz) > 1e-3)
    w, x, y, z = wxyz
    pose = pose_from_quaternion((w, x, y, z), (4.0, 5.0, 6.0))
    require_rigid(pose, "here")
    other = pose_from_quaternion((-factor * w, -factor * x, -factor * y, -factor * z), (4.0, 5.0, 6.0))
    np.testing.assert_allclose(pose, other, atol=1e-9)


@pytest.mark.parametrize("wxyz", [(0.0, 0.0, 0.0, 0.0), (np.nan, 0.0, 0.0, 1.0), (np.inf, 0.0, 0.0, 1.0)])
def test_a_quaternion_that_is_none_is_refused_where_it_is_used(wxyz):
    with pytest.raises(FrameError, match="finite"):
        Sweep(np.zeros((1, 3)), pose_from_quaternion(wxyz, (0.0, 0.0, 0.0)))


@pytest.mark.parametrize("names", [(), ("a", "a")])
def test_camera_names_of_a_rig_are_unique(names):
    with pytest.raises(ValueError, match="unique"):
        Rig("rig", names)


def test_a_rig_counts_its_places():
    assert Rig("rig", ("a", "b", "c")).view_count == 3
