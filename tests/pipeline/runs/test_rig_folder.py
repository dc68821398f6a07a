"""`surround rig export` and `import`; what they write is tested where it is written (data_cache/sources)."""

import sys
from pathlib import Path

import pytest
from PIL import Image
from support.bags import cloud, image_file, transform, write_bag
from support.data_sets.rig_folder import van
from support.small_recording import LIDAR_TOPIC, at, in_order, jpeg, points, recording, world_from_ego
from support.surround import surround

from data_cache.errors import SettingError
from data_cache.sources.recordings.decoding.messages import _ros_types
from data_cache.sources.recordings.source import RecordingSource
from data_cache.sources.rig_folder.source import RigFolderSource


@pytest.fixture
def folder(tmp_path) -> Path:
    return van(tmp_path)


def test_the_command_exports_what_the_recipe_selects(tmp_path):
    chosen = [
        "--set",
        'data.train=["drive-01"]',
        "--set",
        'data.test=["drive-00[1:2]"]',
        "--set",
        "data.limit_frames=1",
    ]
    code, text = surround("rig", "export", "demo", *chosen, "--out", tmp_path / "rig")
    said = f"rig export: 2 frames in {tmp_path / 'rig'}, 0 images copied, 12 written as PNG\n"
    assert (code, said in text) == (0, True), text
    assert dict(RigFolderSource(tmp_path / "rig").drives) == {"drive-00": ("drive-00/1",), "drive-01": ("drive-01/0",)}
    code, text = surround("rig", "export", "demo", "--out", tmp_path / "rig")
    assert (code, "found rig.json in it" in text) == (2, True)


def test_the_command_lists_frames_that_were_left_out_with_exit_3(tmp_path, folder):
    (folder / "lidar/2.npy").write_bytes(b"")
    Image.new("RGB", (8, 6)).save(folder / "images/1.png")
    arguments = ["--data", folder, "--set", 'data.train=["morning[:1]"]', "--set", 'data.test=["morning[1:]"]']
    code, text = surround("rig", "export", "rig", *arguments, "--out", tmp_path / "out")
    assert (code, "2 frames in" in text, "m/2: " in text) == (3, True, True), text


def test_an_image_that_leads_elsewhere_is_left_out_with_exit_3(tmp_path, folder):
    (folder / "images/1.png").unlink()
    (folder / "images/1.png").symlink_to(folder.parent / "secret.png")
    arguments = ["--data", folder, "--set", 'data.train=["morning[:1]"]', "--set", 'data.test=["morning[1:]"]']
    code, text = surround("rig", "export", "rig", *arguments, "--out", tmp_path / "out")
    assert (code, "2 frames in" in text, "m/1: " in text, "leads to" in text) == (3, True, True, True), text


def test_a_recording_is_imported_and_its_decisions_decide_the_same_again(tmp_path):
    bag = write_bag(tmp_path / "monday", recording(), "mcap-zstd")
    code, decisions = surround("rig", "import", bag, "--dry-run")
    assert (code, sorted(tmp_path.iterdir())) == (0, [bag]), decisions
    code, text = surround("rig", "import", bag)
    assert (code, "--out names the folder to write" in text) == (2, True)
    for line in (
        '\nego = "base_link"    # the vehicle',
        '\nworld = "odom"    # stands still',
        '\nlidar = "/lidar/points"    # in the frame lidar',
        "\n[[camera]]    # looks ahead, 16 x 12 px, no distortion\n",
        "\n[[camera]]    # looks 90 degrees to the right, 16 x 12 px, no distortion\n",
        "\n[[camera]]    # looks back, 16 x 12 px, no distortion\n",
        "\n# Drive monday: 20 frames in 1.9 s, from ",
        "    20    10.0     0      0.10    +0.005  sensor_msgs/msg/PointCloud2\n",
    ):
        assert line in decisions, decisions
    (tmp_path / "bag.toml").write_text(decisions)
    code, text = surround("rig", "import", bag, "--out", tmp_path / "van", "--bag-toml", tmp_path / "bag.toml")
    said = f"rig import: 20 frames in {tmp_path / 'van'}, 80 images copied, 0 written as PNG\n"
    assert (code, said in text) == (0, True), text
    assert surround("rig", "import", bag, "--bag-toml", tmp_path / "bag.toml", "--dry-run")[1] == decisions
    folder = RigFolderSource(tmp_path / "van")
    assert (folder.rig.name, folder.rig.camera_names) == ("van", ("front", "right", "back", "left"))
    code, text = surround("rig", "import", bag, "--out", tmp_path / "van")
    assert (code, "found rig.json in it" in text) == (2, True)


def test_flags_go_before_the_file_and_a_frame_that_cannot_be_read_is_listed_with_exit_3(tmp_path):
    said = [one for one in recording(["front"]) if not (one.topic == LIDAR_TOPIC and one.log_ns > at(1.0))]
    lies = cloud(at(1.0), LIDAR_TOPIC, "lidar", points(10))
    lies.ros.fields[2].offset = 9
    bag = write_bag(tmp_path / "monday", in_order([*said, lies]))
    (tmp_path / "bag.toml").write_text("rate_hz = 1.0\n")
    arguments = ["--bag-toml", tmp_path / "bag.toml", "--rate", "2"]
    code, text = surround("rig", "import", bag, "--out", tmp_path / "van", *arguments)
    assert (code, "rig import: 2 frames in" in text) == (3, True), text
    assert f"monday/{at(1.0)}: {bag}: {LIDAR_TOPIC} at {at(1.0)} ns: field z: expected 4 bytes within a point" in text


def test_an_image_of_another_size_than_its_calibration_is_left_out(tmp_path):
    said = [one for one in recording(["front"]) if one.log_ns < at(0.3)]
    bag = write_bag(tmp_path / "monday", in_order([*said, *_other_size()]))
    code, text = surround("rig", "import", bag, "--out", tmp_path / "van")
    assert (code, "rig import: 3 frames in" in text) == (3, True), text
    assert "expected 16 x 12 px (w x h), as /front/camera_info says, found 20 x 12" in text


def _other_size():
    yield cloud(at(0.3), LIDAR_TOPIC, "lidar", points(3))
    yield transform(at(0.3), "odom", "base_link", world_from_ego(0.3))
    yield transform(at(0.32), "odom", "base_link", world_from_ego(0.32))
    yield image_file(at(0.31), "/front/image_raw/compressed", "front_optical", jpeg(1, (20, 12)))


def test_a_missing_extra_says_what_to_install(tmp_path, monkeypatch):
    bag = write_bag(tmp_path / "monday", recording(["front"]))
    monkeypatch.setitem(sys.modules, "rosbags.typesys", None)
    _ros_types.cache_clear()
    with pytest.raises(SettingError, match=r"recordings need pip install 'surround-distill\[bags\]'"):
        RecordingSource([bag])
