"""A drive as MCAP, in both families of messages."""

import errno
import importlib.util
import io
import os
import sys
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.data_sets.loose_images import camera, write_image, write_rig
from support.data_sets.moving_van import MOUNTS, TOUR, YARD, time_ns, world_from_ego, write_moving_van
from support.drive_files import Bag, Frames, depth_of, read_foxglove, read_ros2, stamp_ns
from support.students import LINEAGE, run_predict, writing
from support.van_runs import van_run

from data_cache.errors import FrameError, SurroundWarning
from data_cache.sources.recordings.source import RecordingSource
from data_cache.sources.rig_folder.source import RigFolderSource
from pipeline.api import load_student
from pipeline.runs import predict
from pipeline.viewers import drive_mcap
from pipeline.viewers.ros2_messages import Ros2Messages
from stages.inference.point_cloud import PointCloud, frame_cloud
from stages.inference.predict import Prediction

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("mcap") is None or importlib.util.find_spec("rosbags") is None,
    reason="MCAP: pip install 'surround-distill[bags]'",
)
TOPIC = {mount.name: f"/surround/{mount.name.replace('.', '_')}" for mount in MOUNTS}
BY_NAME = {mount.name: mount for mount in MOUNTS}


@pytest.fixture
def van(tmp_path, monkeypatch) -> Path:
    van_run(tmp_path, monkeypatch)
    return tmp_path


@dataclass(frozen=True)
class Tour:
    """The bend: its run, what the student says of each frame, and its file in one family of messages."""

    folder: Path
    source: RigFolderSource
    said: list[Prediction]
    clouds: list[PointCloud]
    file: Path
    bag: Bag
    is_foxglove: bool = False


@pytest.fixture(scope="module")
def ros2_tour(tmp_path_factory) -> Tour:
    """As the command writes it, once."""
    folder = tmp_path_factory.mktemp("tour")
    with pytest.MonkeyPatch.context() as patch:
        source = van_run(folder, patch)
        code, text = run_predict(folder, *writing("mcap", "npy"))
        assert (code, "3 frames written" in text) == (0, True), text
    look = load_student(folder / "run/student/last.safetensors", precision="fp32")
    frames = [source.frame(frame_id) for frame_id in source.drives[TOUR]]
    said = [look.look(frame) for frame in frames]
    clouds = [frame_cloud(frame, one, LINEAGE.depth_range_m, 4) for frame, one in zip(frames, said, strict=True)]
    file = folder / f"out/mcap/{TOUR}.mcap"
    return Tour(folder, source, said, clouds, file, read_ros2(file))


@pytest.fixture(scope="module")
def foxglove_tour(ros2_tour) -> Tour:
    """The same in Foxglove's messages."""
    from pipeline.viewers.foxglove_messages import FoxgloveMessages

    file, source = ros2_tour.folder / f"{TOUR}.mcap", ros2_tour.source
    with drive_mcap.DriveFile(file, TOUR, source.rig.camera_names, FoxgloveMessages()) as drive_file:
        for frame_id, said, cloud in zip(source.drives[TOUR], ros2_tour.said, ros2_tour.clouds, strict=True):
            drive_file.add(source.frame(frame_id), said, cloud)
    return replace(ros2_tour, file=file, bag=read_foxglove(file), is_foxglove=True)


@pytest.fixture(scope="module", params=["ros2", "foxglove"])
def tour(request) -> Tour:
    return request.getfixturevalue(f"{request.param}_tour")


