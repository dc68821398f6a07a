import numpy as np
from support.fakes import fake_view

from data_cache.frames.rig import Camera, Frame, View
from stages.checkup.ring import check_ring, shared_view


def camera(yaw_right_deg, height_px=20):
    yaw = np.deg2rad(yaw_right_deg)
    pose = np.eye(4)
    pose[:3, :3] = [[np.cos(yaw), 0, np.sin(yaw)], [0, 1, 0], [-np.sin(yaw), 0, np.cos(yaw)]]
    K_px = np.array([[40.0, 0, 40], [0, 40, height_px / 2], [0, 0, 1]])
    return View(Camera(f"c{yaw_right_deg}", K_px, 80, height_px), pose, 0, lambda: np.zeros((height_px, 80, 3)))


def test_two_cameras_of_ninety_degrees_forty_five_apart_share_half():
    assert shared_view(camera(0), camera(45, height_px=400)) == 0.5
    assert shared_view(camera(0), camera(180)) == 0
    assert shared_view(camera(0), camera(0)) == 1


def test_a_ring_is_read_clockwise_from_its_first_camera():
    views = tuple(fake_view(i, 0) for i in range(3))
    ring = check_ring(Frame("f", views))
    assert (ring.clockwise, ring.in_order) == (("front", "right", "left"), True)
    assert ring.shared == {("front", "right"): 0, ("right", "left"): 0, ("left", "front"): 0}
    wrong = check_ring(Frame("f", (views[0], views[2], views[1])))
    assert (wrong.clockwise, wrong.in_order) == (("front", "right", "left"), False)
    assert check_ring(Frame("f", (views[0], None, views[2]))).shared == {("left", "front"): 0.0}
