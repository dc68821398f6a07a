"""Recordings written from other sources, imported: the rig folder holds what the source itself exports."""

import json
from pathlib import Path

import numpy as np
import pytest
from support.bags import FORMATS, messages_of, sweep_of, write_bag
from support.small_recording import (
    START_NS,
    K,
    at,
    camera,
    in_order,
    jpeg,
    lidar,
    mount,
    points,
    poses,
    recording,
    statics,
    world_from_ego,
)

from data_cache.errors import FrameError
from data_cache.sources.base import RecordedSource, Source
from data_cache.sources.recordings.settings import BagSettings
from data_cache.sources.recordings.source import RecordingSource
from data_cache.sources.registry import open_source
from data_cache.sources.rig_folder.source import RigFolderSource
from data_cache.sources.rig_folder.writing import export_rig
from data_cache.sources.selectors import select


def imported(bag: Path, out: Path, settings: BagSettings | None = None) -> RigFolderSource:
    source = RecordingSource([bag], settings)
    done = export_rig(source, [one for ids in source.drives.values() for one in ids], out)
    assert done.left_out == {}
    return RigFolderSource(out)


def assert_equal(source: Source, frame_ids, folder: RigFolderSource) -> None:
    """What the folder of a recording holds against its source: images by the byte, points as float32, poses to 1e-6."""
    assert folder.rig.camera_names == source.rig.camera_names
    (ids,) = folder.drives.values()
    assert len(ids) == len(frame_ids)
    for frame_id, again in zip(frame_ids, ids, strict=True):
        before, after = source.frame(frame_id), folder.frame(again)
        files = folder.files(again)
        for one, other in zip(before.views, after.views, strict=True):
            assert (one is None) == (other is None)
            if one is None or other is None:
                continue
            assert (one.camera.name, one.time_ns) == (other.camera.name, other.time_ns)
            assert (one.camera.width_px, one.camera.height_px) == (other.camera.width_px, other.camera.height_px)
            np.testing.assert_allclose(other.camera.K_px, one.camera.K_px, rtol=0, atol=1e-9)
            np.testing.assert_allclose(other.world_from_cam, one.world_from_cam, rtol=0, atol=1e-6)
            if one.image_file is not None:
                assert files[one.camera.name].read_bytes() == one.image_file.read_bytes()
            else:
                np.testing.assert_array_equal(other.load_image(), one.load_image())
        np.testing.assert_allclose(after.world_from_ego, before.world_from_ego, rtol=0, atol=1e-6)
        recorded, pose = sweep_of(before)
        assert np.load(files["lidar"]).dtype == np.float32
        np.testing.assert_array_equal(after.load_sweep().points_m, recorded)
        np.testing.assert_allclose(after.load_sweep().world_from_lidar, pose, rtol=0, atol=1e-6)


USUAL = ("mcap-zstd", "sqlite3", "foxglove")
"""Of FORMATS: the others differ in how messages are packed, which the tests of containers look at."""


@pytest.fixture(scope="module")
def drive():
    source = open_source("synthetic", None)
    frame_ids = source.drives["drive-00"][1:2]
    return source, frame_ids, messages_of(source, frame_ids)


@pytest.mark.parametrize(
    "kind", [one if one in USUAL else pytest.param(one, marks=pytest.mark.torture) for one in FORMATS]
)
def test_a_synthetic_drive_comes_back_from_every_kind_of_file(tmp_path, drive, kind):
    source, frame_ids, messages = drive
    assert_equal(source, frame_ids, imported(write_bag(tmp_path / "bag", messages, kind), tmp_path / "rig"))


@pytest.mark.parametrize("kind", ["mcap-zstd", pytest.param("foxglove", marks=pytest.mark.torture)])
@pytest.mark.parametrize(("data_set", "selector"), [("pandaset", "002[2:4]"), ("nuscenes", "scene-0061")])
def test_real_frames_come_back(tmp_path, real_data, data_set, selector, kind):
    source = open_source(data_set, real_data / data_set, "v1.0-mini" if data_set == "nuscenes" else "")
    frame_ids = select(source, [selector])
    bag = write_bag(tmp_path / "bag", messages_of(source, frame_ids), kind)
    assert_equal(source, frame_ids, imported(bag, tmp_path / "rig", BagSettings(slack_ms=100.0)))


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return write_bag(tmp_path_factory.mktemp("small") / "van", recording())


def test_a_frame_by_hand(small):
    """Sweep 5 of the van: 0.5 s, 5 m ahead, turned by 0.1 rad; cameras 10 ms later, 0.1 m ahead and 0.002 rad more."""
    source = RecordingSource([small])
    assert isinstance(source, RecordedSource)
    assert source.rig.camera_names == ("front", "right", "back", "left")
    frame = source.frame(f"van/{at(0.5)}")
    np.testing.assert_allclose(frame.world_from_ego[:3, 3], [5, 0, 0], atol=1e-9)
    assert [view.time_ns - START_NS for view in frame.views] == [510_000_000] * 4
    front = frame.views[0].world_from_cam
    # Half way between the poses of 0.50 and 0.52 s: the turn is that of 0.51 s, the place of the chord.
    np.testing.assert_allclose(front, world_from_ego(0.51) @ mount(0), atol=1e-9)
    np.testing.assert_array_equal(frame.load_sweep().points_m, points(5))
    np.testing.assert_allclose(
        frame.load_sweep().world_from_lidar[:3, 3], [5 + 0.5 * np.cos(0.1), 0.5 * np.sin(0.1), 2]
    )
    np.testing.assert_allclose(frame.views[0].camera.K_px[:2, 2], [8.0, 6.0])
    assert source.photographs(f"van/{at(0.5)}")["left"].read().data == jpeg(50)


