from dataclasses import replace

import numpy as np
import pytest
from support.bags import calibration, cloud, image_file, odometry, raw_image, serialized, transform, write_bag
from support.small_recording import (
    LIDAR_MOUNT,
    LIDAR_TOPIC,
    SIZE,
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
    without,
    world_from_ego,
)

from data_cache.errors import SourceError
from data_cache.sources.recordings.decisions import decisions_text
from data_cache.sources.recordings.settings import BagSettings, CameraSetting, read_settings
from data_cache.sources.recordings.source import RecordingSource


def source_of(tmp_path, said, **settings) -> RecordingSource:
    return RecordingSource([write_bag(tmp_path / "van", in_order(said))], BagSettings(**settings))


@pytest.fixture(scope="module")
def standing():
    """Of everything one message, and no pose: enough to decide."""
    said = [*statics(), *lidar(1)]
    return [*said, *(one for name in ("front", "left", "back", "right") for one in camera(name, count=1))]


def test_the_ring_is_clockwise_front_first_whatever_the_names(tmp_path):
    """Azimuths count to the left: of 10, -60, 130 and -170 degrees the first is ahead, then right, behind, left."""
    azimuths = {"a": 130, "b": -60, "c": 10, "d": -170}
    said = [transform(at(0), "base_link", f"{name}_optical", mount(a), "/tf_static") for name, a in azimuths.items()]
    said += [one for name in azimuths for one in camera(name, count=1)]
    source = source_of(tmp_path, said)
    assert source.rig.camera_names == ("c", "b", "d", "a")
    np.testing.assert_allclose(source.choices.azimuths_deg, [10, -60, -170, 130], atol=1e-9)


def test_names_leave_out_what_all_topics_share(tmp_path):
    said = []
    for name in ("front_left", "rear"):
        optical = f"{name}_cam"
        said += [transform(at(0), "base_link", optical, mount(45 if name == "front_left" else 180), "/tf_static")]
        said += [calibration(at(0), f"/van/camera/{name}/camera_info", optical, SIZE, K)]
        said += [image_file(at(0), f"/van/camera/{name}/image_rect_color/compressed", optical, jpeg(1))]
    assert source_of(tmp_path, said).rig.camera_names == ("front_left", "rear")


def test_of_two_topics_of_one_camera_the_file_before_rectification_is_taken(tmp_path, standing):
    rows = np.zeros((SIZE[1], SIZE[0], 3), np.uint8)
    said = [
        *standing,
        raw_image(at(0.01), "/front/image_raw", "front_optical", rows, "rgb8"),
        image_file(at(0.01), "/front/image_rect/compressed", "front_optical", jpeg(1)),
        raw_image(at(0.01), "/front/depth", "front_optical", np.zeros((*SIZE[::-1], 4), np.uint8), "32FC1"),
    ]
    source = source_of(tmp_path, said)
    assert source.choices.cameras[0].topic == "/front/image_raw/compressed"
    assert "/front/image_raw is not used: /front/image_raw/compressed is of the same camera" in source.notes
    assert "/front/depth is not used: it holds depth, not pictures" in source.notes


def test_rectified_images_take_the_projection_and_no_lens(tmp_path):
    P = np.hstack([K * [[1.1], [1.1], [1]], np.zeros((3, 1))])
    said = [*statics(), calibration(at(0), "/front/camera_info", "front_optical", SIZE, K, D=[0.1, 0, 0, 0, 0], P=P)]
    said += [image_file(at(0), "/front/image_rect/compressed", "front_optical", jpeg(1))]
    (one,) = source_of(tmp_path, said).choices.cameras
    assert (one.lens, one.is_rectified, round(one.camera.K_px[0, 0], 9)) == (None, True, 22.0)


