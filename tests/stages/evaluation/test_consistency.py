import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.evaluation.consistency import overlap_consistency

SIZE = (2, 8)
K_PX = np.broadcast_to([[8.0, 0.0, 4.0], [0.0, 8.0, 1.0], [0.0, 0.0, 1.0]], (2, 3, 3))


def poses(x_m: float = 0.0, z_m: float = 0.0) -> np.ndarray:
    """The second camera stands `x_m` to the right of the first and `z_m` ahead of it, looking the same way."""
    world_from_cam = np.tile(np.eye(4), (2, 1, 1))
    world_from_cam[1, :3, 3] = x_m, 0, z_m
    return world_from_cam


def wall(first_m: float, second_m: float) -> np.ndarray:
    return np.stack([np.full(SIZE, float(first_m)), np.full(SIZE, float(second_m))])


def test_two_cameras_that_agree_about_a_wall_have_no_error():
    """A wall 4 m ahead, one metre between the cameras, fx 8: two columns of eight are seen by the first alone."""
    overlap = overlap_consistency(wall(4, 4), K_PX, poses(x_m=1))
    assert overlap is not None
    assert (overlap.abs_rel, overlap.pixels) == (pytest.approx(0, abs=1e-12), 12)


def test_the_pose_between_the_cameras_counts():
    """The second camera is a metre closer to the wall: 4 m and 3 m agree, 4 m and 4 m do not."""
    agree = overlap_consistency(wall(4, 3), K_PX, poses(z_m=1))
    wrong = overlap_consistency(wall(4, 4), K_PX, poses(z_m=1))
    assert agree is not None
    assert wrong is not None
    assert agree.abs_rel == pytest.approx(0, abs=1e-12)
    assert wrong.abs_rel == pytest.approx(1 / 4)


def test_a_scaled_view_is_off_by_its_scale_relative_to_the_second_view():
    """4.4 m projected onto 4 m is 10 % off; 4 m projected onto 4.4 m is 0.4 / 4.4."""
    first, second = (overlap_consistency(wall(*depth), K_PX, poses(x_m=1)) for depth in ((4.4, 4), (4, 4.4)))
    assert first is not None
    assert second is not None
    assert first.abs_rel == pytest.approx(0.1)
    assert second.abs_rel == pytest.approx(0.4 / 4.4)


def test_the_comparison_is_made_at_the_pixel_that_sees_the_point():
    """Column 5 of the first view is column 3 of the second; only there the second is 5 m instead of 4 m."""
    depth_m = wall(4, 4)
    depth_m[1, 0, 3] = 5
    overlap = overlap_consistency(depth_m, K_PX, poses(x_m=1))
    assert overlap is not None
    assert overlap.abs_rel == pytest.approx((1 - 4 / 5) / 12)
    depth_m = wall(4, 4)
    depth_m[1, 0, 6] = 5  # sees what would be column 8 of the first
    overlap = overlap_consistency(depth_m, K_PX, poses(x_m=1))
    assert overlap is not None
    assert overlap.abs_rel == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("depth_m", [2.0, 7.0])
def test_an_occluded_point_is_not_compared(depth_m):
    depths_m = wall(4, 4)
    depths_m[1, :, 3] = depth_m
    overlap = overlap_consistency(depths_m, K_PX, poses(x_m=1))
    assert overlap is not None
    assert (overlap.abs_rel, overlap.pixels) == (pytest.approx(0, abs=1e-12), 10)


def test_a_depth_of_0_is_none_and_not_compared():
    """Columns 5 and 4 of the first view are 3 and 2 of the second: a hole in one of each, four pixels of twelve."""
    depths_m = wall(4, 4)
    depths_m[0, :, 5] = 0
    depths_m[1, :, 2] = 0
    overlap = overlap_consistency(depths_m, K_PX, poses(x_m=1))
    assert overlap is not None
    assert (overlap.abs_rel, overlap.pixels) == (pytest.approx(0, abs=1e-12), 8)


def test_cameras_that_share_nothing_have_no_overlap():
    back_to_back = poses()
    back_to_back[1, :3, :3] = np.diag([-1.0, 1.0, -1.0])
    assert overlap_consistency(wall(4, 4), K_PX, back_to_back) is None
    assert overlap_consistency(wall(4, 4), K_PX, poses(x_m=100)) is None
    assert overlap_consistency(wall(4, 1), K_PX, poses(x_m=1)) is None


@given(st.floats(1, 50), st.floats(0, 2), st.floats(-0.9, 0.9))
def test_any_wall_seen_rightly_is_consistent(depth_m, x_m, z_m):
    overlap = overlap_consistency(wall(depth_m, depth_m - z_m), K_PX, poses(x_m, z_m))
    assert overlap is None or overlap.abs_rel == pytest.approx(0, abs=1e-9)
