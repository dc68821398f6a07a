import numpy as np
import pytest

from data_cache.frames.rig import make_sweep
from data_cache.frames.views import RigViews, load_images, rig_views
from data_cache.sources.registry import open_source
from data_cache.sources.synthetic.world import STREET
from stages.compute.resize import resize_views
from stages.evaluation.regions import regions, truth_at

RANGE_M = (0.1, 80.0)


def level_rig(depth_m: np.ndarray, f_px: float = 2.0) -> RigViews:
    """One camera at the origin of the world that looks along x, z up; LiDAR returns where `depth_m` says."""
    height, width = depth_m.shape
    world_from_cam = np.eye(4)
    world_from_cam[:3, :3] = [[0, 0, 1], [-1, 0, 0], [0, -1, 0]]
    K_px = np.array([[f_px, 0, width / 2], [0, f_px, height / 2], [0, 0, 1]], np.float32)
    image, lidar_m = np.zeros((1, height, width, 3), np.uint8), depth_m[None].astype(np.float32)
    return RigViews(image, lidar_m, K_px[None], world_from_cam[None], np.array([True]))


def test_truth_is_taken_at_pixel_centres_and_never_mixed():
    """Two rows of two to one row of four: columns at 1/8, 3/8, 5/8, 7/8 of the width, the row at its middle."""
    truth = np.array([[1.0, 2.0], [3.0, 4.0]])
    np.testing.assert_array_equal(truth_at(truth, (1, 4)), [[3, 3, 4, 4]])
    np.testing.assert_array_equal(truth_at(np.arange(8.0)[None], (1, 2)), [[2, 6]])


def test_edges_by_hand():
    """A step of factor 2 between columns 4 and 5 of 12 marks columns 4, 5 and three on each side; 20 % is no edge."""
    truth = np.full((3, 12), 10.0)
    truth[:, 5:] = 20.0
    truth[:, 11] = 24.0
    found = regions(truth, level_rig(np.zeros((3, 12))), 0, None, RANGE_M)
    np.testing.assert_array_equal(np.flatnonzero(found.edges[1]), [1, 2, 3, 4, 5, 6, 7, 8])
    assert found.all.all()
    assert not found.above_lidar.any()


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize(("ratio", "edge"), [(1.24, False), (1.26, True)])
def test_an_edge_is_a_quarter_farther_along_either_axis(axis, ratio, edge):
    truth = np.full((9, 9), 10.0)
    truth[5:] *= ratio
    truth = truth if axis == 0 else truth.T
    assert regions(truth, level_rig(np.zeros((9, 9))), 0, None, RANGE_M).edges.any() == edge


def test_the_sky_makes_an_edge_and_is_in_no_region():
    truth = np.full((8, 3), 10.0)
    truth[:2] = 0
    found = regions(truth, level_rig(np.zeros((8, 3))), 0, None, RANGE_M)
    assert found.edges[:, 1].tolist() == [False, False, True, True, True, True, False, False]
    assert found.all[:, 1].tolist() == [False, False, True, True, True, True, True, True]


def test_above_the_lidar_by_hand():
    """Focal length 2 px, rows at 1.5, 0.5, -0.5, -1.5 px above the centre: slopes 3/4, 1/4, ...; the beams reach 1/2.

    The LiDAR is 1 m above the camera, so a surface 4 m away at slope 3/4 is seen at (3 - 1) / 4 = 1/2: not above it.
    """
    truth = np.full((4, 2), 4.0)
    lidar = np.zeros((4, 2))
    lidar[2, 1] = 4.0
    for height_m, above in ((0.0, [True, False, False, False]), (1.0, [False, False, False, False])):
        pose = np.eye(4)
        pose[2, 3] = height_m
        sweep = make_sweep(np.array([[2.0, 0.0, 1.001], [5.0, 0, -1]]), pose, "x")
        found = regions(truth, level_rig(lidar, 2.0), 0, sweep, RANGE_M)
        # The columns lie half a pixel beside the middle, which makes the distance a little longer and the slope lower.
        assert found.above_lidar[:, 0].tolist() == above
        assert found.at_lidar.sum() == 1
        assert found.at_lidar[2, 1]


def test_truth_out_of_range_is_in_no_region():
    truth = np.array([[10.0, 90.0, 10.0, 0.05]])
    found = regions(truth, level_rig(truth), 0, None, RANGE_M)
    assert found.all[0].tolist() == [True, False, True, False]
    assert not (found.edges & ~found.all).any()


def test_no_return_of_the_synthetic_lidar_lies_above_its_field_of_view():
    source = open_source("synthetic", None)
    frame = source.frame("drive-00/0")
    sweep, size = frame.load_sweep(), (96, 160)
    rig = rig_views(frame, resize_views(load_images(frame), size), sweep, size)
    found = regions(truth_at(frame.load_truth_m[0](), size), rig, 0, sweep, RANGE_M)
    assert 0.02 < found.above_lidar.mean() < 0.5
    assert (found.above_lidar & found.at_lidar).sum() < 0.02 * found.at_lidar.sum()
    slope = sweep.points_m[:, 2] / np.hypot(sweep.points_m[:, 0], sweep.points_m[:, 1])
    assert np.rad2deg(np.arctan(slope.max())) == pytest.approx(STREET.lidar.elevation_deg[-1], abs=0.5)