def test_no_poses_mean_a_standing_vehicle_and_that_is_said_aloud(tmp_path, standing):
    source = source_of(tmp_path, standing)
    assert (source.choices.ego, source.choices.world) == ("base_link", "base_link")
    assert any(note.startswith("NO POSES: nothing says where base_link is, so the vehicle counts as standing still")
               for note in source.notes)  # fmt: skip
    np.testing.assert_allclose(source.frame(source.drives["van"][0]).load_sweep().world_from_lidar, LIDAR_MOUNT)
    (tmp_path / "bag.toml").write_text(decisions_text(source))
    assert RecordingSource([tmp_path / "van"], read_settings(tmp_path / "bag.toml")).notes == source.notes


def test_a_world_that_the_user_names_and_that_never_moves_is_said_aloud(tmp_path):
    for i, world in enumerate(("base_link", "lidar")):
        notes = source_of(tmp_path / f"{i}", recording(["front"]), world=world).notes
        assert any(note.startswith(f"NO POSES: base_link never moves in {world}, so the vehicle") for note in notes)


def test_odometry_moves_the_vehicle_where_no_transform_does(tmp_path):
    moving = [odometry(at(i / 50), "odom", "base_link", world_from_ego(i / 50)) for i in range(101)]
    source = source_of(tmp_path, [*without(recording(["front"]), "/tf"), *moving])
    assert source.choices.world == "odom"
    np.testing.assert_allclose(source.frame(f"van/{at(0.5)}").world_from_ego, world_from_ego(0.5), atol=1e-9)
    other = odometry(at(0.01), "map", "base_link", np.eye(4), "/gt")
    two = source_of(tmp_path / "two", [*without(recording(["front"]), "/tf"), *moving, other])
    assert two.choices.world == "odom"
    assert "/gt is not used: /odom says where base_link is" in two.notes
    still = [odometry(at(i / 50 + 0.01), "odom", "base_link", np.eye(4), "/odometry/filtered") for i in range(100)]
    twice = source_of(tmp_path / "twice", in_order([*without(recording(["front"]), "/tf"), *moving, *still]))
    np.testing.assert_allclose(twice.frame(f"van/{at(0.5)}").world_from_ego, world_from_ego(0.5), atol=1e-9)
    assert "/odometry/filtered is not used: /odom says where base_link is" in twice.notes
    both = source_of(tmp_path / "both", [*recording(["front"]), *moving])
    assert "/odom is not used: transforms say where base_link is" in both.notes


def test_odom_is_the_world_rather_than_a_map_that_jumps(tmp_path):
    jumps = [transform(at(i), "map", "odom", world_from_ego(3.0 * i)) for i in range(3)]
    source = source_of(tmp_path, [*recording(["front"]), *jumps])
    assert source.choices.world == "odom"
    chosen = source_of(tmp_path / "map", [*recording(["front"]), *jumps], world="map")
    assert chosen.frame(f"van/{at(0.5)}").world_from_ego[0, 3] != 5


def test_the_lidar_is_the_cloud_with_most_points_that_is_of_no_camera(tmp_path, standing):
    many = np.ones((50, 3), np.float32)
    said = [*standing, cloud(at(0), "/depth/points", "depth_optical", many), cloud(at(0), "/radar", "radar", many)]
    said += [cloud(at(0), "/small_lidar", "small", points(0)[:1])]
    source = source_of(tmp_path, said)
    assert source.choices.lidar == LIDAR_TOPIC
    assert f"/radar is not used: the LiDAR is {LIDAR_TOPIC}" in source.notes


def test_without_a_frame_of_a_known_name_the_frame_above_all_sensors_is_the_vehicle(tmp_path):
    said = [transform(at(0), "velodyne", "front_optical", mount(0), "/tf_static"), *camera("front", count=1)]
    source = source_of(tmp_path, [*said, cloud(at(0), "/velodyne_points", "velodyne", points(0))])
    assert source.choices.ego == "velodyne"


