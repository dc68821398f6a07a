import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_cache.frames.rig import Camera, Frame, View
from data_cache.frames.views import RigViews, rig_views
from stages.evaluation.consistency import (
    Overlap,
    overlap_consistency,
    pooled_overlap,
    ring_consistency,
    ring_overlaps,
)
from stages.evaluation.results import Consistency

SIZE = (2, 8)
K_PX = np.broadcast_to([[8.0, 0.0, 4.0], [0.0, 8.0, 1.0], [0.0, 0.0, 1.0]], (2, 3, 3))


def poses(x_m: float = 0.0, z_m: float = 0.0) -> np.ndarray:
    """The second camera stands `x_m` to the right of the first and `z_m` ahead of it, looking the same way."""
    world_from_cam = np.tile(np.eye(4), (2, 1, 1))
    world_from_cam[1, :3, 3] = x_m, 0, z_m
    return world_from_cam


def wall(first_m: float, second_m: float) -> np.ndarray:
    return np.stack([np.full(SIZE, float(first_m)), np.full(SIZE, float(second_m))])


def pair_and_a_gap(pose: np.ndarray) -> tuple[Frame, RigViews]:
    """A frame of the two cameras, left and right, and a third one that is missing."""
    image = np.zeros((*SIZE, 3), np.uint8)
    views = [View(Camera(name, K_PX[i], 8, 2), pose[i], 0, lambda: image) for i, name in enumerate(("left", "right"))]
    frame = Frame("frame", (*views, None))
    return frame, rig_views(frame, (image, image, None), None, SIZE)


def test_two_cameras_that_agree_about_a_wall_have_no_error():
    """A wall 4 m ahead, one metre between the cameras, fx 8: two columns of eight are seen by the first alone."""
    overlap = overlap_consistency(wall(4, 4), K_PX, poses(x_m=1))
    assert (overlap.abs_rel, overlap.compared) == (pytest.approx(0, abs=1e-12), 12)


def test_the_pose_between_the_cameras_counts():
    """The second camera is a metre closer to the wall: 4 m and 3 m agree, 4 m and 4 m do not."""
    agree = overlap_consistency(wall(4, 3), K_PX, poses(z_m=1))
    wrong = overlap_consistency(wall(4, 4), K_PX, poses(z_m=1))
    assert agree.abs_rel == pytest.approx(0, abs=1e-12)
    assert wrong.abs_rel == pytest.approx(1 / 4)


def test_a_scaled_view_is_off_by_its_scale_relative_to_the_second_view():
    """4.4 m projected onto 4 m is 10 % off; 4 m projected onto 4.4 m is 0.4 / 4.4."""
    first, second = (overlap_consistency(wall(*depth), K_PX, poses(x_m=1)) for depth in ((4.4, 4), (4, 4.4)))
    assert first.abs_rel == pytest.approx(0.1)
    assert second.abs_rel == pytest.approx(0.4 / 4.4)


def test_the_comparison_is_made_at_the_pixel_that_sees_the_point():
    """Column 5 of the first view is column 3 of the second; only there the second is 5 m instead of 4 m."""
    depth_m = wall(4, 4)
    depth_m[1, 0, 3] = 5
    overlap = overlap_consistency(depth_m, K_PX, poses(x_m=1))
    assert overlap.abs_rel == pytest.approx((1 - 4 / 5) / 12)
    depth_m = wall(4, 4)
    depth_m[1, 0, 6] = 5  # sees what would be column 8 of the first
    overlap = overlap_consistency(depth_m, K_PX, poses(x_m=1))
    assert overlap.abs_rel == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("depth_m", [2.0, 7.0])
def test_an_occluded_point_is_not_compared(depth_m):
    depths_m = wall(4, 4)
    depths_m[1, :, 3] = depth_m
    overlap = overlap_consistency(depths_m, K_PX, poses(x_m=1))
    assert (overlap.abs_rel, overlap.compared) == (pytest.approx(0, abs=1e-12), 10)


def test_a_depth_of_0_is_none_and_not_compared():
    """Columns 5 and 4 of the first view are 3 and 2 of the second: a hole in one of each, four pixels of twelve."""
    depths_m = wall(4, 4)
    depths_m[0, :, 5] = 0
    depths_m[1, :, 2] = 0
    overlap = overlap_consistency(depths_m, K_PX, poses(x_m=1))
    assert (overlap.abs_rel, overlap.compared) == (pytest.approx(0, abs=1e-12), 8)
    assert (overlap.abs_rel_with_gross, overlap.landed, overlap.share) == (pytest.approx(0, abs=1e-12), 8, 1)


def test_cameras_that_share_nothing_have_no_overlap():
    back_to_back = poses()
    back_to_back[1, :3, :3] = np.diag([-1.0, 1.0, -1.0])
    for apart in (back_to_back, poses(x_m=100)):
        overlap = overlap_consistency(wall(4, 4), K_PX, apart)
        assert (overlap.landed, overlap.abs_rel, overlap.abs_rel_with_gross, overlap.share) == (0, None, None, None)


