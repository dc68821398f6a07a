import json
from pathlib import Path

import numpy as np
import pytest
from support.data_sets.pandaset import HERE, LENS, write_example, write_sweep

from data_cache.errors import FrameError, SourceError
from data_cache.frames.geometry import cam_from_lidar, project, sparse_depth
from data_cache.sources.base import LIDARS
from data_cache.sources.pandaset import PandasetSource


@pytest.fixture
def root(tmp_path):
    return write_example(tmp_path)


def camera_file(root: Path, name: str) -> Path:
    return root / "005" / "camera" / "front_camera" / name


def test_a_world_point_lands_where_the_hand_says(root):
    """The camera at (1, 2, 3) sees (1.5, 2, 8) at (0.5, 0, 5): u = 1000 * 0.1 + 959.5 + 0.5, v = 539.5 + 0.5."""
    frame = PandasetSource(root).frame("005/01")
    view, sweep = frame.views[0], frame.load_sweep()
    seen = project(sweep.points_m, cam_from_lidar(view, sweep), view.camera.K_px, (1080, 1920))
    np.testing.assert_allclose(seen.u_px, [1060, 960])
    np.testing.assert_allclose(seen.v_px, [540, 540 + 900 * 0.9 / 9])
    np.testing.assert_allclose(seen.depth_m, [5, 9])


def test_only_finite_points_of_the_spinning_sensor_are_kept(root):
    sweep = PandasetSource(root).frame("005/00").load_sweep()
    np.testing.assert_array_equal(sweep.points_m, [[1.5, 2, 8], [1, 2.9, 12]])
    assert sweep.dropped_count == 1


@pytest.mark.parametrize(("lidar", "heights_m"), [("mechanical", [8, 12]), ("forward", [4]), ("both", [8, 12, 4])])
def test_a_sweep_holds_the_points_of_the_lidars_asked_for(root, lidar, heights_m):
    assert PandasetSource(root, lidar).frame("005/00").load_sweep().points_m[:, 2].tolist() == heights_m


def test_frames_have_stable_ids_times_and_places_in_the_ring(root):
    source = PandasetSource(root)
    assert dict(source.drives) == {"005": ("005/00", "005/01")}
    assert dict(source.splits) == {}
    frame = source.frame("005/01")
    assert [view and view.camera.name for view in frame.views] == ["front_camera", "front_right_camera"] + [None] * 4
    assert frame.views[0].time_ns == 1557539958_750_000_000
    assert frame.views[0].load_image().shape == (1080, 1920, 3)


def test_a_sequence_without_lidar_has_no_sweep(root):
    (root / "005" / "lidar").rename(root / "elsewhere")
    assert PandasetSource(root).frame("005/00").load_sweep is None


def test_a_camera_that_ends_early_is_absent_from_the_later_frames(root):
    camera_file(root, "poses.json").write_text(json.dumps([HERE]))
    camera_file(root, "timestamps.json").write_text("[1557539958.25]")
    source = PandasetSource(root)
    assert source.frame("005/00").views[0] is not None
    assert source.frame("005/01").views[0] is None


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("poses.json", None, r"expected the metadata file .*front_camera/poses\.json, found none"),
        ("poses.json", "[", r"poses\.json: expected JSON"),
        ("poses.json", json.dumps([HERE]), "as many poses as time stamps, found 1 and 2"),
        ("poses.json", json.dumps([{"heading": HERE["heading"]}] * 2), r"poses\.json: expected the key 'position'"),
        ("poses.json", "[1, 2]", r"poses\.json: unexpected content"),
        ("intrinsics.json", '{"fx": 1, "fy": 1, "cx": 1}', r"intrinsics\.json: expected the key 'cy'"),
        ("intrinsics.json", "[1000, 900]", r"intrinsics\.json: unexpected content"),
        ("timestamps.json", '["now", "then"]', r"timestamps\.json: unexpected content"),
        ("timestamps.json", "[NaN, 1]", r"timestamps\.json: unexpected content"),
    ],
)
def test_metadata_that_cannot_be_used_is_named_when_the_source_opens(root, name, text, message):
    camera_file(root, name).unlink()
    if text is not None:
        camera_file(root, name).write_text(text)
    with pytest.raises(SourceError, match=message):
        PandasetSource(root)


