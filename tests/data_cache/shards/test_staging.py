import errno
import pickle
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support.caches import FRAMES, IDENTITY, RESOLVED, contents, fill, writer
from support.fakes import random_record

from data_cache.files import DiskFullError, WriteError
from data_cache.shards.errors import DamagedCacheError, IncompleteCacheError
from data_cache.shards.reader import CacheReader, verify_files
from data_cache.shards.receipts import receipt_name, shard_of
from data_cache.shards.records import record_arrays
from data_cache.shards.schema import array_table, shard_name
from data_cache.shards.staging import stage_cache
from data_cache.shards.writer import CacheWriter
from data_cache.storage.folder_store import FolderStore

COPY = IDENTITY.sha256[:16]
FILES = {shard: [shard_name(name, spec, shard) for name, spec in array_table(IDENTITY).items()] for shard in range(3)}


@pytest.fixture
def source(tmp_path) -> CacheReader:
    """A cache of five frames in three shards."""
    fill(tmp_path / "source")
    return CacheReader(tmp_path / "source")


def without_locks(root: Path) -> dict[str, bytes]:
    return {name: data for name, data in contents(root).items() if name != "claims.lock"}


def files_written(monkeypatch) -> list[str]:
    """Names of all files that are written from now on."""
    names, write = [], FolderStore.write
    monkeypatch.setattr(FolderStore, "write", lambda store, name, data: names.append(name) or write(store, name, data))
    return names


def same_frame(reader: CacheReader, frame_id: str, seed: int) -> bool:
    found, expected = record_arrays(reader.read(frame_id)), record_arrays(random_record(IDENTITY, seed))
    return found.keys() == expected.keys() and all(np.array_equal(found[name], expected[name]) for name in expected)


def test_a_copy_of_all_frames_is_the_cache_byte_for_byte(source, tmp_path):
    staged = stage_cache(source, FRAMES.train, tmp_path / "disk")
    assert staged.store.location == str(tmp_path / "disk" / COPY)
    assert without_locks(tmp_path / "disk" / COPY) == without_locks(tmp_path / "source")
    shutil.rmtree(tmp_path / "source")
    there = pickle.loads(pickle.dumps(staged))  # as a loader process gets it
    assert all(same_frame(there, frame_id, seed) for seed, frame_id in enumerate(FRAMES.train))
    assert (there.identity, there.resolved, there.frames) == (IDENTITY, RESOLVED, FRAMES)


def test_only_the_shards_of_the_frames_are_copied_and_others_are_refused_not_read_as_zeros(source, tmp_path):
    staged = stage_cache(source, ["d/4", "d/0"], tmp_path)
    assert {shard_of(name) for name in contents(tmp_path / COPY)} == {0, 2, None}
    assert same_frame(staged, "d/1", 1)  # of the same shard as d/0
    assert same_frame(staged, "d/4", 4)
    with pytest.raises(IncompleteCacheError, match="frame d/2: shard 1 is not written yet"):
        staged.read("d/2")
    staged = stage_cache(source, ["d/2"], tmp_path)
    assert all(same_frame(staged, frame_id, seed) for seed, frame_id in enumerate(FRAMES.train))


def test_a_second_staging_copies_nothing_and_counts_what_is_there(source, tmp_path, monkeypatch):
    told: list[tuple[int, int]] = []
    stage_cache(source, FRAMES.train, tmp_path, on_bytes=lambda *counts: told.append(counts))
    total = sum(len(data) for name, data in contents(tmp_path / COPY).items() if "/c." in name)
    assert told[0] == (0, total) and told[-1] == (total, total)
    assert len(told) == 1 + sum(map(len, FILES.values())) and told == sorted(told)
    told.clear()
    written = files_written(monkeypatch)
    stage_cache(source, FRAMES.train, tmp_path, on_bytes=lambda *counts: told.append(counts))
    assert (written, told) == ([], [(total, total)])