def test_each_camera_has_depth_image_and_two_calibrations_at_its_own_time(tour):
    of_camera = ("depth", "camera_info", "image/compressed", "image/camera_info")
    expected = {f"{TOPIC[mount.name]}/{topic}": 3 for mount in MOUNTS for topic in of_camera}
    expected |= {"/tf": 3, "/tf_static": 1, "/surround/points": 3}
    assert {topic: len(messages) for topic, messages in tour.bag.messages.items()} == expected
    assert tour.bag.latched == (set() if tour.is_foxglove else {"/tf_static"})
    for mount in MOUNTS:
        wanted = [time_ns(i, mount) for i in range(3)]
        for topic in (f"{TOPIC[mount.name]}/{topic}" for topic in of_camera):
            assert [stamp_ns(one.header) for one in tour.bag.messages[topic]] == wanted
            assert tour.bag.logged_ns[topic] == wanted
            assert {one.header.frame_id for one in tour.bag.messages[topic]} == {mount.name}


def test_depth_is_bit_for_bit_what_the_student_says_and_nan_where_the_vehicle_hides_the_scene(tour):
    for index in range(3):
        said_m = tour.said[index].depth_m
        for i, mount in enumerate(MOUNTS):
            depth_m = depth_of(tour.bag.messages[f"{TOPIC[mount.name]}/depth"][index])
            known = ~np.isnan(depth_m)
            np.testing.assert_array_equal(depth_m[known], said_m[i][known])
            if mount.name == "right":
                # The mask hides rows 30 to 39 of 40 and columns 0 to 47 of 96; Lanczos reaches 3 pixels over its edge.
                assert not known[27:, :29].any()
                assert known[:23].all()
                assert known[:, 34:].all()
            else:
                assert known.all()
    # An image of the student's size has the same pixels as its depth map.
    np.testing.assert_array_equal(
        depth_of(tour.bag.messages["/surround/front/depth"][2]), np.load(tour.folder / f"out/npy/front/{TOUR}/2.npy")
    )


def test_camera_info_is_of_the_pixels_that_it_comes_with(tour):
    """By hand: 40 x 96 to 32 x 64 is 2/3 in width and 4/5 in height; cx = (50.5 + .5) 2/3 - .5, as centres move too."""
    of_depth = tour.bag.messages["/surround/right/camera_info"][0]
    assert (of_depth.height, of_depth.width, of_depth.distortion_model) == (32, 64, "plumb_bob")
    np.testing.assert_allclose(of_depth.k, [40, 0, 33.5, 0, 36, 16.3, 0, 0, 1], atol=1e-12)
    np.testing.assert_allclose(of_depth.p, [40, 0, 33.5, 0, 0, 36, 16.3, 0, 0, 0, 1, 0], atol=1e-12)
    np.testing.assert_array_equal(of_depth.r, np.eye(3).ravel())
    np.testing.assert_array_equal(of_depth.d, np.zeros(5))
    of_image = tour.bag.messages["/surround/right/image/camera_info"][0]
    assert (of_image.height, of_image.width) == (40, 96)
    np.testing.assert_allclose(of_image.k, np.ravel(BY_NAME["right"].K_px), atol=1e-12)
    # The images of a distorted camera are written undistorted, so there is no distortion left to describe.
    undistorted = tour.bag.messages["/surround/left/image/camera_info"][0]
    K_px = tour.source.frame(f"{TOUR}/0").views[3].camera.K_px
    np.testing.assert_allclose(undistorted.k.reshape(3, 3)[:2, 2], K_px[:2, 2] - 0.5, atol=1e-12)
    assert undistorted.k[0] == K_px[0, 0]
    assert not undistorted.d.any()


def test_jpeg_and_png_are_copied_and_other_images_encoded_once(tour):
    for index in range(3):
        for name, format_name in (("front", "jpeg"), ("right", "png")):
            message = tour.bag.messages[f"/surround/{name}/image/compressed"][index]
            file = tour.folder / f"van/{name}/{TOUR}{index}.{BY_NAME[name].suffix}"
            assert (message.format, message.data.tobytes() == file.read_bytes()) == (format_name, True)
        for i, topic in ((2, "/surround/rear_cam"), (3, "/surround/left")):
            message = tour.bag.messages[f"{topic}/image/compressed"][index]
            shown = np.asarray(Image.open(io.BytesIO(message.data.tobytes()))).astype(float)
            seen = tour.source.frame(f"{TOUR}/{index}").views[i].load_image()
            assert (message.format, shown.shape) == ("jpeg", seen.shape)
            assert np.abs(shown - seen).mean() < 12  # noise in blocks of 8 px, whose colours JPEG halves in resolution


