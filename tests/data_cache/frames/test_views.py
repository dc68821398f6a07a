from dataclasses import replace

import numpy as np
import pytest
from support.fakes import NATIVE_SIZE, FakeSource

from data_cache.errors import FrameError
from data_cache.frames.rig import Frame, Sweep
from data_cache.frames.views import RigViews, load_images, rig_views

SIZE = (24, 20)  # half the native height, a quarter of the width


def views_of(frame: Frame, points_m: list[list[float]] | None = None, size: tuple[int, int] = SIZE) -> RigViews:
    sweep = None if points_m is None else Sweep(np.array(points_m), np.eye(4))
    rows, columns = NATIVE_SIZE[0] // size[0], NATIVE_SIZE[1] // size[1]
    images = tuple(None if image is None else image[::rows, ::columns] for image in load_images(frame))
    return rig_views(frame, images, sweep, size)


def test_all_views_have_one_size_and_their_own_pixels():
    frame = FakeSource().frame("d/0")
    rig = views_of(frame)
    assert rig.image.shape == (3, *SIZE, 3)
    assert rig.view_valid.all()
    assert len({view.tobytes() for view in rig.image}) == 3
    np.testing.assert_array_equal(views_of(frame, size=NATIVE_SIZE).image, np.stack(load_images(frame)))


def test_a_missing_camera_leaves_zeros_in_its_own_slot():
    frame = FakeSource(missing={"d/0": (1,)}).frame("d/0")
    whole = views_of(FakeSource().frame("d/0"), [[5.0, 0, 0], [-5.0, 0, 0]])
    rig = views_of(frame, [[5.0, 0, 0], [-5.0, 0, 0]])
    assert rig.view_valid.tolist() == [True, False, True]
    assert load_images(frame)[1] is None
    for array in (rig.image, rig.lidar_depth_m, rig.intrinsics):
        assert not array[1].any()
    np.testing.assert_array_equal(rig.world_from_cam[1], np.eye(4))
    for i in (0, 2):
        np.testing.assert_array_equal(rig.image[i], whole.image[i])
        np.testing.assert_array_equal(rig.intrinsics[i], whole.intrinsics[i])
        np.testing.assert_array_equal(rig.world_from_cam[i], whole.world_from_cam[i])
        np.testing.assert_array_equal(rig.lidar_depth_m[i], whole.lidar_depth_m[i])


def test_intrinsics_are_scaled_by_hand():
    """The camera right has fx 41, fy 40, centre (40, 24) at 48 x 80 pixels."""
    rig = views_of(FakeSource().frame("d/0"))
    np.testing.assert_allclose(rig.intrinsics[1], [[41 / 4, 0, 10], [0, 20, 12], [0, 0, 1]])


def test_poses_are_kept_by_hand():
    """The camera right looks 120 degrees to the right of x: its z axis is (-1/2, -sqrt(3)/2, 0) in the world."""
    rig = views_of(FakeSource().frame("d/0"))
    np.testing.assert_allclose(rig.world_from_cam[1, :3, 2], [-0.5, -np.sqrt(0.75), 0], atol=1e-12)


def test_lidar_depth_lies_in_the_pixel_that_the_hand_says():
    """Five metres ahead, one to the left, half a metre up, seen by the front camera of fx 10 and fy 20:

    u = 10 * -1 / 5 + 10 = 8, v = 20 * -0.5 / 5 + 12 = 10; it is not in the other cameras.
    """
    rig = views_of(FakeSource().frame("d/0"), [[5.0, 1.0, 0.5]])
    assert np.argwhere(rig.lidar_depth_m).tolist() == [[0, 10, 8]]
    assert rig.lidar_depth_m[0, 10, 8] == 5


def test_without_a_sweep_there_is_no_depth():
    rig = views_of(FakeSource().frame("d/0"))
    assert rig.lidar_depth_m.shape == (3, *SIZE)
    assert not rig.lidar_depth_m.any()


def test_native_images_keep_their_size_and_a_damaged_one_is_a_frame_error():
    frame = FakeSource().frame("d/0")
    assert [image.shape for image in load_images(frame)] == [(*NATIVE_SIZE, 3)] * 3

    def damaged(at_least=None) -> np.ndarray:
        raise FrameError("left: damaged")

    views = (*frame.views[:2], replace(frame.views[2], load_image=damaged))
    with pytest.raises(FrameError, match="left: damaged"):
        load_images(replace(frame, views=views))
