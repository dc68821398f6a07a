import os

import numpy as np
import pytest
from PIL import Image
from support.data_sets.nuscenes import SIZE, datum, tables, write, write_example

from data_cache.errors import FrameError, SourceError
from data_cache.frames.geometry import cam_from_lidar, project, sparse_depth
from data_cache.sources.nuscenes import CAMERAS, NuscenesSource

DEVKIT_COUNTS = {
    "CAM_FRONT_LEFT": 3696,
    "CAM_FRONT": 3053,
    "CAM_FRONT_RIGHT": 3076,
    "CAM_BACK_LEFT": 4089,
    "CAM_BACK": 4820,
    "CAM_BACK_RIGHT": 3369,
}


@pytest.fixture
def root(tmp_path):
    return write_example(tmp_path)


def test_both_ego_poses_are_used(root):
    """By hand: (1, 0, 9) is 9 + 2 + 10 = 21 m up in the world, and 21 - 1 - 12 = 8 m from the camera."""
    frame = NuscenesSource(root).frame("early")
    view, sweep = frame.views[0], frame.load_sweep()
    seen = project(sweep.points_m, cam_from_lidar(view, sweep), view.camera.K_px, SIZE)
    np.testing.assert_allclose(seen.depth_m, [8, 11])
    np.testing.assert_allclose(seen.u_px, [100 / 8 + 79.5 + 0.5, 80])
    np.testing.assert_allclose(seen.v_px, [45, 45 + 200 / 11])
    assert sweep.dropped_count == 1


def test_drives_are_scenes_in_time_order_and_splits_those_present(root):
    source = NuscenesSource(root)
    assert dict(source.drives) == {"scene-0001": ("dark",), "scene-0103": ("early", "late")}
    assert dict(source.splits) == {"train": ("scene-0001",), "val": ("scene-0103",), "mini_val": ("scene-0103",)}


def test_keyframes_only_and_gaps_are_none(root):
    source = NuscenesSource(root)
    early, late, dark = (source.frame(token) for token in ("early", "late", "dark"))
    assert [view and view.camera.name for view in early.views] == ["CAM_FRONT", None, None, "CAM_BACK", None, None]
    assert [view is not None for view in late.views] == [False, False, False, True, False, False]
    assert early.views[0].time_ns == 1_003_000
    assert early.views[0].load_image().shape == (*SIZE, 3)
    assert late.load_sweep is None
    assert dark.load_sweep is None


@pytest.mark.parametrize(("within_s", "file"), [(0.0, None), (0.00049, None), (0.0005, "near"), (9.0, "near")])
def test_a_keyframe_without_lidar_takes_the_nearest_sweep_of_its_scene_by_option(root, within_s, file):
    """`dark` is at 500 us: sweeps of its scene are 600 us before and 500 us after, one of another scene is closer."""
    content = tables()
    sweep = {"key": False, "pose": "at LiDAR time", "size": (0, 0)}
    content["sample_data"] = [
        *content["sample_data"][:-1],
        datum("LIDAR_TOP", "dark", file="before", time_us=-100, **sweep),
        datum("LIDAR_TOP", "dark", file="near", time_us=1000, **sweep),
        datum("LIDAR_TOP", "early", file="other scene", time_us=501, **sweep),
        datum("LIDAR_TOP", "trimmed away", file="of no scene", time_us=500, **sweep),
    ]
    source = NuscenesSource(write(root, content), nearby_sweep_s=within_s)
    load_sweep = source.frame("dark").load_sweep
    assert (load_sweep and load_sweep.args[0].name) == file
    if load_sweep is not None:
        np.testing.assert_array_equal(load_sweep.args[1][:3, 3], [0, 0, 12])  # 10 at its own time, and 2
    assert source.frame("early").load_sweep.args[0].name == "lidar.pcd.bin"


def test_the_official_splits_have_their_official_sizes(root):
    content = tables()
    content["scene"] = [{"token": str(number), "name": f"scene-{number:04d}"} for number in range(1, 1111)]
    content["sample"] = [{"token": f"s{n}", "timestamp": n, "scene_token": str(n)} for n in range(1, 1111)]
    content["sample_data"] = []
    splits = NuscenesSource(write(root, content)).splits
    sizes = {split: len(names) for split, names in splits.items()}
    assert sizes == {"train": 700, "val": 150, "test": 150, "mini_train": 8, "mini_val": 2}
    assert len({*splits["train"], *splits["val"], *splits["test"]}) == 1000
    assert {*splits["mini_train"], *splits["mini_val"]} <= {*splits["train"], *splits["val"]}


