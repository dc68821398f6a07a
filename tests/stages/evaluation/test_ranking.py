import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.evaluation.ranking import FrameErrors, place, ranking, shown_frames

ERRORS = {f"f{i}": FrameErrors(value, None) for i, value in enumerate((0.3, 0.1, 0.9, 0.5, 0.2, 0.7, 0.4, 0.6, 0.8))}
"""Worst to best: f2 f8 f5 f7 f3 f6 f0 f4 f1; the median is f3, the middle of the split f4."""


@pytest.mark.parametrize(
    ("count", "shown"),
    [
        (0, ()),
        (1, ("f2",)),
        (2, ("f2", "f1")),
        (3, ("f2", "f3", "f1")),
        (4, ("f2", "f3", "f4", "f1")),
        (6, ("f2", "f8", "f5", "f3", "f4", "f1")),
        (20, ("f2", "f8", "f5", "f7", "f3", "f6", "f0", "f4", "f1")),
    ],
)
def test_the_worst_come_first_and_then_the_median_the_middle_and_the_best(count, shown):
    assert shown_frames(ERRORS, count, "f4") == shown


def test_frames_with_lidar_are_ranked_by_it_and_the_others_fill_up():
    mixed = {
        "a": FrameErrors(None, 9.0),
        "b": FrameErrors(0.1, 0.2),
        "c": FrameErrors(0.2, 0.1),
        "d": FrameErrors(None, None),
    }
    assert ranking(mixed) == ("c", "b")
    assert [place(ranking(mixed), frame_id) for frame_id in "abcd"] == [0, 2, 1, 0]
    assert shown_frames(mixed, 3, "d") == ("c", "b", "d")
    assert shown_frames(mixed, 9, "d") == ("c", "b", "a", "d")


def test_without_lidar_the_teacher_ranks_and_without_both_nothing():
    assert ranking({"a": FrameErrors(None, 0.1), "b": FrameErrors(None, 0.2)}) == ("b", "a")
    nothing = {"a": FrameErrors(None, None), "b": FrameErrors(None, None)}
    assert ranking(nothing) == ()
    assert shown_frames(nothing, 1, "b") == ("b",)
    assert shown_frames({}, 4, "") == ()


@given(st.lists(st.integers(0, 5), min_size=1, max_size=12), st.integers(0, 14))
def test_so_many_as_asked_for_without_repetition(values, count):
    errors = {str(i): FrameErrors(value / 10, None) for i, value in enumerate(values)}
    shown = shown_frames(errors, count, str(len(values) // 2))
    assert len(shown) == len(set(shown)) == min(count, len(values))
    assert [errors[i].abs_rel for i in shown] == sorted((errors[i].abs_rel for i in shown), reverse=True)
    if shown:
        assert errors[shown[0]].abs_rel == max(values) / 10
