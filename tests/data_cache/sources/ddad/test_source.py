import json
from itertools import pairwise

import numpy as np
import pytest
from support.data_sets.ddad import SCENE, SIZE, calibration, scene, write, write_example

from data_cache.errors import FrameError, SourceError
from data_cache.frames.geometry import cam_from_lidar, project, sparse_depth
from data_cache.sources.ddad.source import CAMERAS, DdadSource
from data_cache.sources.selectors import select

OFFICIAL_COUNTS = {
    "CAMERA_01": 5557,
    "CAMERA_05": 12606,
    "CAMERA_06": 12141,
    "CAMERA_07": 11094,
    "CAMERA_08": 10350,
    "CAMERA_09": 9742,
}


@pytest.fixture
def root(tmp_path):
    return write_example(tmp_path)


FIRST, SECOND = "000007/1561654981500000", "000007/1561654982500000"


def test_both_poses_are_used_and_intrinsics_stay_as_they_are(root):
    """By hand: 7 m ahead of the LiDAR at z = 1 is 5 m ahead of the camera at z = 3; u = 50 / 5 + 49.5."""
    frame = DdadSource(root).frame(FIRST)
    view, sweep = frame.views[0], frame.load_sweep()
    seen = project(sweep.points_m, cam_from_lidar(view, sweep), view.camera.K_px, SIZE)
    assert (seen.u_px[0], seen.v_px[0], seen.depth_m[0]) == pytest.approx((59.5, 29.5, 5.0))
    assert sweep.dropped_count == 1


def test_frames_have_stable_ids_in_time_order_and_places_in_the_ring(root):
    source = DdadSource(root)
    assert dict(source.drives) == {"000007": (FIRST, SECOND)}
    assert dict(source.splits) == {"train": (), "val": ("000007",)}
    frame = source.frame(SECOND)
    assert [view and view.camera.name for view in frame.views] == ["CAMERA_01", "CAMERA_06"] + [None] * 4
    assert frame.views[1].camera.K_px[0, 2] == 40.0
    assert frame.views[0].time_ns == 1561654982_500_000_000
    assert frame.views[0].load_image().shape == (*SIZE, 3)


def test_stamps_ten_times_too_large_are_brought_back(root):
    content = scene()
    for datum in content["data"]:
        datum["id"]["timestamp"] = "2464-11-12T01:04:10.027900Z"
    write(root / "000007", content)
    assert DdadSource(root).frame(FIRST).views[0].time_ns == 1561645825_002_790_000


def test_a_folder_of_scenes_and_a_single_scene_open_without_the_list(root):
    (root / "ddad.json").unlink()
    for folder in (root, root / "000007"):
        source = DdadSource(folder)
        assert dict(source.drives) == {"000007": (FIRST, SECOND)}
        assert dict(source.splits) == {}
        assert source.frame(FIRST).load_sweep().points_m.shape == (1, 3)


def test_a_sample_without_lidar_has_no_sweep(root):
    content = scene()
    content["samples"][0]["datum_keys"].remove("LIDAR b")
    write(root / "000007", content)
    source = DdadSource(root)
    assert source.frame(SECOND).load_sweep is None
    assert source.frame(FIRST).load_sweep is not None


def test_a_wrong_folder_is_an_error_that_says_what_was_found(root):
    with pytest.raises(
        SourceError, match=r"expected ddad\.json, or DGP scenes.*found in .*rgb: CAMERA_01, CAMERA_06; pass"
    ):
        DdadSource(root / "000007" / "rgb")
    with pytest.raises(SourceError, match="found no folder"):
        DdadSource(root / "none")


def test_scenes_listed_but_missing_are_an_error(root):
    files = {"filenames": [f"000007/{SCENE}", "000008/scene_x.json"]}
    (root / "ddad.json").write_text(json.dumps({"scene_splits": {"0": files}}))
    with pytest.raises(SourceError, match=r"lists 2 scenes, 1 of them are missing: .*000008/scene_x\.json"):
        DdadSource(root)
    (root / "ddad.json").write_text(json.dumps({"scene_splits": {}}))
    with pytest.raises(SourceError, match=r"ddad\.json: expected scenes under scene_splits"):
        DdadSource(root)
    (root / "ddad.json").write_text("{}")
    with pytest.raises(SourceError, match=r"ddad\.json: expected the key 'scene_splits'"):
        DdadSource(root)


def test_two_files_for_one_scene_are_an_error(root):
    (root / "ddad.json").unlink()
    (root / "000007" / "scene_other.json").write_text(json.dumps(scene()))
    with pytest.raises(SourceError, match="one scene file per folder"):
        DdadSource(root)


