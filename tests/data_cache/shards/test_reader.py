import json
import pickle
import random
import shutil

import numpy as np
import pytest
from support.caches import FRAMES, IDENTITY, RESOLVED, damages_of, fill, shard_files, writer
from support.fakes import random_record

from data_cache.files import WriteError
from data_cache.shards.errors import DamagedCacheError, IncompleteCacheError, StaleCacheError
from data_cache.shards.identity import FORMAT_VERSION
from data_cache.shards.reader import CacheReader, cache_status
from data_cache.shards.receipts import receipt_name
from data_cache.storage.store import StoreError


def test_no_cache_and_an_unfinished_cache_are_refused_with_the_remedy(tmp_path):
    with pytest.raises(IncompleteCacheError, match="no cache at .*run teacher-cache"):
        CacheReader(tmp_path)
    fill(tmp_path, (0, 2))
    with pytest.raises(IncompleteCacheError, match="1 of 3 shards are not written"):
        CacheReader(tmp_path)


def test_a_cache_of_another_recipe_is_refused_naming_each_difference(tmp_path):
    fill(tmp_path)
    CacheReader(tmp_path, expected={"bin_count": 8, "train": ("d",)})
    with pytest.raises(StaleCacheError, match=r"train: cache has \('d',\), recipe says \('e',\)"):
        CacheReader(tmp_path, expected={"bin_count": 8, "train": ("e",)})


def test_missing_and_cut_off_files_are_refused_when_opened(tmp_path):
    fill(tmp_path)
    path = shard_files(tmp_path)[3]
    data = path.read_bytes()
    path.write_bytes(data[:-3])
    with pytest.raises(DamagedCacheError, match=r"receipt says .*delete .*receipts.*run teacher-cache"):
        CacheReader(tmp_path)
    path.unlink()
    with pytest.raises(DamagedCacheError, match="missing"):
        CacheReader(tmp_path)
    path.write_bytes(data)
    CacheReader(tmp_path)


def test_every_flipped_byte_is_found_by_verify_and_by_reading(tmp_path):
    fill(tmp_path)
    assert damages_of(tmp_path) == []
    rng = random.Random(3)
    for _ in range(60):
        path = rng.choice(shard_files(tmp_path))
        data = path.read_bytes()
        place = rng.randrange(len(data))
        path.write_bytes(data[:place] + bytes([data[place] ^ (1 << rng.randrange(8))]) + data[place + 1 :])
        assert len(damages_of(tmp_path)) == 1
        reader = CacheReader(tmp_path)
        with pytest.raises(DamagedCacheError, match=path.relative_to(tmp_path / "arrays.zarr").parts[0]):
            for frame_id in FRAMES.train:
                reader.read(frame_id)
        path.write_bytes(data)


@pytest.mark.parametrize("name", ["cache.json", "frames.json", "receipts/000001.json", "arrays.zarr/image/zarr.json"])
@pytest.mark.parametrize("text", ["", "{", "{}", "[1]", f'{{"identity": {{"format_version": {FORMAT_VERSION}}}}}'])
def test_broken_metadata_is_a_damaged_cache_never_a_traceback(tmp_path, name, text):
    fill(tmp_path)
    (tmp_path / name).write_text(text)
    with pytest.raises(DamagedCacheError, match=name.split("/")[0]):
        CacheReader(tmp_path).read("d/0")


def test_metadata_of_another_layout_is_damage_and_says_what(tmp_path):
    """Zarr would read such arrays, as something else than their shards hold."""
    fill(tmp_path)
    path = tmp_path / "arrays.zarr/lidar_depth/zarr.json"
    path.write_text(path.read_text().replace('"uint16"', '"int16"'))
    with pytest.raises(
        DamagedCacheError, match=r"lidar_depth/zarr.json: expected data_type uint16, found int16; run tea"
    ):
        CacheReader(tmp_path).read("d/0")
    assert len(damages_of(tmp_path)) == 1


def test_another_format_version_is_named(tmp_path):
    fill(tmp_path)
    table = json.loads((tmp_path / "cache.json").read_text())
    table["identity"]["format_version"] = 9
    (tmp_path / "cache.json").write_text(json.dumps(table))
    with pytest.raises(DamagedCacheError, match="format version 9"):
        CacheReader(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"encoding": "zip"}, "encoding: expected one of window, closed_form, dense, got 'zip'"),
        ({"window_width": None}, "window_width: window takes window_width, bin_count, bin_sigma"),
        ({"encoding": "dense"}, "window_width: dense takes bin_count, bin_sigma"),
        ({"encoding": "closed_form", "window_width": None}, "bin_count: closed_form takes no settings"),
    ],
)
def test_an_encoding_that_does_not_fit_its_settings_is_a_damaged_cache(tmp_path, change, message):
    fill(tmp_path)
    table = json.loads((tmp_path / "cache.json").read_text())
    table["identity"] |= change
    (tmp_path / "cache.json").write_text(json.dumps(table))
    with pytest.raises(DamagedCacheError, match=message):
        CacheReader(tmp_path)


def test_a_receipt_of_another_cache_is_refused(tmp_path):
    fill(tmp_path)
    path = tmp_path / receipt_name(1)
    path.write_text(path.read_text().replace(IDENTITY.sha256, "0" * 64))
    with pytest.raises(DamagedCacheError, match="another cache"):
        CacheReader(tmp_path)


