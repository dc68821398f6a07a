import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_cache.errors import FrameError, SourceError
from data_cache.frames.rig import pose_from_quaternion
from data_cache.sources.recordings.decoding.messages import TransformMessage
from data_cache.sources.recordings.transforms import LONGEST_GAP_NS, EdgeLog, Tree

NO_TURN = (1.0, 0.0, 0.0, 0.0)
QUARTER = (np.sqrt(0.5), 0.0, 0.0, np.sqrt(0.5))  # 90 degrees to the left


def edge(parent, child, *samples, static=False, topic="/tf"):
    log = EdgeLog(parent, child, topic, static)
    for stamp_ns, wxyz, xyz_m in samples:
        log.add(TransformMessage(stamp_ns, parent, child, tuple(map(float, wxyz)), tuple(map(float, xyz_m))))
    return log.edge()


def test_a_third_of_the_way_by_hand():
    """From 0 to 90 degrees and from (0, 0, 0) to (6, 0, 3) m: after a third 30 degrees and (2, 0, 1)."""
    moving = edge("map", "van", (0, NO_TURN, (0, 0, 0)), (300, QUARTER, (6, 0, 3)))
    pose = moving.at(100)
    np.testing.assert_allclose(pose[:3, 3], [2, 0, 1], atol=1e-12)
    np.testing.assert_allclose(pose[:2, :2], [[np.sqrt(0.75), -0.5], [0.5, np.sqrt(0.75)]], atol=1e-12)


def test_the_shorter_way_round_whatever_the_sign_of_the_quaternion():
    negative = tuple(-value for value in QUARTER)
    one = edge("map", "van", (0, NO_TURN, (0, 0, 0)), (300, QUARTER, (6, 0, 3)))
    other = edge("map", "van", (0, NO_TURN, (0, 0, 0)), (300, negative, (6, 0, 3)))
    np.testing.assert_allclose(one.at(100), other.at(100), atol=1e-12)


@settings(max_examples=30)
@given(st.lists(st.floats(-1, 1), min_size=8, max_size=8), st.integers(0, 1000))
def test_poses_between_samples_are_rigid_and_the_samples_themselves_exact(numbers, stamp_ns):
    before, after = (np.array(numbers[i : i + 4]) + np.array([2, 0, 0, 0]) for i in (0, 4))
    moving = edge("map", "van", (0, tuple(before), (1, 2, 3)), (1000, tuple(after), (4, 5, 6)))
    pose = moving.at(stamp_ns)
    np.testing.assert_allclose(pose[:3, :3] @ pose[:3, :3].T, np.eye(3), atol=1e-9)
    np.testing.assert_array_equal(moving.at(0), pose_from_quaternion(tuple(before.tolist()), (1.0, 2.0, 3.0)))


def test_poses_in_a_tree_cancel_from_right_to_left():
    """The van is 10 m ahead and turned left; its camera 2 m before the axle is then 2 m to the left."""
    tree = Tree(
        [edge("map", "van", (5, QUARTER, (10, 0, 0))), edge("van", "cam", (0, NO_TURN, (2, 0, 1)), static=True)]
    )
    np.testing.assert_allclose(tree.pose("map", "cam", 77)[:3, 3], [10, 2, 1], atol=1e-12)
    np.testing.assert_allclose(tree.pose("cam", "map", 77) @ tree.pose("map", "cam", 77), np.eye(4), atol=1e-12)
    assert not tree.moves("map", "cam")


def test_what_never_changes_holds_always_and_a_static_transform_takes_its_last_value():
    repeated = edge("van", "cam", *[(i, NO_TURN, (1, 0, 0)) for i in range(9)])
    assert (repeated.always, len(repeated.stamps_ns)) == (True, 2)
    later = edge("van", "cam", (0, NO_TURN, (1, 0, 0)), (1, NO_TURN, (2, 0, 0)), static=True)
    assert later.at(-5)[0, 3] == 2


def test_a_value_that_is_repeated_and_then_changes_is_interpolated_from_its_last_sample():
    standing = [(i, NO_TURN, (0, 0, 0)) for i in range(0, 100, 10)]
    moving = edge("map", "van", *standing, (100, NO_TURN, (10, 0, 0)))
    assert [moving.at(t)[0, 3] for t in (40, 90, 95, 100)] == [0, 0, 5, 10]


def test_nothing_is_known_before_the_first_and_after_the_last_sample_and_in_long_gaps():
    late = LONGEST_GAP_NS + 101
    moving = edge("map", "van", (0, NO_TURN, (0, 0, 0)), (100, NO_TURN, (1, 0, 0)), (late, NO_TURN, (2, 0, 0)))
    times = np.array([-1, 0, 50, 100, 101, late, late + 1])
    assert moving.covers(times).tolist() == [False, True, True, True, False, True, False]
    with pytest.raises(FrameError, match="expected the pose of van in map at -1 ns, found that /tf gives it from 0 to"):
        moving.at(-1)


def test_samples_come_in_any_order_and_of_one_time_the_last_counts():
    moving = edge("map", "van", (20, NO_TURN, (2, 0, 0)), (10, NO_TURN, (1, 0, 0)), (20, NO_TURN, (4, 0, 0)))
    assert moving.at(15)[0, 3] == 2.5


def test_two_halves_are_named():
    tree = Tree([edge("map", "van", (0, NO_TURN, (0, 0, 0))), edge("rack", "cam", (0, NO_TURN, (0, 0, 0)))])
    with pytest.raises(SourceError, match=r"found two halves: cam, rack; and map, van; record the transform"):
        tree.legs("van", "cam")


def test_a_loop_is_named():
    edges = [edge(a, b, (0, NO_TURN, (0, 0, 0))) for a, b in (("a", "b"), ("b", "c"), ("c", "a"))]
    with pytest.raises(SourceError, match=r"found the loop (a > b > c > a|b > c > a > b|c > a > b > c) \(/tf\)"):
        Tree(edges)


def test_two_parents_are_named_with_what_drops_one():
    with pytest.raises(SourceError, match=r'map \(/tf\) and odom \(/tf2\); drop one: .*"odom > van"'):
        Tree(
            [
                edge("map", "van", (0, NO_TURN, (0, 0, 0))),
                edge("odom", "van", (0, NO_TURN, (0, 0, 0)), topic="/tf2"),
            ]
        )