def without(content, *path):
    inner = content
    for key in path[:-1]:
        inner = inner[key]
    del inner[path[-1]]
    return content


@pytest.mark.parametrize(
    "path",
    [
        ("data",),
        ("samples",),
        ("data", 0, "key"),
        ("data", 0, "datum", "image"),
        ("data", 0, "datum", "image", "filename"),
        ("data", 0, "datum", "image", "pose"),
        ("data", 0, "datum", "image", "pose", "rotation", "qx"),
        ("samples", 0, "calibration_key"),
        ("samples", 0, "datum_keys"),
        ("samples", 0, "id", "timestamp"),
    ],
)
def test_a_missing_key_is_named_with_its_file(root, path):
    write(root / "000007", without(scene(), *path))
    with pytest.raises(SourceError, match=rf"000007/{SCENE}: expected the key '{path[-1]}'"):
        DdadSource(root)


def test_metadata_that_cannot_be_used_is_named_when_the_source_opens(root):
    folder = root / "000007"
    write(folder, scene(), {**calibration(), "names": ["LIDAR"]})
    with pytest.raises(SourceError, match=r"c0ffee\.json: unexpected content"):
        DdadSource(root)
    write(folder, scene(), without(calibration(), "intrinsics", 1, "cy"))
    with pytest.raises(SourceError, match=r"c0ffee\.json: expected the key 'cy'"):
        DdadSource(root)
    write(folder, scene(), {"names": [], "intrinsics": []})
    with pytest.raises(SourceError, match="expected a calibration for CAMERA_01, found none"):
        DdadSource(root)
    (folder / "calibration" / "c0ffee.json").unlink()
    with pytest.raises(SourceError, match=r"c0ffee\.json, found none"):
        DdadSource(root)
    (folder / SCENE).write_text(json.dumps(scene())[:-50])
    with pytest.raises(SourceError, match=rf"{SCENE}: expected JSON"):
        DdadSource(root)
    write(folder, {"data": [], "samples": []})
    with pytest.raises(SourceError, match=rf"{SCENE}: expected samples"):
        DdadSource(root)
    content = scene()
    content["samples"][0]["id"]["timestamp"] = "yesterday"
    write(folder, content)
    with pytest.raises(SourceError, match=rf"{SCENE}: unexpected content"):
        DdadSource(root)


def test_a_calibration_that_cannot_be_used_costs_only_its_frame(root):
    content = scene()
    content["data"][0]["datum"]["image"]["pose"]["translation"]["x"] = np.nan
    write(root / "000007", content)
    source = DdadSource(root)
    with pytest.raises(FrameError, match="CAMERA_01: world_from_cam"):
        source.frame(SECOND)
    assert source.frame(FIRST).views[0] is not None
    lenses = calibration()
    lenses["intrinsics"][1]["fx"] = np.nan
    write(root / "000007", scene(), lenses)
    with pytest.raises(FrameError, match="CAMERA_01: expected finite"):
        DdadSource(root).frame(FIRST)


def test_an_unknown_frame_is_an_error(root):
    with pytest.raises(FrameError, match="no frame '000007/1'"):
        DdadSource(root).frame("000007/1")


def test_damaged_files_are_errors_when_they_are_loaded(root):
    frame = DdadSource(root).frame(FIRST)
    (root / "000007" / "rgb" / "CAMERA_01" / "a.png").unlink()
    with pytest.raises(FrameError, match=r"image missing: .*CAMERA_01/a\.png"):
        frame.views[0].load_image()
    path = root / "000007" / "point_cloud" / "LIDAR" / "a.npz"
    whole = path.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", b"text", whole[:60] + bytes(40) + whole[100:]):
        path.write_bytes(damaged)
        with pytest.raises(FrameError, match=r"a\.npz"):
            frame.load_sweep()
    two = {"points": np.zeros((2, 4)), "colours": np.zeros((2, 4))}
    for arrays, message in (
        (two, "expected the array 'data', or a single one"),
        ({"data": np.array([{}])}, "expected an array of numbers"),
        ({"data": np.array(["x"])}, "expected an array of numbers"),
    ):
        np.savez(path, **arrays)
        with pytest.raises(FrameError, match=rf"a\.npz: {message}"):
            frame.load_sweep()
    for points in (np.zeros((0, 4)), np.full((3, 4), np.nan), np.zeros(4)):
        np.savez(path, data=points)
        with pytest.raises(FrameError, match=r"a\.npz: expected (LiDAR points|an array \(N, 3)"):
            frame.load_sweep()
    path.unlink()
    with pytest.raises(FrameError, match=r"missing: .*a\.npz"):
        frame.load_sweep()


