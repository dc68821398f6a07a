"""A cache on object storage, against a real S3 server; what it promises beyond a folder's: storage/test_store.py."""

import multiprocessing
import pickle
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from support.caches import FRAMES, IDENTITY, RESOLVED, contents, fill, writer
from support.fakes import random_record
from support.object_storage import CLOSED_PORT

from data_cache.dataset import CachedFrames, batches
from data_cache.shards.errors import CacheError, DamagedCacheError, IncompleteCacheError, StaleCacheError
from data_cache.shards.reader import CacheReader, cache_status, verify_files
from data_cache.shards.receipts import receipt_name
from data_cache.shards.records import record_arrays
from data_cache.shards.schema import array_table, shard_name
from data_cache.shards.writer import CacheWriter
from data_cache.storage.locations import open_store
from data_cache.storage.object_store import ObjectStore
from data_cache.storage.store import StoreError

OBJECT = shard_name("image", array_table(IDENTITY)["image"], 1)


@pytest.fixture
def url(bucket) -> str:
    return f"{bucket.url}/some/run"


@pytest.fixture
def whole(tmp_path) -> dict[str, bytes]:
    """Every file of the same cache in a folder, but for the locks."""
    fill(tmp_path / "whole")
    return {name: data for name, data in contents(tmp_path / "whole").items() if name != "claims.lock"}


def damages_of(url: str) -> list[str]:
    return [line for _, lines in verify_files(url) for line in lines]


def test_objects_are_byte_for_byte_the_files_of_a_folder(bucket, url, whole):
    fill(url)
    assert bucket.contents("some/run") == whole
    status = cache_status(url)
    assert (status.complete, status.damages, status.partial_count) == (True, (), 0)
    assert damages_of(url) == []
    reader = CacheReader(url)
    for i, frame_id in enumerate(FRAMES.train):
        found, expected = (record_arrays(record) for record in (reader.read(frame_id), random_record(IDENTITY, i)))
        for name, array in expected.items():
            np.testing.assert_array_equal(found[name], array)


def test_a_spawned_loader_reads_the_same_frames_as_this_process(url):
    fill(url)
    reader = CacheReader(url)
    reader.read("d/0")  # stores that are open here must not get in its way
    frames, order = CachedFrames(reader, FRAMES.train), [[4, 0], [2]]
    with batches(frames, order, 1) as spawned, batches(frames, order, 0) as own:
        for there, here in zip(spawned, own, strict=True):
            assert there.frame_ids == here.frame_ids
            assert (there.image == here.image).all()
            assert (there.bins.bin_prob == here.bins.bin_prob).all()
    assert multiprocessing.active_children() == []  # although `spawned` is still held


def test_a_writer_stopped_in_the_middle_of_a_shard_resumes_to_the_same_bytes(bucket, url, whole, monkeypatch):
    write, names = ObjectStore.write, []

    def stopping(store, name, data):
        names.append(name)
        if name == shard_name("relation", array_table(IDENTITY)["relation"], 1):
            raise KeyboardInterrupt
        write(store, name, data)

    with monkeypatch.context() as patch:
        patch.setattr(ObjectStore, "write", stopping)
        with pytest.raises(KeyboardInterrupt):
            fill(url)
    assert OBJECT in names
    assert [writer(url).is_done(shard) for shard in range(3)] == [True, False, False]
    with pytest.raises(IncompleteCacheError, match="2 of 3 shards are not written"):
        CacheReader(url)
    bucket.delete(f"some/run/{receipt_name(0)}")
    assert writer(url).pending() == (0, 1, 2)
    fill(url)
    assert writer(url).pending() == ()
    assert bucket.contents("some/run") == whole


def test_two_parts_that_start_together_fill_one_cache(bucket, url, whole):
    one, other = writer(url), writer(url)
    for w, part, shards in ((one, (1, 2), (0, 2)), (other, (2, 2), (1,))):
        assert w.pending(part=part) == shards
    fill(url, (0, 2))
    assert (one.pending(part=(1, 2)), other.pending()) == ((), (1,))
    fill(url, (1,))
    assert bucket.contents("some/run") == whole


