import pickle
from pathlib import Path

import pytest
from support.object_storage import Bucket

from data_cache.storage.locations import open_store
from data_cache.storage.store import CacheStore, Range


class Elsewhere:
    """The same place seen from another machine, past the store under test."""

    def __init__(self, place: Path | Bucket):
        self.place = place

    @property
    def location(self) -> str:
        return str(self.place) if isinstance(self.place, Path) else f"{self.place.url}/run"

    def put(self, name: str, data: bytes) -> None:
        if isinstance(self.place, Path):
            (self.place / name).write_bytes(data)
        else:
            self.place.put(f"run/{name}", data)

    def delete(self, name: str) -> None:
        if isinstance(self.place, Path):
            (self.place / name).unlink()
        else:
            self.place.delete(f"run/{name}")


@pytest.fixture(params=["folder", "s3"])
def elsewhere(request, tmp_path) -> Elsewhere:
    return Elsewhere(tmp_path / "run" if request.param == "folder" else request.getfixturevalue("bucket"))


@pytest.fixture
def store(elsewhere) -> CacheStore:
    return open_store(elsewhere.location)


def test_a_store_says_where_it_is_as_the_user_wrote_it(elsewhere):
    assert open_store(elsewhere.location + "/").location == elsewhere.location
    assert isinstance(open_store(elsewhere.location), CacheStore)


@pytest.mark.parametrize("name", ["top.json", "a/b/c.0.0"])
@pytest.mark.parametrize("data", [b"", b"\x00\xff" * 70_000], ids=["empty", "bytes"])
def test_a_file_is_read_as_it_was_written_and_replaced_as_a_whole(store, name, data):
    store.write(name, b"something longer" * 50_000)
    store.write(name, data)
    assert (store.read(name), store.size(name)) == (data, len(data))


def test_what_is_not_there_is_said_to_be_missing_by_every_question(store):
    store.write("a/b", b"1")
    for name in ("c", "a/c", "d/e/f"):
        with pytest.raises(FileNotFoundError):
            store.read(name)
        assert store.size(name) is None
    assert store.sizes("d") == {}


def test_sizes_lists_every_file_below_a_folder_by_its_whole_name(store):
    for name, data in {"a/x": b"12", "a/b/y": b"123", "a/b/z": b"", "ab/x": b"1", "top": b"1"}.items():
        store.write(name, data)
    assert store.sizes("a") == {"a/x": 2, "a/b/y": 3, "a/b/z": 0}
    assert store.sizes("a/b") == {"a/b/y": 3, "a/b/z": 0}


def test_read_many_leaves_out_what_is_missing(store):
    for i in range(20):
        store.write(f"r/{i}", bytes([i]))
    assert store.read_many([*(f"r/{i}" for i in range(0, 40, 2)), "q"]) == {f"r/{i}": bytes([i]) for i in range(0, 20, 2)}  # fmt: skip # noqa: E501
    assert store.read_many([]) == {}
    assert store.read_many(["r/77"]) == {}


def test_parts_of_files_by_hand(store):
    store.write("a/b", b"0123456789")
    asked = [Range("a/b", 2, 3), Range("c", 0, 1), Range("a/b", None, 4), Range("a/b", 8, 5)]
    assert store.read_ranges(asked) == [b"234", None, b"6789", b"89"]
    assert store.read_ranges([Range("a/b", None, 40)]) == [b"0123456789"]
    assert store.read_ranges([]) == []


def test_a_removed_file_is_gone_and_may_be_removed_again(store):
    store.write("a/b", b"1")
    store.write("a/c", b"2")
    for _ in range(2):
        store.remove("a/b")
        assert (store.size("a/b"), store.sizes("a"), store.read_many(["a/b"])) == (None, {"a/c": 1}, {})


def test_what_others_write_and_remove_is_seen_at_once(store, elsewhere):
    store.write("a/b", b"old")
    assert (store.read("a/b"), store.size("a/b"), store.sizes("a")) == (b"old", 3, {"a/b": 3})
    elsewhere.put("a/b", b"newer")
    elsewhere.put("a/c", b"1")
    assert (store.read("a/b"), store.size("a/b"), store.sizes("a")) == (b"newer", 5, {"a/b": 5, "a/c": 1})
    assert store.read_many(["a/b", "a/c"]) == {"a/b": b"newer", "a/c": b"1"}
    elsewhere.delete("a/b")
    assert (store.size("a/b"), store.sizes("a"), store.read_many(["a/b"])) == (None, {"a/c": 1}, {})
    with pytest.raises(FileNotFoundError):
        store.read("a/b")


def test_a_store_travels_to_another_process(store):
    store.write("a/b", b"1")
    copy = pickle.loads(pickle.dumps(store))
    assert (copy.location, copy.read("a/b")) == (store.location, b"1")


def test_object_storage_has_no_claims_and_leaves_no_file_for_them(bucket):
    one, other = open_store(f"{bucket.url}/run"), open_store(f"{bucket.url}/run")
    with one.creating(), other.creating():
        assert one.take(3)
        assert other.take(3)
    assert one.taken_elsewhere(9) == []
    assert one.free_bytes() is None
    assert bucket.contents("run") == {}
