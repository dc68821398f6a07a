from pathlib import Path

import pytest
from support.fakes import FakeSource

from data_cache.sources.base import StoredSource
from data_cache.sources.registry import open_source
from data_cache.sources.selectors import select
from stages.checkup.readable import MissingFiles, has_sweep, missing_files, read_sample


class OnDisk(FakeSource):
    """Two drives of two frames, a file for each of two sensors."""

    root: Path

    @property
    def drives(self):
        return {"a": ("a/0", "a/1"), "b": ("b/0", "b/1")}

    def files(self, frame_id):
        return {sensor: self.root / sensor / frame_id.replace("/", "_") for sensor in ("cam", "lidar")}


def test_missing_files_are_counted_by_sensor_and_empty_drives_are_named(tmp_path):
    source = OnDisk()
    source.root = tmp_path
    assert isinstance(source, StoredSource)
    assert not isinstance(FakeSource(), StoredSource)
    ids = select(source, ["a", "b"])
    for frame_id in ids:
        for path in source.files(frame_id).values():
            path.parent.mkdir(exist_ok=True)
            path.touch()
    assert missing_files(source, ids) == MissingFiles({}, 4, 4)
    for gone in ("cam/a_1", "cam/b_0", "cam/b_1", "lidar/b_0", "lidar/b_1"):
        (tmp_path / gone).unlink()
    missing = missing_files(source, ids)
    assert missing.by_sensor == {"cam": (3, 4), "lidar": (2, 4)}
    assert (missing.complete, missing.empty_drives) == (1, ("b",))
    assert missing.example in {tmp_path / "cam/a_1"}


@pytest.mark.parametrize(
    ("kind", "folder", "version", "sensors"),
    [("pandaset", "pandaset", "", 7), ("ddad", "ddad/ddad_train_val", "", 7), ("nuscenes", "nuscenes", "v1.0-mini", 7)],
)
def test_every_file_that_real_metadata_name_is_there(real_data, kind, folder, version, sensors):
    source = open_source(kind, real_data / folder, version)
    frame_ids = [frame_id for drive in source.drives.values() for frame_id in drive]
    assert len(source.files(frame_ids[0])) == sensors
    assert missing_files(source, frame_ids).by_sensor == {}


def test_a_sample_says_what_cannot_be_read_and_how_many_returns_each_view_has():
    source = FakeSource(broken={"d/1": "image cannot be decoded"}, no_lidar=("d/2",))
    sample = read_sample(source, ["d/0", "d/1", "d/2"], (42, 70))
    assert dict(sample.refused) == {"d/1": "image cannot be decoded"}
    assert sample.points(0) == int((sample.frames[0].lidar_depth[0] > 0).sum()) > 0
    assert [has_sweep(source, ids) for ids in (["d/2"], ["d/2", "d/0"], [])] == [False, True, False]
