import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.data_sets.ddad import SIZE, write_masks
from support.data_sets.ddad import write_example as ddad
from support.data_sets.nuscenes import write_example as nuscenes
from support.fakes import FakeSource

from data_cache.errors import SourceError
from data_cache.files import WriteError
from data_cache.sources.base import Source
from data_cache.sources.registry import open_source
from data_cache.sources.rig_folder.source import RigFolderSource
from data_cache.sources.rig_folder.writing import export_rig
from data_cache.sources.selectors import select


def assert_equal(source: Source, frame_ids, root: Path) -> None:
    """The folder gives back the very same frames: poses, intrinsics, points, time stamps, and images."""
    again = RigFolderSource(root)
    assert again.rig == source.rig
    assert [one for ids in again.drives.values() for one in ids] == [
        one for ids in source.drives.values() for one in ids if one in frame_ids
    ]
    for frame_id in frame_ids:
        before, after = source.frame(frame_id), again.frame(frame_id)
        for one, other in zip(before.views, after.views, strict=True):
            assert (one is None) == (other is None)
            if one is None or other is None:
                continue
            assert (one.camera.name, one.time_ns) == (other.camera.name, other.time_ns)
            assert (one.camera.width_px, one.camera.height_px) == (other.camera.width_px, other.camera.height_px)
            np.testing.assert_array_equal(other.camera.K_px, one.camera.K_px)
            np.testing.assert_array_equal(other.world_from_cam, one.world_from_cam)
            if one.image_file is not None and other.image_file is not None:
                assert other.image_file.read_bytes() == one.image_file.read_bytes()
            else:
                np.testing.assert_array_equal(other.load_image(), one.load_image())
            assert (one.load_unoccluded is None) == (other.load_unoccluded is None)
            if one.load_unoccluded is not None and other.load_unoccluded is not None:
                np.testing.assert_array_equal(other.load_unoccluded(), one.load_unoccluded())
        assert (before.world_from_ego is None) == (after.world_from_ego is None)
        if before.world_from_ego is not None and after.world_from_ego is not None:
            np.testing.assert_array_equal(after.world_from_ego, before.world_from_ego)
        assert (before.load_sweep is None) == (after.load_sweep is None)
        if before.load_sweep is not None and after.load_sweep is not None:
            np.testing.assert_array_equal(after.load_sweep().points_m, before.load_sweep().points_m)
            np.testing.assert_array_equal(after.load_sweep().world_from_lidar, before.load_sweep().world_from_lidar)


def test_frames_in_memory_come_back_equal(tmp_path):
    source = FakeSource(missing={"d/1": (0, 2)}, no_lidar=("d/3",), nan_points=("d/2",))
    done = export_rig(source, source.drives["d"][:4], tmp_path / "rig")
    assert (done.frame_count, done.copied_count, done.encoded_count, done.left_out) == (4, 0, 10, {})
    assert_equal(source, source.drives["d"][:4], tmp_path / "rig")


def test_the_synthetic_drives_come_back_equal_with_their_splits(tmp_path):
    source = open_source("synthetic", None)
    frame_ids = ("drive-41/2", "drive-00/1")
    export_rig(source, frame_ids, tmp_path / "rig")
    assert_equal(source, frame_ids, tmp_path / "rig")
    assert RigFolderSource(tmp_path / "rig").splits == {"train": ("drive-00",), "selection": ("drive-41",)}


@pytest.mark.parametrize(
    ("kind", "folder_name", "selector"),
    [
        ("pandaset", "pandaset", "002[10:12]"),
        ("nuscenes", "nuscenes", "scene-0061"),
        ("ddad", "ddad/ddad_train_val", "val"),
        ("ddad", "dgp_partial/scene_01", "scene_01"),
    ],
)
def test_real_frames_come_back_equal(tmp_path, real_data, kind, folder_name, selector):
    source = open_source(kind, real_data / folder_name, "v1.0-mini" if kind == "nuscenes" else "")
    frame_ids = select(source, [selector])
    done = export_rig(source, frame_ids, tmp_path / "rig")
    assert (done.frame_count, done.encoded_count, done.left_out) == (len(frame_ids), 0, {})
    assert_equal(source, frame_ids, tmp_path / "rig")


def test_a_rig_folder_comes_back_equal_undistorted(tmp_path, folder):
    source = RigFolderSource(folder)
    done = export_rig(source, ["m/1", "m/3"], tmp_path / "again")
    assert (done.copied_count, done.encoded_count) == (2, 2)
    assert_equal(source, ("m/1", "m/3"), tmp_path / "again")
    described = json.loads((tmp_path / "again/rig.json").read_text())
    assert "distortion" not in described["cameras"][1]