def test_a_file_that_was_cut_off_or_lost_has_its_shard_copied_again(source, tmp_path, monkeypatch):
    stage_cache(source, FRAMES.train, tmp_path)
    (tmp_path / COPY / FILES[1][0]).write_bytes(b"cut")
    (tmp_path / COPY / FILES[2][3]).unlink()
    written = files_written(monkeypatch)
    stage_cache(source, FRAMES.train, tmp_path)
    assert sorted(written) == sorted([*FILES[1], receipt_name(1), *FILES[2], receipt_name(2)])
    assert [lines for _, lines in verify_files(tmp_path / COPY)] == [[]] * 4


def test_a_shard_that_was_written_anew_since_is_copied_again(tmp_path):
    w = writer(tmp_path / "source")
    w.commit(0, [random_record(IDENTITY, 0), None], {"d/1": "broken"}, {})
    stage_cache(CacheReader(tmp_path / "source", complete=False), ["d/0"], tmp_path)
    fill(tmp_path / "source")
    staged = stage_cache(CacheReader(tmp_path / "source"), ["d/1"], tmp_path)
    assert same_frame(staged, "d/1", 1)
    assert staged.quarantined == {}


def test_quarantined_frames_stay_known_though_nothing_is_copied_for_them(tmp_path):
    fill(tmp_path / "source", (0, 2))
    w = writer(tmp_path / "source")
    w.commit(1, [None, None], {"d/2": "broken", "d/3": "dark"}, {})
    staged = stage_cache(CacheReader(tmp_path / "source"), FRAMES.train, tmp_path)
    assert staged.quarantined == {"d/2": "broken", "d/3": "dark"}
    assert staged.usable(FRAMES.train) == ("d/0", "d/1", "d/4")
    assert not (tmp_path / COPY / receipt_name(1)).exists()


def test_copies_of_two_caches_lie_side_by_side(source, tmp_path):
    other = replace(IDENTITY, teacher_name="other")
    w = CacheWriter(tmp_path / "other", other, RESOLVED, FRAMES)
    for shard in w.pending():
        w.commit(shard, [random_record(other, 10 + i) for i in w.frame_range(shard)], {}, {})
    one = stage_cache(source, ["d/0"], tmp_path / "disk")
    two = stage_cache(CacheReader(tmp_path / "other"), ["d/0"], tmp_path / "disk")
    assert one.store.location != two.store.location
    assert same_frame(one, "d/0", 0) and same_frame(two, "d/0", 10)


def test_a_staging_killed_in_the_middle_of_a_shard_goes_on_with_that_shard(source, tmp_path, monkeypatch):
    script = textwrap.dedent(
        f"""
        import os, sys
        sys.path[:0] = {sys.path!r}
        from pathlib import Path
        from data_cache import files
        from data_cache.shards.reader import CacheReader
        from data_cache.shards.staging import stage_cache
        calls, flush = 0, files.fsync
        def dying(path):
            global calls
            calls += path.suffix == ".partial" and "/c." in str(path)
            if calls == {len(FILES[0]) + 3}:  # in the middle of the second shard, with a partial file on disk
                os.kill(os.getpid(), 9)
            flush(path)
        files.fsync = dying
        reader = CacheReader({str(tmp_path / "source")!r})
        stage_cache(reader, reader.frames.train, Path({str(tmp_path / "disk")!r}))
        """
    )
    assert subprocess.run([sys.executable, "-c", script]).returncode == -signal.SIGKILL
    assert len(list((tmp_path / "disk").rglob("*.partial"))) == 1
    written = files_written(monkeypatch)
    told: list[tuple[int, int]] = []
    stage_cache(source, FRAMES.train, tmp_path / "disk", on_bytes=lambda *counts: told.append(counts))
    assert {shard_of(name) for name in written} == {1, 2}
    assert told[0][0] == sum((tmp_path / "source" / name).stat().st_size for name in FILES[0])
    assert without_locks(tmp_path / "disk" / COPY) == without_locks(tmp_path / "source")