def test_a_folder_from_a_stopped_import_is_continued_to_the_same_bytes(tmp_path, small):
    source = RecordingSource([small])
    frame_ids = source.drives["van"]
    export_rig(source, frame_ids, tmp_path / "whole")

    class Stop(Exception):
        pass

    def stopping(left=[7]):  # noqa: B006
        left[0] -= 1
        if not left[0]:
            raise Stop

    with pytest.raises(Stop):
        export_rig(source, frame_ids, tmp_path / "parts", stopping)
    (lines,) = (tmp_path / "parts").glob("frames.jsonl.*.partial")
    lines.write_bytes(lines.read_bytes()[:-50])  # killed in the middle of a line
    written = tmp_path / "parts/images/front/000000.jpg"
    written.write_bytes(b"not written again")
    done = export_rig(source, frame_ids, tmp_path / "parts")
    assert (done.frame_count, done.continued_count, done.copied_count) == (len(frame_ids), 6, 4 * (len(frame_ids) - 6))
    assert written.read_bytes() == b"not written again"
    files = {path.relative_to(tmp_path / "whole") for path in (tmp_path / "whole").rglob("*") if path.is_file()}
    assert {path.relative_to(tmp_path / "parts") for path in (tmp_path / "parts").rglob("*") if path.is_file()} == files
    different = [
        one for one in files if (tmp_path / "whole" / one).read_bytes() != (tmp_path / "parts" / one).read_bytes()
    ]
    assert different == [written.relative_to(tmp_path / "parts")]


def test_other_decisions_start_an_unfinished_folder_again(tmp_path, small):
    (tmp_path / "frames.jsonl.0123456789abcdef.partial").write_text('{"id": "van/1"}\n')
    source = RecordingSource([small])
    done = export_rig(source, source.drives["van"][:2], tmp_path)
    assert (done.frame_count, done.continued_count) == (2, 0)
    assert not list(tmp_path.glob("*.partial"))


def test_lenses_stand_in_the_folder_and_its_images_are_those_of_the_recording(tmp_path):
    said = [*statics(), *poses(), *lidar(2), *camera("front", count=2, model="plumb_bob", D=[-0.2, 0.03, 0.001, 0, 0])]
    said += camera("back", count=2, model="equidistant", D=[0.01, 0.002, 0, 0])
    said += camera("left", count=2, model="rational_polynomial", D=[0.1, 0.01, 0, 0, 0.001, 0.1, 0.02, 0.001])
    said += camera("right", count=2, model="plumb_bob", D=[0.0] * 5)
    bag = write_bag(tmp_path / "bag", in_order(said), "mcap-lz4")
    source, folder = RecordingSource([bag]), imported(bag, tmp_path / "rig")
    listed = json.loads((tmp_path / "rig/rig.json").read_text())["cameras"]
    assert [one.get("distortion", {}).get("model") for one in listed] == ["plumb_bob", None, "fisheye", "rational"]
    assert listed[0]["distortion"]["coefficients"] == [-0.2, 0.03, 0.001, 0, 0]
    np.testing.assert_allclose(listed[2]["intrinsics"], K + np.array([[0, 0, 0.5], [0, 0, 0.5], [0, 0, 0]]))
    np.testing.assert_allclose(listed[3]["ego_from_cam"], mount(90), atol=1e-12)
    (frame_id, *_) = folder.drives["bag"]
    for one, other in zip(source.frame(frame_id).views, folder.frame(frame_id).views, strict=True):
        np.testing.assert_array_equal(one.load_image(), other.load_image())
        np.testing.assert_allclose(one.camera.K_px, other.camera.K_px)


def test_several_bags_are_drives_of_one_vehicle_and_share_what_is_static(tmp_path):
    whole = recording()
    middle = at(1.0)
    first = [one for one in whole if one.log_ns < middle]
    second = [one for one in whole if one.log_ns >= middle]
    assert not any(one.topic == "/tf_static" for one in second)
    (tmp_path / "b").mkdir()
    bags = [write_bag(tmp_path / "a[1]", first, "sqlite3"), write_bag(tmp_path / "b/a[1]", second, "mcap")]
    source = RecordingSource(bags)
    assert {drive: len(ids) for drive, ids in source.drives.items()} == {"a_1_": 10, "a_1_-2": 10}
    assert source.frame(f"a_1_-2/{at(1.5)}").views[3] is not None


def test_a_folder_of_files_is_one_bag_in_the_order_of_their_numbers(tmp_path):
    bag = tmp_path / "van"
    bag.mkdir()
    whole = recording()
    for number, part in enumerate(np.array_split(np.arange(len(whole)), 11)):
        write_bag(bag / f"van_{number}", [whole[i] for i in part], "mcap-zstd")
    source = RecordingSource([bag])
    assert [one.path.name for one in source.parts["van"].bag.files][-2:] == ["van_9.mcap", "van_10.mcap"]
    np.testing.assert_array_equal(source.frame(f"van/{at(1.9)}").load_sweep().points_m, points(19))


def test_an_unknown_frame_is_an_error(small):
    source = RecordingSource([small])
    for frame_id in ("van/x", "other/5", "van/5"):
        with pytest.raises(FrameError, match="recording: no frame"):
            source.frame(frame_id)