def test_a_frame_that_cannot_be_read_is_left_out_with_its_reason(tmp_path):
    source = FakeSource(broken={"d/0": "no image", "d/2": "no image"})
    done = export_rig(source, source.drives["d"], tmp_path / "rig")
    assert (done.frame_count, list(done.left_out)) == (4, ["d/0", "d/2"])
    assert_equal(source, ("d/1", "d/3", "d/4", "d/5"), tmp_path / "rig")
    with pytest.raises(SourceError, match="expected frames to export, found that none of 1 can be read; the first:"):
        export_rig(source, ["d/0"], tmp_path / "none")


def test_a_finished_folder_is_not_written_into_and_an_unfinished_one_is(tmp_path):
    source = FakeSource()
    export_rig(source, ["d/0"], tmp_path)
    with pytest.raises(SourceError, match="expected a new folder, found rig.json in it"):
        export_rig(source, ["d/1"], tmp_path)
    (tmp_path / "rig.json").unlink()
    export_rig(source, ["d/1"], tmp_path)
    assert_equal(source, ("d/1",), tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(WriteError, match="cannot write"):
        export_rig(source, ["d/1"], tmp_path / "file")


def test_a_listed_image_that_leads_elsewhere_or_is_none_is_left_out_and_nothing_of_it_written(tmp_path, folder):
    (folder / "images/1.png").unlink()
    (folder / "images/1.png").symlink_to(folder.parent / "secret.png")
    (folder / "images/2.png").unlink()
    os.mkfifo(folder / "images/2.png")
    done = export_rig(RigFolderSource(folder), ["m/1", "m/2", "m/3"], tmp_path / "out")
    assert (done.frame_count, list(done.left_out)) == (1, ["m/1", "m/2"])
    assert "leads to" in done.left_out["m/1"]
    secret = (folder.parent / "secret.png").read_bytes()
    assert all(path.read_bytes() != secret for path in (tmp_path / "out").rglob("*.png"))


def test_an_image_that_cannot_be_decoded_or_has_another_size_is_left_out(tmp_path, folder):
    whole = (folder / "images/3.png").read_bytes()
    for number, data in ((1, b"some text"), (3, whole[: len(whole) // 2])):
        (folder / f"images/{number}.png").write_bytes(data)
    Image.new("RGB", (8, 7)).save(folder / "images/2.png")
    with pytest.raises(SourceError, match="none of 3 can be read; the first: .*cannot be decoded"):
        export_rig(RigFolderSource(folder), ["m/1", "m/2", "m/3"], tmp_path / "out")
    assert not list((tmp_path / "out").rglob("*.png"))


@pytest.mark.parametrize("kind", ["nuscenes", "ddad"])
def test_a_data_set_whose_disks_are_linked_together_is_exported(tmp_path, kind):
    """Folders moved to another disk, and linked to where they were."""
    make, moved, frame_id = {
        "nuscenes": (nuscenes, "samples", "early"),
        "ddad": (ddad, "000007/rgb", "000007/1561654981500000"),
    }[kind]
    (tmp_path / "data").mkdir()
    root = make(tmp_path / "data")
    (root / moved).rename(tmp_path / "disk2")
    (root / moved).symlink_to(tmp_path / "disk2")
    done = export_rig(open_source(kind, root), [frame_id], tmp_path / "out")
    assert (done.frame_count, done.copied_count, done.left_out) == (1, 2, {})


def test_masks_come_back_equal_and_equal_ones_share_a_file(tmp_path):
    (tmp_path / "data").mkdir()
    root = ddad(tmp_path / "data")
    write_masks(root / "ddad_mask", {7: 2}, SIZE)
    source = open_source("ddad", root)
    frame_ids = source.drives["000007"]
    assert source.frame(frame_ids[0]).views[1].load_unoccluded()[0].tolist() == [False] * 3 + [True] * 97
    export_rig(source, frame_ids, tmp_path / "out")
    assert_equal(source, frame_ids, tmp_path / "out")
    assert len(list((tmp_path / "out/masks").rglob("*.png"))) == 2
    assert all(file.is_file() for file in RigFolderSource(tmp_path / "out").files(frame_ids[0]).values())


def test_a_frame_without_any_camera_is_left_out(tmp_path):
    source = FakeSource(missing={"d/1": (0, 1, 2)})
    done = export_rig(source, ["d/0", "d/1"], tmp_path / "out")
    assert (done.frame_count, done.left_out) == (1, {"d/1": "d/1: expected at least one camera, found none"})
