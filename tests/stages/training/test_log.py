import errno
import time

import numpy as np
import pytest
import torch
from support.trainings import RANGE_M, STUDENT, rigs
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from stages.inference.colours import NO_DEPTH_RGB, colour_depth, depth_scale
from stages.student.model import Student
from stages.targets.spec import BinSpec
from stages.training.log import TrainingLog, predicted_depth_m, training_picture


def test_the_picture_shows_cameras_lidar_and_depth_one_below_the_other():
    torch.manual_seed(0)
    student, frames = Student(STUDENT, BinSpec(count=16, prob_stride=4)).train(), rigs(1)
    frames.lidar_depth_m[0, 1] = 0
    picture = training_picture(student, frames, RANGE_M, "fp32")
    assert student.training
    h, w = STUDENT.input_size
    assert picture.shape == (3 * h, 3 * w, 3)
    assert np.array_equal(picture[:h, w : 2 * w], frames.image[0, 1].permute(1, 2, 0).numpy())
    assert (picture[h : 2 * h, w : 2 * w] == NO_DEPTH_RGB).all()
    depth_m = predicted_depth_m(student, frames, "fp32")[0, 2].numpy()
    assert np.array_equal(picture[2 * h :, 2 * w :], colour_depth(depth_m, depth_scale(RANGE_M)))


def test_a_disk_that_is_full_costs_the_pictures_and_not_the_steps(tmp_path, monkeypatch):
    with TrainingLog(tmp_path, 0) as log:
        full = OSError(errno.ENOSPC, "No space left on device")
        monkeypatch.setattr("torch.utils.tensorboard.SummaryWriter.add_scalar", lambda *_: (_ for _ in ()).throw(full))
        with pytest.warns(UserWarning, match="TensorBoard cannot be written: .*No space left"):
            log.write(10, {"kl": 0.5})
        log.write(20, {"kl": 0.4})
        log.show(20, np.zeros((4, 6, 3), np.uint8))
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == 2


def test_a_resumed_run_shows_every_step_once(tmp_path):
    for begin, steps in ((0, (10, 20)), (10, (20, 30))):
        time.sleep(1)  # TensorBoard orders files by the second in their names
        with TrainingLog(tmp_path, begin) as log:
            for step in steps:
                log.write(step, {"kl": begin / 10})
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in board.Scalars("kl")] == [(10, 0), (20, 1), (30, 1)]


def test_tensorboard_has_what_was_written_and_shown(tmp_path):
    with TrainingLog(tmp_path, 0) as log:
        log.write(10, {"kl": 0.5})
        log.show(10, np.zeros((4, 6, 3), np.uint8))
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in board.Scalars("kl")] == [(10, 0.5)]
    (shown,) = board.Images("depth")
    assert (shown.step, shown.height, shown.width) == (10, 4, 6)
