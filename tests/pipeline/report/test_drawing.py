import numpy as np
import pytest

from pipeline.report.drawing import draw_points, nearest_at, panorama_order, scale_ticks
from stages.inference.colours import colour_depth, depth_scale


def test_the_colour_bar_names_both_ends_of_the_range():
    ticks = scale_ticks(depth_scale((0.1, 80.0)), (0.1, 80.0))
    assert [tick.label for tick in ticks] == ["≤ 1", "2", "5", "10", "20", "50", "80"]
    assert ticks[0].fraction == 0
    assert ticks[3].fraction == pytest.approx(0.5255, abs=1e-4)  # log 10 / log 80
    assert ticks[-1].fraction == 1
    far = scale_ticks(depth_scale((2.0, 200.0)), (2.0, 200.0))
    assert [tick.label for tick in far] == ["2", "5", "10", "20", "50", "100", "200"]


def test_where_points_overlap_the_nearest_is_on_top():
    scale = depth_scale((0.1, 80.0))
    depth_m = np.zeros((20, 30))
    depth_m[10, 10], depth_m[10, 11] = 3.0, 30.0
    drawn = draw_points(np.full((20, 30, 3), 100, np.uint8), depth_m, scale)
    near, far = colour_depth(np.array([[3.0, 30.0]]), scale)[0]
    for column in (9, 10, 11):
        np.testing.assert_array_equal(drawn[10, column], near)
    np.testing.assert_array_equal(drawn[10, 12], far)
    np.testing.assert_array_equal(drawn[9, 10], near)
    np.testing.assert_array_equal(drawn[0, 0], (30, 30, 30))


@pytest.mark.parametrize("pair_m", [(3.0, 30.0), (30.0, 3.0)])
def test_of_points_that_share_a_pixel_the_nearest_stays(pair_m):
    scale = depth_scale((0.1, 80.0))
    drawn = draw_points(np.zeros((5, 5, 3), np.uint8), np.tile(pair_m, (10, 5)), scale)
    np.testing.assert_array_equal(drawn, colour_depth(np.full((5, 5), 3.0), scale))


def test_a_small_depth_map_keeps_its_points_and_its_depths():
    depth_m = np.array([[1.0, 7.0], [7.0, 70.0]])
    panel = nearest_at(depth_m, (30, 50))
    assert panel.shape == (30, 50)
    assert set(np.unique(panel)) == {1.0, 7.0, 70.0}
    assert (panel[0, 0], panel[0, -1], panel[-1, -1]) == (1.0, 7.0, 70.0)
    scale = depth_scale((0.1, 80.0))
    drawn = draw_points(np.zeros((40, 60, 3), np.uint8), np.array([[0.0, 7.0]]), scale)
    np.testing.assert_array_equal(drawn[20, 45], colour_depth(np.array([[7.0]]), scale)[0, 0])
    assert (drawn.any(axis=2)).sum() == 5


@pytest.mark.parametrize(
    ("view_count", "order"),
    [(6, (4, 5, 0, 1, 2, 3)), (5, (3, 4, 0, 1, 2)), (4, (3, 0, 1, 2)), (2, (0, 1)), (1, (0,))],
)
def test_the_ring_is_cut_open_behind_the_car(view_count, order):
    assert panorama_order(view_count) == order