def test_walls_that_differ_grossly_are_an_error_only_where_one_sees_through_the_other():
    """Two cameras at one place: 4 m may be hidden behind 1 m; whoever says 4 m sees through 1 m, 3 / 4 off."""
    hidden, through = (overlap_consistency(wall(*depth), K_PX, poses()) for depth in ((4, 1), (1, 4)))
    assert (hidden.landed, hidden.abs_rel, hidden.abs_rel_with_gross, hidden.share) == (16, None, None, 0)
    assert (through.landed, through.abs_rel, through.abs_rel_with_gross, through.share) == (16, None, 3 / 4, 0)


def test_what_is_seen_through_counts_with_gross_differences_and_what_is_hidden_does_not_by_hand():
    """Of six columns that land, one falls on 8 m (4 m is seen through: 4 / 8) and one on 2 m (may be hidden)."""
    depths_m = wall(4, 4)
    depths_m[1, :, 3], depths_m[1, :, 4] = 8, 2
    overlap = overlap_consistency(depths_m, K_PX, poses(x_m=1))
    assert (overlap.landed, overlap.not_hidden, overlap.compared) == (12, 10, 8)
    assert overlap.abs_rel == pytest.approx(0, abs=1e-12)
    assert overlap.abs_rel_with_gross == pytest.approx(2 * 0.5 / 10)
    assert overlap.share == pytest.approx(8 / 12)


def test_a_surface_that_is_put_too_far_counts_in_one_of_the_two_directions():
    """Column 5 of the first view says 40 m instead of 4: hidden from there; from the other view 4 m is 36 / 40 off."""
    depths_m, pose = wall(4, 4), poses(x_m=1)
    depths_m[0, :, 5] = 40
    forth = overlap_consistency(depths_m, K_PX, pose)
    back = overlap_consistency(depths_m[::-1], K_PX, pose[::-1])
    assert [(o.landed, o.not_hidden, o.compared) for o in (forth, back)] == [(12, 10, 10), (12, 12, 10)]
    assert forth.abs_rel_with_gross == pytest.approx(0, abs=1e-12)
    assert back.abs_rel_with_gross == pytest.approx(2 * 0.9 / 12)
    both = pooled_overlap([forth, back])
    assert both.abs_rel == pytest.approx(0, abs=1e-12)
    assert both.abs_rel_with_gross == pytest.approx(2 * 0.9 / 22)
    assert both.share == pytest.approx(20 / 24)


def test_a_ring_pools_both_directions_of_neighbours_that_are_there():
    """The third camera is missing, so one pair of three is left; its numbers are those of the test above."""
    depths_m, pose = wall(4, 4), poses(x_m=1)
    depths_m[0, :, 5] = 40
    frame, rig = pair_and_a_gap(pose)
    (name, found), *others = ring_overlaps(frame, rig, depths_m[[0, 1, 1]]).items()
    assert (name, others, found.landed, found.not_hidden, found.compared) == ("left-right", [], 24, 22, 20)
    assert found.not_hidden_sum == pytest.approx(1.8)
    assert ring_overlaps(*pair_and_a_gap(poses(x_m=100)), depths_m[[0, 1, 1]]) == {}
    (gross,) = ring_overlaps(*pair_and_a_gap(poses()), wall(1, 4)[[0, 1, 1]]).values()
    assert gross == Overlap(landed=32, not_hidden=16, compared=0, not_hidden_sum=12.0, compared_sum=0.0)


def test_frames_are_pooled_by_their_points_and_pairs_by_their_mean_by_hand():
    """Of a-b: 0.45 over 5 points, 2.5 over 10, 5 of 12. No point of b-c agrees; of c-a all are hidden."""
    frames = {
        "a-b": [Overlap(10, 8, 4, 2.0, 0.4), Overlap(2, 2, 1, 0.5, 0.05)],
        "b-c": [Overlap(10, 5, 0, 3.0, 0.0)],
        "c-a": [Overlap(3, 0, 0, 0.0, 0.0), Overlap(1, 0, 0, 0.0, 0.0)],
    }
    found = ring_consistency(frames)
    assert found.pairs == pytest.approx({"a-b": 0.09})
    assert found.pairs_with_gross == pytest.approx({"a-b": 0.25, "b-c": 0.6})
    assert found.pairs_share == pytest.approx({"a-b": 5 / 12, "b-c": 0, "c-a": 0})
    assert found.overlap_abs_rel == pytest.approx(0.09)
    assert found.overlap_with_gross == pytest.approx(0.425)
    assert found.overlap_share == pytest.approx(5 / 36)
    assert ring_consistency({}) == Consistency(None, {})


@given(st.floats(1, 50), st.floats(0, 2), st.floats(-0.9, 0.9))
def test_any_wall_seen_rightly_is_consistent(depth_m, x_m, z_m):
    overlap = overlap_consistency(wall(depth_m, depth_m - z_m), K_PX, poses(x_m, z_m))
    assert overlap.abs_rel is None or overlap.abs_rel == pytest.approx(0, abs=1e-9)
