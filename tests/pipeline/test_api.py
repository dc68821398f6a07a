"""What a program imports; README's own lines run in cli/test_main.py, on the run that is there."""

from pathlib import Path

import numpy as np
import pytest
import torch
from support.data_sets.loose_images import LENS, camera, write_image, write_rig
from support.fakes import NAMES, NATIVE_SIZE, FakeSource
from support.students import LINEAGE, student
from support.teacher_caches import write_teacher_cache

from data_cache.errors import FrameError, SettingError, SourceError, SurroundWarning
from data_cache.frames.views import load_images, rig_views
from data_cache.shards.errors import IncompleteCacheError
from data_cache.shards.reader import CacheReader
from pipeline.api import load_cache, load_rig, load_student
from stages.compute.resize import depth_at, resize_views
from stages.inference.predict import predict_rig
from stages.student.checkpoint import Calibration, CheckpointError, save_calibration, save_student


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    save_student(tmp_path / "student.safetensors", student(), LINEAGE)
    return tmp_path / "student.safetensors"


def test_files_and_arrays_give_the_depth_of_the_student_at_the_size_of_the_image(tmp_path, checkpoint):
    rig = load_rig(write_rig(tmp_path, *(camera(name) for name in NAMES)))
    arrays = [write_image(tmp_path / f"{name}.png", seed) for seed, name in enumerate(NAMES)]
    look = load_student(str(checkpoint), precision="fp32")
    from_files = look.predict([str(tmp_path / "front.png"), tmp_path / "right.png", None], rig)
    from_arrays = look.predict([arrays[0], arrays[1], None], rig)
    assert from_files[2] is from_arrays[2] is None
    size = student().spec.input_size
    images = resize_views((arrays[0], arrays[1], None), size)
    frame = FakeSource(missing={"d/0": (2,)}).frame("d/0")
    shown = rig_views(frame, images, None, size)
    shown.intrinsics[:2] = [[50 * size[1] / 80, 0, 0], [0, 50 * size[0] / 48, 0], [0, 0, 1]]  # only fx matters
    expected = predict_rig(student(), shown, torch.device("cpu"), "fp32")
    for i in (0, 1):
        np.testing.assert_array_equal(from_files[i], from_arrays[i])
        assert (from_files[i].dtype, from_files[i].shape) == (np.float32, NATIVE_SIZE)
        np.testing.assert_allclose(from_files[i], depth_at(expected[i], NATIVE_SIZE), rtol=1e-4)


def test_metres_follow_the_focal_length_by_hand(tmp_path, checkpoint):
    """The same image behind a lens of twice the focal length shows a world twice as far away."""
    image = write_image(tmp_path / "front.png")
    long = camera("front", intrinsics=[[100.0, 0, 39.5], [0, 100, 23.5], [0, 0, 1]])
    look = load_student(checkpoint, precision="fp32")
    (near_m,) = look.predict([image], load_rig(write_rig(tmp_path, camera("front"))))
    (far_m,) = look.predict([image], load_rig(write_rig(tmp_path, long)))
    np.testing.assert_allclose(far_m, 2 * near_m, rtol=1e-4)


def test_a_distorted_image_is_undistorted_first(tmp_path, checkpoint):
    image = write_image(tmp_path / "front.png")
    look = load_student(checkpoint, precision="fp32")
    rig = load_rig(write_rig(tmp_path, camera("front", distortion=LENS)))
    (from_array,) = look.predict([image], rig)
    (from_file,) = look.predict([tmp_path / "front.png"], rig)
    np.testing.assert_array_equal(from_array, from_file)
    (plain,) = look.predict([image], load_rig(write_rig(tmp_path, camera("front"))))
    assert not np.allclose(from_array, plain)


def test_sigma_comes_with_the_same_depth_and_is_said_to_be_uncalibrated(tmp_path, checkpoint):
    """Calibrated by 0.25, sigma is a quarter of the spread of the bins."""
    image, rig = write_image(tmp_path / "front.png"), load_rig(write_rig(tmp_path, camera("front"), camera("right")))
    plain = load_student(checkpoint, precision="fp32")
    with pytest.warns(SurroundWarning, match="no calibration: its sigma is the spread of its bins"):
        (raw_m, raw), missing = plain.predict_with_sigma([image, None], rig)
    assert missing is None
    copy = tmp_path / "calibrated.safetensors"
    copy.write_bytes(Path(checkpoint).read_bytes())
    save_calibration(copy, Calibration(0.25, "fake", "d", 100))
    sure = load_student(copy, precision="fp32")
    (depth_m, sigma), _ = sure.predict_with_sigma([image, None], rig)
    (expected_m, _) = plain.predict([image, None], rig)
    np.testing.assert_allclose(raw_m, expected_m, rtol=1e-5)
    np.testing.assert_allclose(depth_m, expected_m, rtol=1e-5)
    assert (sigma.dtype, sigma.shape) == (np.float32, NATIVE_SIZE)
    np.testing.assert_allclose(sigma, raw / 4, rtol=1e-5)


def test_a_frame_of_a_data_set_is_looked_at_as_eval_does(checkpoint):
    frame = FakeSource(missing={"d/1": (1,)}).frame("d/1")
    look = load_student(checkpoint, precision="fp32")
    size = look.network.spec.input_size
    shown = rig_views(frame, resize_views(load_images(frame, size), size), None, size)
    expected = predict_rig(look.network, shown, look.device, "fp32")
    there = look.predict_frame(frame)
    assert there[1] is None
    for i in (0, 2):
        np.testing.assert_array_equal(there[i], depth_at(expected[i], NATIVE_SIZE))
    assert look.lineage == LINEAGE


def test_what_is_wrong_says_so(tmp_path, checkpoint):
    look = load_student(checkpoint)
    rig = load_rig(write_rig(tmp_path, camera("front"), camera("right")))
    image = write_image(tmp_path / "front.png")
    for images, message in (
        ([image], "expected 2 images, of front, right, found 1"),
        ([image, tmp_path / "gone.png"], "image missing: .*gone.png"),
        ([image, image[:10]], r"camera right: expected uint8 RGB \(48, 80, 3\), found uint8 \(10, 80, 3\)"),
        ([image, image / 255], "found float64"),
    ):
        with pytest.raises(FrameError, match=message):
            look.predict(images, rig)
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        load_student(tmp_path / "gone")
    with pytest.raises(SettingError, match="expected one of auto, cpu, cuda"):
        load_student(checkpoint, device="tpu")
    with pytest.raises(SourceError, match="expected a file, found none"):
        load_rig(tmp_path / "gone.json")
    with pytest.raises(IncompleteCacheError, match="no cache at"):
        load_cache(tmp_path)


def test_a_cache_is_iterated_split_by_split(tmp_path, teacher_folder):
    write_teacher_cache(tmp_path, FakeSource(2), teacher_folder)
    reader = CacheReader(tmp_path)
    frames = dict(load_cache(tmp_path))
    assert tuple(frames) == reader.frames.train == ("d/0", "d/1")
    record = frames["d/1"]
    np.testing.assert_array_equal(record.image, reader.read("d/1").image)
    np.testing.assert_array_equal(record.lidar_depth_m * 256, record.lidar_depth)
    assert list(load_cache(str(tmp_path), "selection")) == []
    with pytest.raises(SettingError, match="split: expected one of train, selection, got 'test'"):
        load_cache(tmp_path, "test")