def test_the_settings_decide_otherwise(tmp_path, standing):
    chosen = (CameraSetting("/left/image_raw/compressed", "port"), CameraSetting("/front/image_raw/compressed"))
    source = source_of(tmp_path, standing, cameras=chosen, lidar="")
    assert (source.rig.camera_names, source.choices.lidar) == (("port", "front"), None)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lidar": "/nothing"}, "bag.toml names the topic /nothing; found no such topic"),
        ({"lidar": "/front/camera_info"}, "expected point clouds .* found sensor_msgs/msg/CameraInfo"),
        ({"ego": "wheel"}, "ego: expected a frame of the tree of .*, found 'wheel'"),
        ({"world": "wheel"}, "world: expected a frame of the tree of base_link, found 'wheel'"),
        ({"cameras": (CameraSetting("/x"),)}, "/x: expected an image topic, found no such topic; there are /back/"),
        ({"cameras": (CameraSetting(LIDAR_TOPIC),)}, "found messages of sensor_msgs/msg/PointCloud2"),
    ],
)
def test_settings_that_the_recording_cannot_meet_are_errors(tmp_path, standing, settings, message):
    with pytest.raises(SourceError, match=message):
        source_of(tmp_path, standing, **settings)


def test_no_calibration_is_an_error_that_names_the_images(tmp_path, standing):
    said = [one for one in standing if not one.topic.endswith("camera_info")]
    with pytest.raises(SourceError, match="none of them calibrated; record camera_info") as error:
        source_of(tmp_path, said)
    assert "/front/image_raw/compressed" in str(error.value)


def test_a_calibration_that_changes_is_an_error(tmp_path, standing):
    said = [*standing, calibration(at(0.5), "/front/camera_info", "front_optical", SIZE, K * [[1.2], [1.2], [1]])]
    with pytest.raises(SourceError, match="/front/camera_info: expected one calibration throughout"):
        source_of(tmp_path, said)


def test_bags_of_different_calibration_are_an_error(tmp_path, standing):
    other = [*statics(), *camera("front", count=1, K=K * [[1.2], [1.2], [1]])]
    bags = [write_bag(tmp_path / "a", standing), write_bag(tmp_path / "b", other)]
    with pytest.raises(SourceError, match=r"b: /front/camera_info: expected the calibration of .*a, found another one"):
        RecordingSource(bags)


def test_two_cameras_with_one_frame_id_are_an_error_that_names_both(tmp_path):
    said = [*statics(), *camera("front", count=1), *camera("left", count=1, frame="front_optical")]
    with pytest.raises(SourceError, match=r"/front/image_raw/compressed and /left/.* both name 'front_optical'"):
        source_of(tmp_path, said)


def test_a_camera_that_hangs_nowhere_is_an_error_with_both_halves(tmp_path, standing):
    said = [one for one in standing if one.topic != "/tf_static"]
    said += [one for one in statics() if "left_optical" not in repr(one.ros)]
    with pytest.raises(SourceError, match="found two halves: .*left_optical.*; record the transform between them$"):
        source_of(tmp_path, said)
    with pytest.raises(SourceError, match=r"two halves: .* no static transforms were recorded \(/tf_static\)"):
        source_of(tmp_path / "none", without(standing, "/tf_static"))


def test_a_loop_of_transforms_is_an_error(tmp_path, standing):
    said = [*standing, transform(at(0), "lidar", "base_link", np.eye(4), "/tf_static")]
    with pytest.raises(SourceError, match="found the loop .*base_link"):
        source_of(tmp_path, said)


def test_a_second_parent_is_dropped_by_the_settings(tmp_path, standing):
    said = [*standing, transform(at(0), "gnss", "lidar", np.eye(4), "/tf_static")]
    with pytest.raises(SourceError, match="expected one parent of lidar"):
        source_of(tmp_path, said)
    assert source_of(tmp_path / "b", said, ignore_transforms=("gnss > lidar",)).choices.lidar == LIDAR_TOPIC


def test_the_frame_of_a_housing_is_not_taken_for_an_optical_one(tmp_path):
    said = [transform(at(0), "base_link", "front_link", np.eye(4), "/tf_static")]
    said += camera("front", count=1, frame="front_link")
    with pytest.raises(SourceError, match="z of 'front_link' points up: it is probably the frame of its housing"):
        source_of(tmp_path, said)