def test_a_flipped_byte_is_found_by_verify_and_by_reading(bucket, url):
    fill(url)
    data = bytearray(bucket.get(f"some/run/{OBJECT}"))
    data[len(data) // 3] ^= 4
    bucket.put(f"some/run/{OBJECT}", bytes(data))
    assert [("image" in line, "content differs from its receipt" in line) for line in damages_of(url)] == [(True, True)]
    reader = CacheReader(url)  # sizes and receipts are as they should be
    with pytest.raises(DamagedCacheError, match=f"{url}: image: damaged .*run teacher-cache again"):
        for frame_id in FRAMES.train:
            reader.read(frame_id)


@pytest.mark.parametrize(
    "kept", [pytest.param(0, marks=pytest.mark.torture), -3, None], ids=["empty", "cut off", "missing"]
)
def test_an_object_that_is_cut_off_or_missing_is_found_and_written_anew(bucket, url, whole, kept):
    fill(url)
    if kept is None:
        bucket.delete(f"some/run/{OBJECT}")
    else:
        bucket.put(f"some/run/{OBJECT}", whole[OBJECT][:kept])
    what = "missing" if kept is None else "bytes, receipt says"
    assert [what in line for line in damages_of(url)] == [True]
    assert [what in line for line in cache_status(url).damages] == [True]
    with pytest.raises(DamagedCacheError, match=what):
        CacheReader(url)
    if kept is not None:
        with pytest.raises(DamagedCacheError, match="image: damaged"):
            for frame_id in FRAMES.train:
                CacheReader(url, complete=False).read(frame_id)
    assert writer(url).pending() == (1,)
    fill(url, (1,))
    assert bucket.contents("some/run") == whole


def test_an_empty_prefix_is_no_cache_and_neither_is_what_others_keep_there(bucket, url):
    with pytest.raises(IncompleteCacheError, match=f"no cache at {url} .*run teacher-cache first"):
        cache_status(url)
    bucket.put("some/run/notes.txt", b"mine")
    bucket.put("some/run-2/cache.json", b"{}")  # a neighbour whose name begins with ours
    with pytest.raises(IncompleteCacheError, match="no cache at"):
        cache_status(url)
    fill(url)
    assert cache_status(url).complete
    assert (bucket.get("some/run/notes.txt"), bucket.get("some/run-2/cache.json")) == (b"mine", b"{}")


def test_what_is_not_our_cache_is_refused_and_left_alone(bucket, url):
    bucket.put("some/run/arrays.zarr/zarr.json", b"{}")
    with pytest.raises(CacheError, match=r"arrays\.zarr exists but belongs to another recipe"):
        writer(url)
    assert bucket.contents("some/run") == {"arrays.zarr/zarr.json": b"{}"}
    bucket.delete("some/run/arrays.zarr/zarr.json")
    fill(url, (0,))
    with pytest.raises(StaleCacheError, match="bin_count: cache has 8, recipe says 16"):
        CacheWriter(url, replace(IDENTITY, bin_count=16), RESOLVED, FRAMES)


def test_planning_and_status_list_and_get_receipts_and_never_ask_for_a_shard_file(bucket, url):
    fill(url, (0, 2))
    w = writer(url)
    lists = [f"GET /{bucket.name}?list-type=2&prefix=some/run/{name}/" for name in ("arrays.zarr", "receipts")]
    receipts = [f"GET /{bucket.name}/some/run/{receipt_name(shard)}" for shard in (0, 2)]

    def requests(question) -> list[str]:
        before = len(bucket.server.requests())
        question()
        return [request.split("&delimiter")[0] for request in bucket.server.requests()[before:]]

    assert sorted(requests(w.pending)) == sorted([*lists, *receipts])
    description = f"GET /{bucket.name}/some/run/cache.json"
    assert sorted(requests(lambda: cache_status(url))) == sorted([description, *lists, lists[1], *receipts])
    assert requests(lambda: w.is_done(1)) == [f"GET /{bucket.name}/some/run/{receipt_name(1)}"]


def test_a_process_that_read_a_cache_ends_without_a_word(url):
    fill(url)
    script = (
        f"import sys; sys.path[:0] = {sys.path!r}\nfrom data_cache.shards.reader import CacheReader, verify_files\n"
    )
    script += f"CacheReader({url!r}).read('d/0'); assert len(list(verify_files({url!r}))) == 4"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_network_that_breaks_is_taken_neither_for_damage_nor_for_missing_shards(url, monkeypatch, forget_connections):
    fill(url)
    reader = CacheReader(url)
    monkeypatch.setenv("AWS_ENDPOINT_URL", CLOSED_PORT)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    forget_connections()
    elsewhere = pickle.loads(pickle.dumps(reader))  # connects anew, as in a loader worker
    for look in (elsewhere.read, elsewhere.read_image):
        with pytest.raises(StoreError, match=f"cannot read {url}/.*Could not connect to the endpoint.*network"):
            look("d/0")
    store = open_store(url)
    for question in (store.read, store.size, store.sizes, lambda name: store.read_many([name])):
        with pytest.raises(StoreError, match=f"cannot read {url}/receipts.*Could not connect"):
            question("receipts")