def test_status_tells_progress_at_any_moment(tmp_path):
    writer(tmp_path)
    assert cache_status(tmp_path).shards_done == 0
    fill(tmp_path, (0,))
    w = writer(tmp_path)
    w.commit(1, [None, random_record(IDENTITY, 3)], {"d/2": "broken"}, {})
    status = cache_status(tmp_path)
    assert (status.shards_done, status.complete, status.resolved) == (2, False, RESOLVED)
    assert status.quarantined == {"d/2": "broken"}
    assert status.bytes == sum(p.stat().st_size for p in shard_files(tmp_path))


def test_quarantined_frames_are_not_usable(tmp_path):
    fill(tmp_path, (0, 2))
    writer(tmp_path).commit(1, [None, random_record(IDENTITY, 3)], {"d/2": "broken"}, {})
    reader = CacheReader(tmp_path)
    assert reader.usable(reader.frames.train) == ("d/0", "d/1", "d/3", "d/4")


def test_cameras_and_images_read_alone_are_those_of_the_record(tmp_path):
    fill(tmp_path)
    reader = CacheReader(tmp_path)
    record, cameras = reader.read("d/3"), reader.read_cameras("d/3")
    for name, values in vars(cameras).items():
        np.testing.assert_array_equal(values, getattr(record, name))
    assert vars(cameras).keys() == {"view_valid", "intrinsics", "world_from_cam"}
    np.testing.assert_array_equal(reader.read_image("d/3"), record.image)
    assert reader.shards(["d/4", "d/1", "d/0"]) == (0, 2)
    for look in (reader.read, reader.read_cameras, reader.read_image, lambda i: reader.shards([i])):
        with pytest.raises(KeyError):
            look("d/5")


def test_a_reader_travels_to_another_process(tmp_path):
    fill(tmp_path)
    reader = CacheReader(tmp_path)
    reader.read("d/0")
    copy = pickle.loads(pickle.dumps(reader))
    np.testing.assert_array_equal(copy.read("d/3").image, random_record(IDENTITY, 3).image)


@pytest.mark.parametrize("name", ["frames.json", "arrays.zarr/zarr.json", "arrays.zarr/image/zarr.json"])
def test_damaged_metadata_is_found_by_verify_and_written_anew_by_the_next_writer(tmp_path, name):
    fill(tmp_path)
    before = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(before[:20] + b"\xff")
    assert len(damages_of(tmp_path)) == 1
    assert writer(tmp_path).pending() == ()
    assert (tmp_path / name).read_bytes() == before
    assert damages_of(tmp_path) == []


def test_bytes_that_are_no_text_in_a_receipt_are_a_damaged_cache(tmp_path):
    fill(tmp_path)
    (tmp_path / receipt_name(1)).write_bytes(b"\xff\xfe{")
    status = cache_status(tmp_path)
    assert status.shards_done == 2
    assert "is not a receipt" in status.damages[0]
    with pytest.raises(DamagedCacheError, match="is not a receipt"):
        CacheReader(tmp_path)
    assert writer(tmp_path).pending() == (1,)


def test_a_folder_in_place_of_a_file_is_a_damage_or_a_clear_error_never_a_traceback(tmp_path):
    fill(tmp_path)
    shard, receipt = shard_files(tmp_path)[0], tmp_path / receipt_name(1)
    for path in (shard, receipt):
        path.unlink()
        path.mkdir()
    assert any("Is a directory" in line for line in damages_of(tmp_path))
    assert cache_status(tmp_path).shards_done == 1
    with pytest.raises(StoreError, match=r"000001.json: Is a directory; check that it is a file"):
        writer(tmp_path).is_done(1)


def test_a_file_in_place_of_the_receipts_folder_is_a_clear_error_never_a_traceback(tmp_path):
    fill(tmp_path)
    shutil.rmtree(tmp_path / "receipts")
    (tmp_path / "receipts").write_text("")
    assert cache_status(tmp_path).shards_done == 0
    with pytest.raises(StoreError, match=r"000001.json: Not a directory; check that it is a file"):
        writer(tmp_path).is_done(1)
    with pytest.raises(WriteError, match="receipts"):
        fill(tmp_path, (1,))


@pytest.mark.parametrize("look", [cache_status, CacheReader])
def test_a_file_in_place_of_the_cache_folder_is_a_clear_error(tmp_path, look):
    (tmp_path / "cache").write_text("")
    with pytest.raises(StoreError, match=r"cache.json: Not a directory"):
        look(tmp_path / "cache")


def test_status_does_not_count_a_shard_whose_file_is_gone(tmp_path):
    fill(tmp_path)
    shard_files(tmp_path)[0].unlink()
    status = cache_status(tmp_path)
    assert status.shards_done == 2
    assert "missing" in status.damages[0]


def test_status_tells_what_is_being_written_and_what_a_killed_writer_left(tmp_path):
    w = writer(tmp_path)
    w.claim(1)
    (tmp_path / "receipts").mkdir()
    (tmp_path / (receipt_name(2) + ".3.partial")).write_text("half")
    status = cache_status(tmp_path)
    assert (status.shards_open, status.partial_count) == (1, 1)