def test_a_clock_an_hour_apart_is_an_error_and_mended_by_what_it_says(tmp_path):
    hour_ns = 3600 * 10**9
    said = recording(["front"])
    late = [
        replace(image_file(at(i / 10 + 0.01) + hour_ns, "/left/image_raw/compressed", "left_optical", jpeg(i)),
                log_ns=at(i / 10 + 0.015))
        for i in range(20)
    ]  # fmt: skip
    said += [*late, calibration(at(0), "/left/camera_info", "left_optical", SIZE, K)]
    with pytest.raises(SourceError, match=r"/left/image_raw/compressed: .* stamps 3600.000 s ahead of it") as error:
        source_of(tmp_path, said)
    assert '"/left/image_raw/compressed" = -3600.000000 under [clock_offset_s]' in str(error.value)
    mended = source_of(tmp_path / "a", said, clock_offset_s={"/left/image_raw/compressed": -3600.0})
    by_log = source_of(tmp_path / "b", said, clock="log")
    assert [source.parts["van"].pairs.absent["left"] for source in (mended, by_log)] == [0, 0]
    np.testing.assert_allclose(
        mended.frame(f"van/{at(0.5)}").views[1].world_from_cam,
        by_log.frame(f"van/{at(0.505)}").views[1].world_from_cam,
        atol=1e-9,
    )


def test_an_unknown_type_in_the_place_of_cameras_is_named(tmp_path):
    said = [transform(at(0), "a", "b", np.eye(4), "/tf_static"), *poses(until_s=0.1)]
    unknown = replace(said[0], topic="/video", type="geometry_msgs/msg/TransformStamped", ros=said[0].ros.transforms[0])
    with pytest.raises(SourceError, match="not read: geometry_msgs/msg/TransformStamped"):
        source_of(tmp_path, [*said, unknown])
    with pytest.raises(SourceError, match="/video: expected an image topic, found messages of geometry_msgs"):
        source_of(tmp_path / "b", [*said, unknown], cameras=(CameraSetting("/video"),))


def test_a_sensor_whose_place_is_no_pose_is_named(tmp_path, standing):
    broken = transform(at(1), "base_link", "front_optical", mount(0), "/tf_static")
    broken.ros.transforms[0].transform.translation.x = float("nan")
    with pytest.raises(SourceError, match="transforms: where front_optical is on base_link: expected a finite"):
        source_of(tmp_path, [*standing, broken])


def test_cameras_without_a_vehicle_above_them_are_an_error(tmp_path):
    said = [transform(at(0), "front_optical", "left_optical", np.eye(4), "/tf_static")]
    said += [*camera("front", count=1), *camera("left", count=1)]
    with pytest.raises(SourceError, match="found only that of the camera 'front_optical'"):
        source_of(tmp_path, said)


def cut(said, topic):
    """The messages, those of a topic cut to 40 bytes."""
    return [replace(one, ros=serialized(one)[:40]) if one.topic == topic else one for one in said]


IMAGES = "/front/image_raw/compressed"


@pytest.mark.parametrize(
    ("topic", "settings", "expected"),
    [
        (LIDAR_TOPIC, {}, r'point clouds \(lidar = "" in a bag.toml imports without them\)'),
        (LIDAR_TOPIC, {"lidar": LIDAR_TOPIC}, "point clouds"),
        (IMAGES, {}, "calibrated images"),
        (IMAGES, {"cameras": (CameraSetting(IMAGES),)}, "images"),
        ("/front/camera_info", {}, "the calibration of a camera"),
        ("/front/camera_info", {"cameras": (CameraSetting(IMAGES, None, "/front/camera_info"),)}, "a calibration"),
    ],
)
def test_a_topic_of_which_nothing_can_be_read_is_an_error_that_names_the_damage(tmp_path, topic, settings, expected):
    said = cut([*statics(), *lidar(2), *camera("front", count=2)], topic)
    with pytest.raises(SourceError, match=f"^{topic}: expected {expected}.*, found 2 damaged messages and none that"):
        source_of(tmp_path, said, **settings)