def test_a_photograph_that_viewers_would_turn_is_not_copied(tmp_path):
    view = RigFolderSource(write_moving_van(tmp_path / "van")).frame(f"{TOUR}/0").views[0]
    exif = Image.Exif()
    exif[drive_mcap.ORIENTATION_TAG] = 6
    with Image.open(view.image_file) as image:
        image.save(view.image_file, exif=exif)
    encoded = drive_mcap._encoded(view)
    assert encoded.data != view.image_file.read_bytes()
    assert Image.open(io.BytesIO(encoded.data)).size == (64, 32)


def test_points_seen_through_tf_and_camera_info_are_the_depth_pixels(tour):
    """All geometry of the file in one: cloud, poses, static mounts, calibration and depth, at different times."""
    frames = Frames(tour.bag)
    for index in range(3):
        message = tour.bag.messages["/surround/points"][index]
        assert (message.header.frame_id, stamp_ns(message.header)) == ("base_link", time_ns(index, MOUNTS[0]))
        map_from_points = frames.map_from("base_link", stamp_ns(message.header))
        in_map_m = message.points_m @ map_from_points[:3, :3].T + map_from_points[:3, 3]
        found = np.zeros(len(message.points_m), bool)
        for mount in MOUNTS:
            depth = tour.bag.messages[f"{TOPIC[mount.name]}/depth"][index]
            info = tour.bag.messages[f"{TOPIC[mount.name]}/camera_info"][index]
            cam_from_map = np.linalg.inv(frames.map_from(depth.header.frame_id, stamp_ns(depth.header)))
            ahead = in_map_m @ cam_from_map[:3, :3].T + cam_from_map[:3, 3]
            u, v = (ahead @ info.k.reshape(3, 3).T)[:, :2].T / np.where(ahead[:, 2] > 0, ahead[:, 2], np.nan)
            # Float32 coordinates are right to 5e-6 m within 80 m, and depth is at least half a metre: 34 px x 1e-5.
            near = (np.abs(u - np.round(u)) < 1e-3) & (np.abs(v - np.round(v)) < 1e-3)
            near &= (np.round(u) >= 0) & (np.round(u) < info.width) & (np.round(v) >= 0) & (np.round(v) < info.height)
            at = np.flatnonzero(near)
            seen_m = depth_of(depth)[np.round(v[at]).astype(int), np.round(u[at]).astype(int)]
            same = np.abs(ahead[at, 2] - seen_m) < 2e-5
            assert same.sum() > 100, mount.name
            found[at[same]] = True
        assert found.all()
        np.testing.assert_array_equal(message.rgb, tour.clouds[index].rgb)


def test_the_vehicle_moves_in_tf_and_its_cameras_do_not(tour):
    frames = Frames(tour.bag)
    placed = [mount for mount in MOUNTS if mount.placed]
    assert frames.parent == {"base_link": "map", "rear.cam": "map", **{mount.name: "base_link" for mount in placed}}
    for mount in placed:
        np.testing.assert_allclose(frames.static[mount.name], mount.ego_from_cam(), atol=1e-12)
    assert {at_ns for frame, at_ns in frames.moving if frame == "base_link"} == {
        time_ns(i, mount) for i in range(3) for mount in placed
    }
    for (frame, at_ns), matrix in frames.moving.items():
        own = BY_NAME["rear.cam"].ego_from_cam() if frame == "rear.cam" else np.eye(4)
        np.testing.assert_allclose(matrix, world_from_ego(at_ns) @ own, atol=1e-9)


