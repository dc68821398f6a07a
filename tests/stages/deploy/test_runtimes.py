"""A graph of one camera in the runtimes: a rig is run camera by camera, some of them at a time."""

import numpy as np
import pytest
import torch
from support.deployed import one

from stages.deploy.runtimes import cameras, onnxruntime_runner, openvino_runner, torch_runner


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_camera_by_camera_a_rig_is_what_pytorch_says_of_it(lone_student, lone_model, rigs, threads, monkeypatch):
    """Threads that three cameras divide, do not divide, and do not need; one rig at a time, and three."""
    expected_m = torch_runner(lone_student, "fp32")(rigs)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    for run in (
        onnxruntime_runner(lone_model, one_camera=True),
        onnxruntime_runner(lone_model, one_camera=True, as_written=True),
        openvino_runner(lone_model, "fp32", one_camera=True),
    ):
        np.testing.assert_allclose(run(rigs), expected_m, rtol=1e-4)
        for i in (2, 0):
            np.testing.assert_allclose(run(one(rigs, i))[0], expected_m[i], rtol=1e-4)
    assert (expected_m[1, 1] == 0).all()
    assert (expected_m[[0, 0, 0, 1, 1], [0, 1, 2, 0, 2]] > 0).all()


def test_the_cameras_of_rigs_come_in_ring_order(rigs):
    found = [*cameras(rigs)]
    assert [camera.focal_px.tolist() for camera in found] == [
        [[40], [41], [42]],
        [[50], [0], [52]],
        [[60], [61], [62]],
    ]
    for i, camera in enumerate(found):
        np.testing.assert_array_equal(camera.image[:, 0], rigs.image[:, i])