def test_processes_that_stage_at_the_same_time_share_the_work(source, tmp_path):
    """Every file of the cache is read once, by one of them, and both end with all of it."""
    script = textwrap.dedent(
        f"""
        import sys
        sys.path[:0] = {sys.path!r}
        from pathlib import Path
        from data_cache.shards.reader import CacheReader
        from data_cache.shards.staging import stage_cache
        from data_cache.storage.folder_store import FolderStore
        reader = CacheReader({str(tmp_path / "source")!r})
        read = FolderStore.read
        def noting(store, name):
            if store == reader.store and "/c." in name:
                print(name)
            return read(store, name)
        FolderStore.read = noting
        print("ready", file=sys.stderr, flush=True)
        sys.stdin.readline()
        staged = stage_cache(reader, reader.frames.train, Path({str(tmp_path)!r}))
        for frame_id in reader.frames.train:
            staged.read(frame_id)
        """
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    stagings = [subprocess.Popen([sys.executable, "-c", script], **pipes) for _ in range(2)]
    for process in stagings:
        assert process.stderr.readline() == "ready\n"
    for process in stagings:
        process.stdin.write("go\n")
        process.stdin.flush()
    outputs = [process.communicate(timeout=120) for process in stagings]
    assert [(process.returncode, errors) for process, (_, errors) in zip(stagings, outputs, strict=True)] == [(0, "")] * 2  # fmt: skip # noqa: E501
    reads = [name for text, _ in outputs for name in text.split()]
    assert sorted(reads) == sorted(name for names in FILES.values() for name in names)
    assert without_locks(tmp_path / COPY) == without_locks(tmp_path / "source")


def test_a_shard_that_another_process_holds_is_waited_for_and_one_that_a_dead_process_held_is_not(source, tmp_path):
    script = textwrap.dedent(
        f"""
        import sys
        sys.path[:0] = {sys.path!r}
        from pathlib import Path
        from data_cache.storage.folder_store import FolderStore
        store = FolderStore(Path({str(tmp_path / COPY)!r}))
        with store.creating():
            print(store.take(1), flush=True)
        sys.stdin.read()
        """
    )
    with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout.readline() == b"True\n"
        staging = threading.Thread(target=stage_cache, args=(source, FRAMES.train, tmp_path), daemon=True)
        staging.start()
        staging.join(1.5)
        assert staging.is_alive()
        assert {shard_of(name) for name in contents(tmp_path / COPY)} == {0, 2, None}
        holder.kill()
    staging.join(30)
    assert not staging.is_alive()
    assert without_locks(tmp_path / COPY) == without_locks(tmp_path / "source")


@pytest.mark.parametrize(
    ("damage", "what"),
    [
        (lambda data: data[:-1] + bytes([data[-1] ^ 1]), "content differs from its receipt"),
        (lambda data: data[:-3], r"\d+ bytes, receipt says"),
        (lambda data: None, "missing"),
    ],
    ids=["flipped", "cut off", "missing"],
)
def test_a_damaged_source_is_named_with_shard_file_and_remedy_and_is_not_copied(tmp_path, source, damage, what):
    path = tmp_path / "source" / FILES[1][2]
    damaged = damage(path.read_bytes())
    path.unlink()
    if damaged is not None:
        path.write_bytes(damaged)
    message = rf"source: {FILES[1][2]}: damaged \({what}.*\); delete .*{receipt_name(1)} and run teacher-cache again"
    with pytest.raises(DamagedCacheError, match=message):
        stage_cache(source, FRAMES.train, tmp_path)
    assert not (tmp_path / COPY / FILES[1][2]).exists()
    assert [name for name in contents(tmp_path / COPY) if name.startswith("receipts/")] == [receipt_name(0)]
    fill(tmp_path / "source", (1,))
    assert same_frame(stage_cache(source, FRAMES.train, tmp_path), "d/3", 3)


def test_damaged_metadata_and_receipts_are_said_of_the_cache_and_nothing_is_copied(source, tmp_path):
    zarr_json, receipt = (tmp_path / "source" / name for name in ("arrays.zarr/image/zarr.json", receipt_name(2)))
    for path in (zarr_json, receipt):
        before = path.read_bytes()
        path.write_text("{")
        with pytest.raises(DamagedCacheError, match=str(tmp_path / "source")):
            stage_cache(source, FRAMES.train, tmp_path)
        path.write_bytes(before)
    receipt.unlink()
    with pytest.raises(IncompleteCacheError, match=r"source: 1 of the 2 shards that are needed are not written yet"):
        stage_cache(source, ["d/4", "d/0"], tmp_path)
    with pytest.raises(KeyError, match="d/9"):
        stage_cache(source, ["d/9"], tmp_path)
    assert not (tmp_path / COPY).exists()


def test_a_disk_that_is_too_small_is_said_before_anything_is_copied(source, tmp_path, monkeypatch):
    needed = sum((tmp_path / "source" / name).stat().st_size for names in FILES.values() for name in names)
    written = files_written(monkeypatch)
    monkeypatch.setattr(FolderStore, "free_bytes", lambda _: needed - 1)
    with pytest.raises(DiskFullError, match=rf"{COPY}: .* kB are still to be copied, .* kB are free.*larger disk"):
        stage_cache(source, FRAMES.train, tmp_path)
    assert not [name for name in written if shard_of(name) is not None]
    monkeypatch.setattr(FolderStore, "free_bytes", lambda _: needed)
    stage_cache(source, FRAMES.train, tmp_path)
    monkeypatch.setattr(FolderStore, "free_bytes", lambda _: 0)
    stage_cache(source, FRAMES.train, tmp_path)  # what is there needs no room


def test_a_disk_that_fills_up_midway_keeps_what_is_finished(source, tmp_path, monkeypatch):
    write = Path.write_bytes

    def full(path: Path, data: bytes) -> int:
        if FILES[1][2] in str(path):
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(path, data)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(DiskFullError, match=r"disk too small.*still to be copied.*Finished shards are kept"):
            stage_cache(source, FRAMES.train, tmp_path)
    assert {shard_of(name) for name in contents(tmp_path / COPY)} == {0, None}
    written = files_written(monkeypatch)
    stage_cache(source, FRAMES.train, tmp_path)
    assert {shard_of(name) for name in written} == {1, 2}


def test_a_folder_that_cannot_be_written_is_one_clear_error(source, tmp_path):
    (tmp_path / "disk").write_text("")
    with pytest.raises(WriteError, match=f"cannot write .*{COPY}"):
        stage_cache(source, FRAMES.train, tmp_path / "disk")


def test_what_the_callback_raises_stops_the_staging_and_the_next_one_goes_on(source, tmp_path):
    def stop(done: int, _total: int) -> None:
        if done > 0:
            raise KeyboardInterrupt("asked to stop")

    with pytest.raises(KeyboardInterrupt, match="asked to stop"):
        stage_cache(source, FRAMES.train, tmp_path, on_bytes=stop)
    stage_cache(source, FRAMES.train, tmp_path)  # no lock is left
    assert without_locks(tmp_path / COPY) == without_locks(tmp_path / "source")


def test_a_cache_on_object_storage_is_staged_with_one_request_for_each_file(bucket, tmp_path):
    url = f"{bucket.url}/run"
    fill(url)
    reader = CacheReader(url)
    before = len(bucket.server.requests())
    staged = stage_cache(reader, ["d/2"], tmp_path)
    gets = [request for request in bucket.server.requests()[before:] if "/c." in request]
    assert sorted(gets) == sorted(f"GET /{bucket.name}/run/{name}" for name in FILES[1])
    before = len(bucket.server.requests())
    assert same_frame(staged, "d/2", 2)
    assert same_frame(stage_cache(reader, ["d/3"], tmp_path), "d/3", 3)
    assert not [request for request in bucket.server.requests()[before:] if "/c." in request]
    bucket.delete(f"run/{FILES[2][0]}")
    with pytest.raises(DamagedCacheError, match=rf"{url}: {FILES[2][0]}: damaged \(missing\)"):
        stage_cache(reader, ["d/4"], tmp_path)