def test_the_file_is_a_recording_that_can_be_read_as_one(tour):
    """A round trip: cameras, times, poses, calibrations and images, and the family of messages."""
    recording = RecordingSource([tour.file])
    assert recording.foxglove == tour.is_foxglove
    assert isinstance(drive_mcap.messages_for(recording), Ros2Messages) != tour.is_foxglove
    assert set(recording.rig.camera_names) == {"front", "right", "rear_cam", "left"}
    (frame_ids,) = recording.drives.values()
    assert [frame_id.rpartition("/")[2] for frame_id in frame_ids] == [str(time_ns(i, MOUNTS[0])) for i in range(3)]
    written = {view.camera.name.replace(".", "_"): view for view in tour.source.frame(f"{TOUR}/2").views}
    for view in recording.frame(frame_ids[2]).views:
        original = written[view.camera.name]
        assert view.time_ns == original.time_ns
        np.testing.assert_allclose(view.camera.K_px, original.camera.K_px, atol=1e-12)
        np.testing.assert_allclose(view.world_from_cam, original.world_from_cam, atol=1e-9)
        if view.camera.name in ("front", "right"):
            np.testing.assert_array_equal(view.load_image(), original.load_image())
            assert drive_mcap._encoded(view).data == original.image_file.read_bytes()


def test_depth_of_a_recording_in_the_schemas_of_foxglove_is_in_them_too(foxglove_tour):
    out = foxglove_tour.folder / "again"
    on = ("--on", foxglove_tour.file)
    code, text = run_predict(foxglove_tour.folder, *writing("mcap"), "--frame", 1, "--out", out, *on)
    assert (code, "1 frame written" in text) == (0, True), text
    bag = read_foxglove(out / f"mcap/{TOUR}.mcap")
    assert [stamp_ns(one.header) for one in bag.messages["/surround/right/depth"]] == [time_ns(1, BY_NAME["right"])]


def test_each_drive_has_a_file_that_is_not_written_again_until_an_image_is_newer(van):
    both = ("--set", f'data.test=["{TOUR}", "{YARD}[:2]"]', *writing("mcap"))
    with pytest.warns(SurroundWarning, match="yard as MCAP: the vehicle stands at the origin of map in each frame"):
        code, text = run_predict(van, *both)
    assert (code, "5 frames written" in text) == (0, True), text
    files = {name: van / f"out/mcap/{name}.mcap" for name in (TOUR, YARD)}
    before = {name: file.read_bytes() for name, file in files.items()}
    poses = {one.child_frame_id: one.transform.translation for message in read_ros2(files[YARD]).messages["/tf"]
             for one in message.transforms}  # fmt: skip
    assert {name: (at.x, at.y, at.z) for name, at in poses.items()} == {"base_link": (0, 0, 0)}
    assert "0 frames written, 5 already done" in run_predict(van, *both)[1]
    image = van / f"van/front/{TOUR}1.jpg"
    os.utime(image, (image.stat().st_atime, files[TOUR].stat().st_mtime + 5))
    assert "3 frames written, 0 already done" in run_predict(van, *both)[1].replace("2 already", "0 already")
    assert {name: file.read_bytes() for name, file in files.items()} == before
    assert "1 frame written" in run_predict(van, *both, "--frame", 0)[1]
    assert len(read_ros2(files[TOUR]).messages["/tf"]) == 1
    assert not list(van.rglob("*.partial"))


def test_an_interruption_leaves_finished_drives_and_no_half_file(van, monkeypatch):
    both = ("--set", f'data.test=["{TOUR}", "{YARD}[:2]"]', *writing("mcap"))
    asked = iter([False] * 4 + [True])

    @contextmanager
    def stopping():
        yield lambda: next(asked)

    with monkeypatch.context() as patch:
        patch.setattr(predict, "preemption", stopping)
        assert run_predict(van, *both)[0] == 75
    assert [path.name for path in (van / "out/mcap").iterdir()] == [f"{TOUR}.mcap"]
    real, added = drive_mcap.DriveFile.add, []

    def full(self, frame, prediction, cloud):
        if added:
            raise OSError(errno.ENOSPC, "No space left on device")
        added.append(frame.id)
        real(self, frame, prediction, cloud)

    monkeypatch.setattr(drive_mcap.DriveFile, "add", full)
    code, text = run_predict(van, *both)
    assert (code, f"disk full while writing {van}/out/mcap/{YARD}.mcap" in text) == (1, True), text
    assert [path.name for path in (van / "out/mcap").iterdir()] == [f"{TOUR}.mcap"]
    monkeypatch.setattr(drive_mcap.DriveFile, "add", real)
    with pytest.warns(SurroundWarning):
        assert "2 frames written, 3 already done" in run_predict(van, *both)[1]