def test_real_pixels_with_depth_are_those_of_the_official_loader(real_data):
    """The official loader truncates u, v towards zero, so it also counts what lies within a pixel left of the image."""
    source = DdadSource(real_data / "ddad" / "ddad_train_val")
    assert dict(source.splits) == {"train": ("000187",), "val": ("000187",)}
    frame = source.frame("000187/15616458251018358")
    sweep = frame.load_sweep()
    counts = {}
    for view in frame.views:
        height, width = view.camera.height_px, view.camera.width_px
        K_px = view.camera.K_px.copy()
        K_px[:2, 2] += 1
        seen = project(sweep.points_m, cam_from_lidar(view, sweep), K_px, (height + 1, width + 1), min_depth_m=0.0)
        pixels = np.trunc(seen.v_px - 1) * width + np.trunc(seen.u_px - 1)
        counts[view.camera.name] = len(np.unique(pixels))
        ours = np.flatnonzero(sparse_depth(view, sweep, (height, width)))
        assert np.isin(ours, pixels).all()
        assert len(ours) >= counts[view.camera.name] - 5
    assert counts == OFFICIAL_COUNTS
    assert [view.camera.name for view in frame.views] == list(CAMERAS)
    assert frame.views[2].load_image().shape == (1216, 1936, 3)


def test_the_real_vehicle_moves_as_far_as_it_should(real_data):
    source = DdadSource(real_data / "ddad" / "ddad_train_val")
    poses = [source.frame(frame_id).load_sweep().world_from_lidar for frame_id in source.drives["000187"]]
    steps_m = [np.linalg.norm((np.linalg.inv(a) @ b)[:3, 3]) for a, b in pairwise(poses)]
    np.testing.assert_allclose(steps_m, 1.27, atol=0.02)


def test_a_real_scene_with_three_cameras_leaves_the_others_empty(real_data):
    for folder in (real_data / "dgp_partial", real_data / "dgp_partial" / "scene_01"):
        source = DdadSource(folder)
        assert len(source.drives["scene_01"]) == 3
        frame = source.frame(source.drives["scene_01"][1])
        assert [view and view.camera.name for view in frame.views] == [
            "CAMERA_01", "CAMERA_06", None, None, None, "CAMERA_05",
        ]  # fmt: skip
        assert np.count_nonzero(sparse_depth(frame.views[0], frame.load_sweep(), (1216, 1936))) > 4000


@pytest.mark.parametrize("name", ["/etc/passwd", "../../x.npz", "rgb/../../../x.png"])
@pytest.mark.parametrize("place", ["scene file", "image", "points", "calibration"])
def test_a_file_outside_of_the_data_folder_is_refused(root, name, place):
    content, listed = scene(), f"000007/{SCENE}"
    if place == "scene file":
        listed = name
    elif place == "calibration":
        content["samples"][0]["calibration_key"] = name
    else:
        datum = content["data"][0 if place == "image" else 3]["datum"]
        datum["image" if place == "image" else "point_cloud"]["filename"] = name
    write(root / "000007", content)
    (root / "ddad.json").write_text(json.dumps({"scene_splits": {"1": {"filenames": [listed]}}}))
    with pytest.raises(SourceError, match=r"json: .*expected a file below the data folder, without \.\."):
        DdadSource(root)


def test_a_published_list_names_frames_by_the_time_stamps_of_their_first_camera(real_data, tmp_path):
    """SurroundDepth's lists hold the three frames at hand."""
    source = DdadSource(real_data / "ddad" / "ddad_train_val")
    stamps = ("15616458249936530", "15616458250936520", "15616458251936472")
    published = (real_data / "splits/ddad/SurroundDepth_train.txt").read_text().split()
    published += (real_data / "splits/ddad/SurroundDepth_val.txt").read_text().split()
    assert set(stamps) <= set(published)
    (tmp_path / "train.txt").write_text("".join(f"{stamp} \n" for stamp in reversed(stamps)))
    assert select(source, [f"list:{tmp_path}/train.txt"]) == tuple(reversed(source.drives["000187"]))
    (tmp_path / "train.txt").write_text("1567565088168641 \n")
    with pytest.raises(SourceError, match="1 of 1 frames are not in this ddad: 1567565088168641"):
        select(source, [f"list:{tmp_path}/train.txt"])