def test_a_first_message_that_is_damaged_costs_only_itself(tmp_path):
    said = [*statics(), *cut(lidar(1), LIDAR_TOPIC), *lidar(2)[1:], *camera("front", count=2)]
    source = source_of(tmp_path, said)
    assert (source.choices.lidar, len(source.drives["van"])) == (LIDAR_TOPIC, 1)
    assert any(note.startswith(f"{LIDAR_TOPIC}: 1 damaged message left out; the first: ") for note in source.notes)


def test_a_topic_that_another_bag_holds_as_something_else_is_an_error(tmp_path, standing):
    other = [*statics(), *camera("front", count=1), cloud(at(0), "/left/image_raw/compressed", "lidar", points(0))]
    bags = [write_bag(tmp_path / "a", standing), write_bag(tmp_path / "b", other)]
    with pytest.raises(
        SourceError, match="b: /left/.*: expected sensor_msgs/msg/CompressedImage .* found .*PointCloud2"
    ):
        RecordingSource(bags)


def test_the_decisions_keep_every_digit(tmp_path, standing):
    """An offset to the nanosecond; one of decades, as of a clock that began in 1970."""
    offsets = {LIDAR_TOPIC: -0.012345678, "/tf_static": 1_700_000_000.123456}
    source = source_of(tmp_path, standing, clock_offset_s=offsets, rate_hz=9.9999999, slack_ms=133.3333333)
    (tmp_path / "bag.toml").write_text(decisions_text(source))
    again = read_settings(tmp_path / "bag.toml")
    assert (again.clock_offset_s, again.rate_hz, again.slack_ms) == (offsets, 9.9999999, 133.3333333)


def test_only_tf_static_in_any_namespace_holds_at_all_times(tmp_path):
    for i, (topic, world) in enumerate({"/van/tf_static": "base_link", "/my_tf_static": "odom"}.items()):
        moving = poses(until_s=0.1, topic=topic)
        said = [*statics(), *moving, *lidar(1), *camera("front", count=1)]
        assert source_of(tmp_path / f"{i}", said).choices.world == world


@pytest.mark.parametrize(
    ("encoding", "message"),
    [
        ("nv12", "expected one of the encodings .*, found 'nv12'; record another one, or convert the topic; or list"),
        ("h264", "expected a JPEG or PNG image, found the format 'h264'; or list the topics to use by"),
    ],
)
def test_images_that_are_not_read_are_an_error_before_any_frame_is(tmp_path, encoding, message):
    said = [*statics(), *camera("front", count=1), calibration(at(0), "/left/camera_info", "left_optical", SIZE, K)]
    rows = np.zeros((SIZE[1], SIZE[0], 1), np.uint8)
    said += (
        [raw_image(at(0.01), "/left/image_raw", "left_optical", rows, encoding)]
        if encoding == "nv12"
        else [image_file(at(0.01), "/left/image_raw", "left_optical", b"\0\0\0\1\x67", encoding)]
    )
    with pytest.raises(SourceError, match=f"^/left/image_raw: {message}"):
        source_of(tmp_path, said)
    front = (CameraSetting(IMAGES),)
    assert source_of(tmp_path / "front", said, cameras=front).rig.camera_names == ("front",)


def test_a_first_cloud_whose_layout_lies_is_said(tmp_path):
    said = [*statics(), *lidar(2), *camera("front", count=2)]
    next(one for one in said if one.topic == LIDAR_TOPIC).ros.fields[2].offset = 9
    source = source_of(tmp_path, said)
    expected = f"the first point cloud cannot be read: {LIDAR_TOPIC}: field z: expected 4 bytes within a point of 12"
    assert any(note.startswith(expected) for note in source.notes)


def test_a_recording_without_images_says_so(tmp_path):
    with pytest.raises(SourceError, match="found no image topic; record the images of the cameras"):
        source_of(tmp_path, [*statics(), *lidar(1)])
    depth = raw_image(at(0), "/front/depth", "front_optical", np.zeros((*SIZE[::-1], 4), np.uint8), "32FC1")
    with pytest.raises(SourceError, match="found no image topic but those of depth; record"):
        source_of(tmp_path / "depth", [*statics(), depth])