def test_a_wrong_folder_is_an_error_that_says_what_was_found(root, tmp_path):
    with pytest.raises(SourceError, match=r"found in .*005: camera, lidar; pass the folder above"):
        PandasetSource(root / "005")
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceError, match=r"expected sequences .*found in .*empty: nothing"):
        PandasetSource(tmp_path / "empty")
    with pytest.raises(SourceError, match="found no folder"):
        PandasetSource(tmp_path / "none")
    (tmp_path / "006" / "camera").mkdir(parents=True)
    with pytest.raises(SourceError, match="006, found none"):
        PandasetSource(tmp_path)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("intrinsics.json", json.dumps({**LENS, "cx": np.nan})),
        ("intrinsics.json", json.dumps({**LENS, "fx": None})),
        ("poses.json", json.dumps([{**HERE, "position": {"x": np.nan, "y": 0.0, "z": 0.0}}] * 2)),
        ("poses.json", json.dumps([{**HERE, "heading": {"w": 0.0, "x": 0.0, "y": 0.0, "z": 0.0}}] * 2)),
    ],
)
def test_a_calibration_that_is_not_finite_costs_only_its_frame(root, name, text):
    camera_file(root, name).write_text(text)
    with pytest.raises(FrameError, match="front_camera"):
        PandasetSource(root).frame("005/00")


@pytest.mark.parametrize("frame_id", ["005/02", "005", "006/00", "", "005/0", "005/-1"])
def test_an_unknown_frame_is_an_error(root, frame_id):
    with pytest.raises(FrameError, match="no frame"):
        PandasetSource(root).frame(frame_id)


def test_damaged_files_are_errors_when_they_are_loaded(root):
    source = PandasetSource(root)
    camera_file(root, "00.jpg").unlink()
    with pytest.raises(FrameError, match=r"image missing: .*front_camera/00\.jpg"):
        source.frame("005/00").views[0].load_image()
    path = camera_file(root, "01.jpg")
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(FrameError, match=r"front_camera/01\.jpg"):
        source.frame("005/01").views[0].load_image()
    lidar = root / "005" / "lidar"
    (lidar / "00.pkl.gz").unlink()
    with pytest.raises(FrameError, match=r"missing: .*lidar/00\.pkl\.gz"):
        source.frame("005/00").load_sweep()
    for points, names, message in (
        ([[0, 0, 1, 1]], ("x", "y", "z", "d"), "lidar mechanical.*found none"),
        ([[np.nan] * 3 + [0]], ("x", "y", "z", "d"), "found 1 of which 0 are finite"),
        ([[0, 0, 1]], ("x", "y", "z"), "expected the columns"),
    ):
        write_sweep(lidar / "01.pkl.gz", points, names)
        with pytest.raises(FrameError, match=rf"01\.pkl\.gz.*{message}"):
            source.frame("005/01").load_sweep()


def test_real_frames_are_complete(real_data):
    source = PandasetSource(real_data / "pandaset")
    assert source.drives["002"] == tuple(f"002/{index:02d}" for index in range(23))
    frame = source.frame("002/11")
    sweep = frame.load_sweep()
    assert len(sweep.points_m) == 106_384
    assert frame.views[3].load_image().shape == (1080, 1920, 3)
    for view in frame.views:
        depth_m = sparse_depth(view, sweep, (1080, 1920))
        assert np.count_nonzero(depth_m) > 10_000, view.camera.name
        assert 20 < depth_m.max() < 300
        assert abs(view.time_ns - 1557539960_600_000_000) < 200_000_000


def test_real_lidars_are_two(real_data):
    """The forward one covers the front camera's view alone, and adds to what the other sees there."""
    frames = {name: PandasetSource(real_data / "pandaset", name).frame("002/11") for name in LIDARS}
    sweeps = {name: frame.load_sweep() for name, frame in frames.items()}
    points = {name: len(sweep.points_m) for name, sweep in sweeps.items()}
    assert points["both"] == points["mechanical"] + points["forward"]
    assert points["forward"] > 10_000
    front, back = frames["both"].views[0], frames["both"].views[3]
    seen = {name: np.count_nonzero(sparse_depth(front, sweep, (1080, 1920))) for name, sweep in sweeps.items()}
    assert seen["both"] > seen["mechanical"] + 10_000
    assert not sparse_depth(back, sweeps["forward"], (270, 480)).any()


def test_real_cameras_look_around_clockwise(real_data):
    """The next camera of the ring looks to the right (x > 0) of the one before."""
    views = PandasetSource(real_data / "pandaset").frame("002/00").views
    for one, following in zip(views, views[1:] + views[:1], strict=True):
        ahead = np.linalg.inv(one.world_from_cam)[:3, :3] @ following.world_from_cam[:3, 2]
        assert ahead[0] > 0.5, (one.camera.name, following.camera.name)
