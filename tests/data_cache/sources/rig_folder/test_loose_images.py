import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.data_sets.loose_images import LEFT, LENS, SIZE, camera, write_image, write_rig

from data_cache.errors import FrameError, SourceError
from data_cache.sources.base import Source
from data_cache.sources.rig_folder.loose_images import SINGLE, LooseImages, frame_of
from data_cache.sources.rig_folder.rig_json import read_rig
from data_cache.sources.rig_folder.source import RigFolderSource


@pytest.fixture
def rig(tmp_path) -> Path:
    """A plain camera, a distorted one, and one of which only the name is known."""
    return write_rig(tmp_path, camera("front"), camera("right", distortion=LENS), {"name": "left"})


def test_files_named_after_cameras_are_one_frame(tmp_path, rig):
    rgb = write_image(tmp_path / "a" / "front.png", 1)
    write_image(tmp_path / "b" / "right.png", 2)
    source = LooseImages([tmp_path / "b/right.png", tmp_path / "a/front.png"], rig)
    assert isinstance(source, Source)
    assert (source.rig.name, source.rig.camera_names) == ("van", ("front", "right", "left"))
    assert source.drives == {SINGLE: (SINGLE,)}
    front, right, left = source.frame(SINGLE).views
    assert left is None
    np.testing.assert_array_equal(front.load_image(), rgb)
    np.testing.assert_array_equal(front.camera.K_px, [[50, 0, 40], [0, 50, 24], [0, 0, 1]])
    np.testing.assert_array_equal(source.frame(SINGLE).world_from_ego, np.eye(4))
    np.testing.assert_array_equal(right.world_from_cam, LEFT)
    assert (front.image_file, right.image_file) == (tmp_path / "a/front.png", None)


def test_a_distorted_camera_is_undistorted_as_a_rig_folder_does_it(tmp_path, rig):
    for name in ("front", "right"):
        write_image(tmp_path / f"{name}.png", 3)
    line = {"id": "a", "drive": "d", "time_ns": 1, "cameras": {"right": {"image": "right.png"}}}
    (tmp_path / "frames.jsonl").write_text(json.dumps(line))
    expected = RigFolderSource(tmp_path).frame("a").views[1]
    described = read_rig(rig)
    with Image.open(tmp_path / "right.png") as image:
        in_memory = frame_of([None, np.array(image), None], described).views[1]
    for view in (LooseImages([tmp_path], rig).frame(SINGLE).views[1], in_memory):
        np.testing.assert_array_equal(view.load_image(), expected.load_image())
        np.testing.assert_array_equal(view.camera.K_px, expected.camera.K_px)


def test_a_folder_for_each_camera_is_frames_in_lockstep(tmp_path, rig):
    for name, stems in (("front", ("100", "200")), ("right", ("103", "199"))):
        for stem in stems:
            write_image(tmp_path / "in" / name / f"{stem}.png", int(stem))
    (tmp_path / "in" / "front" / "notes.txt").write_text("no image")
    source = LooseImages([tmp_path / "in"], rig)
    assert source.drives == {SINGLE: ("100", "200")}
    with Image.open(tmp_path / "in/front/200.png") as image:
        np.testing.assert_array_equal(source.frame("200").views[0].load_image(), np.array(image))
    with pytest.raises(FrameError, match="ids look like 100"):
        source.frame("300")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            [],
            r"expected one image right.jpg \(or .png, ...\), or one folder right, found front.png; if the",
        ),
        (["right.png", "right.jpg"], "found right.jpg, right.png"),
        (["right/1.png", "right/2.png"], "expected the same number of images for each camera, found front 1, right 2"),
        (["right/1.txt"], "right: expected images, found none"),
    ],
)
def test_what_is_missing_or_there_twice_is_named(tmp_path, rig, files, message):
    for file in ["front.png", *files]:
        path = tmp_path / "in" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    with pytest.raises(SourceError, match=message):
        LooseImages([tmp_path / "in"], rig)


def test_one_name_with_two_suffixes_is_two_frames_of_one_id_and_refused(tmp_path):
    for file in ("1.png", "1.jpg"):
        write_image(tmp_path / "front" / file)
    with pytest.raises(SourceError, match="one with two suffixes"):
        LooseImages([tmp_path], write_rig(tmp_path, camera("front")))


def test_paths_and_rigs_that_are_not_there_are_named(tmp_path, rig):
    with pytest.raises(SourceError, match="found nothing at .*nowhere"):
        LooseImages([tmp_path / "nowhere"], rig)
    with pytest.raises(SourceError, match="expected a file, found none"):
        LooseImages([tmp_path], tmp_path / "no.json")
    with pytest.raises(SourceError, match="expected cameras with intrinsics, found only names"):
        LooseImages([tmp_path], write_rig(tmp_path, {"name": "a"}))


def test_an_image_of_another_size_is_refused_from_file_and_memory(tmp_path, rig):
    write_image(tmp_path / "front.png", size=(24, 40))
    write_image(tmp_path / "right.png")
    views = LooseImages([tmp_path], rig).frame(SINGLE).views
    with pytest.raises(FrameError, match=r"front.png: expected 48 x 80 px \(h x w\), found 24 x 40"):
        views[0].load_image()
    for image in (np.zeros((24, 40, 3), np.uint8), np.zeros((48, 80, 4), np.uint8), np.zeros((48, 80, 3), np.int64)):
        view = frame_of([image, None, None], read_rig(rig)).views[0]
        with pytest.raises(FrameError, match=r"camera front: expected uint8 RGB \(48, 80, 3\), found"):
            view.load_image()


def test_a_wrong_number_of_images_and_one_of_an_unknown_camera_are_refused(rig):
    image = np.zeros((*SIZE, 3), np.uint8)
    with pytest.raises(FrameError, match="expected 3 images, of front, right, left, found 2"):
        frame_of([image, None], read_rig(rig))
    with pytest.raises(FrameError, match="no image of camera left"):
        frame_of([None, None, image], read_rig(rig))


def test_without_a_place_on_the_vehicle_there_is_depth_but_no_vehicle(tmp_path):
    lone = camera("front")
    del lone["ego_from_cam"]
    described = read_rig(write_rig(tmp_path, lone))
    assert frame_of([np.zeros((*SIZE, 3), np.uint8)], described).world_from_ego is None