def test_one_version_is_taken_and_several_are_asked_about(root):
    write(root, tables(), "v1.0-trainval")
    with pytest.raises(SourceError, match=r"found v1\.0-mini, v1\.0-trainval; set data\.version"):
        NuscenesSource(root)
    assert len(NuscenesSource(root, "v1.0-trainval").drives) == 2
    with pytest.raises(SourceError, match=r"expected the version 'v1\.0-test' in .*, found v1\.0-mini, v1\.0-trainval"):
        NuscenesSource(root, "v1.0-test")


def test_a_wrong_folder_is_an_error_that_says_what_was_found(root):
    with pytest.raises(
        SourceError, match=r"found in .*: back\.png, front\.png, lidar\.pcd\.bin; pass the folder that holds"
    ):
        NuscenesSource(root / "samples")
    with pytest.raises(SourceError, match="pass the folder above the tables"):
        NuscenesSource(root / "v1.0-mini")


@pytest.mark.parametrize(
    ("table", "key"),
    [
        ("sensor", "channel"),
        ("calibrated_sensor", "sensor_token"),
        ("calibrated_sensor", "rotation"),
        ("calibrated_sensor", "camera_intrinsic"),
        ("ego_pose", "token"),
        ("ego_pose", "translation"),
        ("scene", "name"),
        ("sample", "timestamp"),
        ("sample", "scene_token"),
        ("sample_data", "is_key_frame"),
        ("sample_data", "filename"),
        ("sample_data", "width"),
    ],
)
def test_a_missing_key_is_named_with_its_table(root, table, key):
    content = tables()
    del content[table][0][key]
    with pytest.raises(SourceError, match=rf"v1\.0-mini/{table}\.json: expected the key '{key}'"):
        NuscenesSource(write(root, content))


@pytest.mark.parametrize("table", tables())
def test_a_missing_or_truncated_table_is_named(root, table):
    path = root / "v1.0-mini" / f"{table}.json"
    path.write_text(path.read_text()[:-9])
    with pytest.raises(SourceError, match=rf"{table}\.json: expected JSON"):
        NuscenesSource(root)
    path.unlink()
    with pytest.raises(SourceError, match=rf"{table}\.json, found none"):
        NuscenesSource(root)


@pytest.mark.parametrize(
    ("table", "row", "changes", "message"),
    [
        ("sample_data", 0, {"sample_token": "gone"}, "sample_data.json: expected the key 'gone'"),
        ("sample_data", 0, {"calibrated_sensor_token": "gone"}, "sample_data.json: expected the key 'gone'"),
        ("sample_data", 0, {"ego_pose_token": "gone"}, r"ego_pose.json: expected a pose .* missing gone"),
        ("sample", 0, {"timestamp": None}, "sample.json: unexpected content"),
        ("ego_pose", 0, {"rotation": [1, 0, 0]}, "ego_pose.json: unexpected content"),
    ],
)
def test_a_broken_link_is_named_with_its_table(root, table, row, changes, message):
    content = tables()
    content[table][row].update(changes)
    with pytest.raises(SourceError, match=message):
        NuscenesSource(write(root, content))


def test_tables_without_samples_are_an_error(root):
    with pytest.raises(SourceError, match=r"sample\.json: expected samples, found none"):
        NuscenesSource(write(root, {**tables(), "sample": []}))


@pytest.mark.parametrize(
    ("table", "changes"),
    [
        ("calibrated_sensor", {"camera_intrinsic": []}),
        ("calibrated_sensor", {"camera_intrinsic": [[np.nan, 0, 0], [0, 1, 0], [0, 0, 1]]}),
        ("calibrated_sensor", {"camera_intrinsic": [[1, 0], [0, 1, 0], [0, 0, 1]]}),
        ("ego_pose", {"rotation": [0, 0, 0, 0]}),
        ("ego_pose", {"translation": [0, np.inf, 0]}),
        ("sample_data", {"width": 0}),
    ],
)
def test_a_calibration_that_cannot_be_used_costs_only_its_frame(root, table, changes):
    content = tables()
    content[table][0].update(changes)
    source = NuscenesSource(write(root, content))
    with pytest.raises(FrameError, match="CAM_FRONT"):
        source.frame("early")


def test_an_unknown_sample_is_an_error(root):
    with pytest.raises(FrameError, match="no sample with token 'gone'"):
        NuscenesSource(root).frame("gone")