def test_a_frame_that_cannot_be_used_is_left_out_whole_and_a_drive_of_such_frames_has_no_file(van):
    (van / "van/flank.png").rename(van / "van/gone.png")
    for index in range(3):
        if index != 1:
            (van / f"van/left/{TOUR}{index}.png").write_bytes(b"no image")
    code, text = run_predict(van, *writing("mcap"))
    assert (code, "none of 3 frames can be used" in text) == (2, True), text
    assert not list((van / "out").rglob("*.mcap*"))
    (van / "van/gone.png").rename(van / "van/flank.png")
    code, text = run_predict(van, *writing("mcap"))
    assert (code, "1 frame written" in text, f"{TOUR}/0: image cannot be decoded" in text) == (3, True, True), text
    bag = read_ros2(van / f"out/mcap/{TOUR}.mcap")
    assert {len(messages) for messages in bag.messages.values()} == {1}
    assert bag.logged_ns["/surround/points"] == [time_ns(1, MOUNTS[0])]


def test_a_frame_whose_image_cannot_be_copied_takes_no_transform_with_it(van, monkeypatch):
    real, failed = drive_mcap._encoded, []

    def once(view):
        if not failed:
            failed.append(view.camera.name)
            raise FrameError("image missing: gone")
        return real(view)

    monkeypatch.setattr(drive_mcap, "_encoded", once)
    code, text = run_predict(van, *writing("mcap"))
    assert (code, "2 frames written" in text, f"{TOUR}/0: image missing: gone" in text) == (3, True, True), text
    bag = read_ros2(van / f"out/mcap/{TOUR}.mcap")
    assert {topic: len(messages) for topic, messages in bag.messages.items() if len(messages) != 2} == {"/tf_static": 1}
    assert set(Frames(bag).static) == {"front", "right", "left"}


def test_loose_images_have_no_time_and_no_pose_and_the_notice_says_so(van):
    rig = write_rig(van, *(camera(name) for name in ("front", "back")))
    for name in ("front", "back"):
        for number in range(2):
            write_image(van / f"in/{name}/{number}.png", number)
    with pytest.warns(SurroundWarning, match=r"stands at the origin of map .*; frames without time stamps are 0\.1 s apart"):  # fmt: skip # noqa: E501
        code, text = run_predict(van, van / "in", "--rig", rig, *writing("mcap"))
    assert (code, "2 frames written" in text) == (0, True), text
    bag = read_ros2(van / "out/mcap/images.mcap")
    assert bag.logged_ns["/surround/front/depth"] == [100_000_000, 200_000_000]


@pytest.mark.parametrize("package", ["mcap.writer", "rosbags.typesys", "foxglove_schemas_protobuf", "zstandard"])
def test_without_the_extra_it_says_what_to_install(van, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    code, text = run_predict(van, *writing("mcap"))
    assert (code, "pip install 'surround-distill[bags]'" in text) == (2, True), text
    assert not (van / "out").exists()


def test_topics_of_different_cameras_differ():
    assert drive_mcap._topics(["a.b", "a-b", "a_b", "360", "É"]) == {
        "a.b": "/surround/a_b", "a-b": "/surround/a_b_", "a_b": "/surround/a_b__", "360": "/surround/_360",
        "É": "/surround/_",
    }  # fmt: skip
