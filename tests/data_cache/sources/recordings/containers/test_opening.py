import shutil
import sqlite3
import tempfile
from types import SimpleNamespace

import numpy as np
import pytest
import zstandard
from support.bags import write_bag
from support.small_recording import recording

from data_cache.errors import FrameError, SourceError
from data_cache.sources.recordings.containers.opening import bag_files, open_file
from data_cache.sources.recordings.source import RecordingSource


@pytest.mark.parametrize("kind", ["sqlite3", "sqlite3-messages", "sqlite3-file"])
def test_every_message_of_a_database_is_fetched_again_by_its_row(tmp_path, kind):
    (path,) = bag_files(write_bag(tmp_path / "van", recording(["front"]), kind))
    file = open_file(path)
    found = [(bytes(one.data), one.place) for one in file.messages()]
    assert len(found) == len(recording(["front"]))
    for i in np.random.default_rng(0).permutation(len(found))[:50]:
        assert file.fetch(found[i][1]) == found[i][0]


def test_a_database_that_was_cut_off_is_an_error_or_said(tmp_path):
    (path,) = bag_files(write_bag(tmp_path / "van", recording(["front"]), "sqlite3"))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(SourceError, match=r"van_?0?\S*db3: .*cut off or damaged: `sqlite3 CUT.db3 .recover"):
        RecordingSource([path])


def test_a_damaged_row_costs_only_itself(tmp_path):
    (path,) = bag_files(write_bag(tmp_path / "van", recording(["front"]), "sqlite3-messages"))
    with sqlite3.connect(path) as database:
        rows = database.execute(
            "SELECT m.id FROM messages m JOIN topics t ON m.topic_id = t.id WHERE t.name LIKE '%points'"
        )
        (number,) = rows.fetchall()[3]
        database.execute("UPDATE messages SET data = ? WHERE id = ?", (b"\x28\xb5\x2f\xfd nothing", number))
    database.close()
    source = RecordingSource([path])
    assert len(source.drives[next(iter(source.drives))]) == 19
    assert any(f"message {number} is damaged and left out" in note for note in source.notes)


def test_a_row_that_changed_since_is_an_error_of_its_frame(tmp_path):
    (path,) = bag_files(write_bag(tmp_path / "van", recording(["front"]), "sqlite3"))
    file = open_file(path)
    place = next(iter(file.messages())).place
    with pytest.raises(FrameError, match="expected a message of 5 bytes"):
        file.fetch(type(place)(place.start, 0, 5))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("old.bag", b"#ROSBAG V2.0\n", "expected a ROS 2 bag, found one of ROS 1; `rosbags-convert`"),
        ("empty.mcap", b"", "found an empty file"),
        (
            "text.db3",
            b"hello world, this is text",
            "expected an MCAP file or the .db3 of a ROS 2 bag, found b'hello wo'",
        ),
        ("other.db3", None, "expected the tables of a ROS 2 bag, found no such table"),
        ("cut.db3.zstd", b"\x28\xb5\x2f\xfdnothing", "expected zstd data, found"),
    ],
)
def test_what_is_no_recording_is_named(tmp_path, name, content, message):
    path = tmp_path / name
    if content is None:
        with sqlite3.connect(path) as database:
            database.execute("CREATE TABLE t (x)")
        database.close()
    else:
        path.write_bytes(content)
    with pytest.raises(SourceError, match=message):
        RecordingSource([path])


def test_a_folder_without_files_or_with_one_missing_is_an_error(tmp_path):
    with pytest.raises(SourceError, match="expected a recording .* found nothing"):
        RecordingSource([tmp_path / "nothing"])
    with pytest.raises(SourceError, match=r"expected .mcap or .db3 files in the folder of a bag, found none"):
        RecordingSource([tmp_path])
    bag = write_bag(tmp_path / "van", recording(["front"])[:20], "sqlite3")
    (path,) = bag_files(bag)
    path.rename(bag / "elsewhere.db3")
    with pytest.raises(SourceError, match=f"metadata.yaml lists {path.name}, which is missing"):
        RecordingSource([bag])


def test_a_packed_file_that_unpacks_to_far_more_than_a_recording_is_refused(tmp_path):
    path = tmp_path / "bomb.db3.zstd"
    path.write_bytes(zstandard.ZstdCompressor(level=3).compress(bytes(2**24)))
    with pytest.raises(
        SourceError, match="unpacks to more than 1000 times its size; the file is made to fill the disk"
    ):
        RecordingSource([path])


@pytest.mark.parametrize("is_declared", [True, False])
def test_a_packed_file_for_which_the_disk_has_no_room_is_refused(tmp_path, monkeypatch, is_declared):
    path, folder = tmp_path / "van.db3.zstd", tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    packer = zstandard.ZstdCompressor(write_content_size=is_declared)
    path.write_bytes(packer.compress(np.random.default_rng(0).bytes(1000)))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=999))
    with pytest.raises(
        SourceError, match=f"room to unpack 1,000 bytes or more, found 999 free in {folder}; set TMPDIR"
    ):
        open_file(path)
    assert list(folder.iterdir()) == []