def test_damaged_files_are_errors_when_they_are_loaded(root):
    frame = NuscenesSource(root).frame("early")
    (root / "samples" / "front.png").unlink()
    with pytest.raises(FrameError, match=r"image missing: .*front\.png"):
        frame.views[0].load_image()
    Image.new("RGB", (80, 45)).save(root / "samples" / "back.png")
    with pytest.raises(FrameError, match="expected 90 x 160 px"):
        frame.views[3].load_image()
    lidar = root / "samples" / "lidar.pcd.bin"
    for data, message in (
        (bytes(33), "rows of 5 float32, found 33 bytes: truncated"),
        (b"", "found none"),
        (np.full(10, np.nan, np.float32).tobytes(), "found 2 of which 0 are finite"),
    ):
        lidar.write_bytes(data)
        with pytest.raises(FrameError, match=rf"lidar\.pcd\.bin: .*{message}"):
            frame.load_sweep()
    lidar.unlink()
    with pytest.raises(FrameError, match=r"LiDAR file missing: .*lidar\.pcd\.bin"):
        frame.load_sweep()


def test_real_points_fall_where_the_devkit_puts_them(real_data):
    """`map_pointcloud_to_image(min_dist=1)` keeps what is inside a border of one pixel, pixel centres at integers."""
    source = NuscenesSource(real_data / "nuscenes", "v1.0-mini")
    (frame_id,) = source.drives["scene-0061"]
    frame = source.frame(frame_id)
    sweep = frame.load_sweep()
    assert [view.camera.name for view in frame.views] == list(CAMERAS)
    assert dict(source.splits) == {"train": ("scene-0061",), "mini_train": ("scene-0061",)}
    counts = {}
    for view in frame.views:
        size = (view.camera.height_px, view.camera.width_px)
        seen = project(sweep.points_m, cam_from_lidar(view, sweep), view.camera.K_px, size, min_depth_m=1.0)
        u, v = seen.u_px - 0.5, seen.v_px - 0.5
        counts[view.camera.name] = int(((u > 1) & (u < size[1] - 1) & (v > 1) & (v < size[0] - 1)).sum())
    assert counts == DEVKIT_COUNTS
    assert np.count_nonzero(sparse_depth(frame.views[0], sweep, (900, 1600))) > 3000
    assert frame.views[0].load_image().shape == (900, 1600, 3)


def test_real_keyframes_without_lidar_have_no_sweep(real_data):
    source = NuscenesSource(real_data / "nuscenes", "v1.0-mini-camonly")
    assert dict(source.splits) == {"val": ("scene-0103",), "mini_val": ("scene-0103",)}
    frames = [source.frame(frame_id) for frame_id in source.drives["scene-0103"]]
    assert len(frames) == 5
    assert all(frame.load_sweep is None and None not in frame.views for frame in frames)
    times_ns = [frame.views[0].time_ns for frame in frames]
    assert times_ns == sorted(times_ns)


def test_a_real_folder_with_two_versions_asks_which(real_data):
    with pytest.raises(SourceError, match=r"found v1\.0-mini, v1\.0-mini-camonly"):
        NuscenesSource(real_data / "nuscenes")


@pytest.mark.parametrize("name", ["/etc/passwd", "samples/../../x.png", "..", "C:/x.png", "a\\..\\x.png", "a\0.png"])
@pytest.mark.parametrize("row", [0, 2])
def test_a_file_outside_of_the_data_folder_is_refused(root, name, row):
    content = tables()
    content["sample_data"][row]["filename"] = name
    with pytest.raises(SourceError, match=r"sample_data\.json: .*expected a file below the data folder, without \.\."):
        NuscenesSource(write(root, content))


def test_a_sweep_that_is_larger_than_any_or_a_pipe_is_refused_unread(root):
    path = root / "samples" / "lidar.pcd.bin"
    with path.open("r+b") as stream:
        stream.truncate(20 * 2**30)
    with pytest.raises(FrameError, match=r"lidar\.pcd\.bin: expected at most 536870912 bytes, found 21474836480"):
        NuscenesSource(root).frame("early").load_sweep()
    for name in ("lidar.pcd.bin", "front.png"):
        (root / "samples" / name).unlink()
        os.mkfifo(root / "samples" / name)
    frame = NuscenesSource(root).frame("early")
    for load in (frame.load_sweep, frame.views[0].load_image):
        with pytest.raises(FrameError, match="expected a file, found a folder, a pipe or a device"):
            load()
