import pytest

from data_cache.errors import SourceError
from data_cache.sources.recordings.settings import BagSettings, CameraSetting, read_settings

TOML = """
ego = "base_link"
lidar = ""
rate_hz = 2
slack_ms = 20.5
clock = "log"
ignore_transforms = ["map > van"]

[clock_offset_s]
"/left/image" = -3600

[[camera]]
topic = "/left/image"
name = "left"
frame = "left_optical"

[[camera]]
topic = "/right/image"
calibration = "/right/info"
"""


def test_every_key_by_hand(tmp_path):
    (tmp_path / "bag.toml").write_text(TOML)
    cameras = (
        CameraSetting("/left/image", "left", None, "left_optical"),
        CameraSetting("/right/image", None, "/right/info"),
    )
    expected = BagSettings(
        cameras, "", "base_link", None, 2.0, 20.5, "log", {"/left/image": -3600.0}, ("map > van",)
    )  # fmt: skip
    assert read_settings(tmp_path / "bag.toml") == expected


def test_an_empty_file_leaves_everything_to_the_recording(tmp_path):
    (tmp_path / "bag.toml").write_text("# nothing\n")
    assert read_settings(tmp_path / "bag.toml") == BagSettings()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lider = '/points'", "no key \"lider\"; did you mean 'lidar'"),
        ("rate_hz = 0", "rate_hz: expected a number above 0, found 0"),
        ("slack_ms = nan", "slack_ms: expected a finite number"),
        ("clock = 'sensor'", 'clock: expected one of header, log, found "sensor"'),
        ("camera = []", "camera: expected a list of 1 to 64 values"),
        ("[[camera]]\nname = 'x'", r"camera\[0\]: expected the key 'topic'"),
        ("[[camera]]\ntopic = '/x'\nname = 'a/b'", r"camera\[0\].name: expected a name"),
        ("ignore_transforms = ['map']", 'ignore_transforms.0.: expected "parent > child", found "map"'),
        ("[clock_offset_s]\n'/x' = 'late'", "clock_offset_s./x: expected a finite number"),
        ("ego = ''", "ego: expected text"),
        ("ego =", "expected TOML"),
    ],
)
def test_mistakes_are_named(tmp_path, text, message):
    (tmp_path / "bag.toml").write_text(text + "\n")
    with pytest.raises(SourceError, match=message):
        read_settings(tmp_path / "bag.toml")
