import errno
import json
import pickle
import signal
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import zarr
from support.caches import FRAMES, IDENTITY, RESOLVED, contents, fill, writer
from support.fakes import random_record, tiny_identity

from data_cache.files import DiskFullError, replace_atomically, write_atomically
from data_cache.shards.encodings import ENCODINGS
from data_cache.shards.errors import CacheError, DamagedCacheError, StaleCacheError
from data_cache.shards.identity import DESCRIPTION, Resolved
from data_cache.shards.reader import CacheReader
from data_cache.shards.receipts import receipt_name
from data_cache.shards.records import pack_depth, record_arrays, unpack_depth_m
from data_cache.shards.schema import array_table, frame_bytes, shard_name
from data_cache.shards.writer import CacheWriter


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_what_was_written_is_read_back_equal(tmp_path, encoding):
    identity = tiny_identity(FRAMES, encoding=encoding)
    w = CacheWriter(tmp_path, identity, RESOLVED, FRAMES)
    for shard in w.pending():
        w.commit(shard, [random_record(identity, i) for i in w.frame_range(shard)], {}, {})
    reader = CacheReader(tmp_path)
    assert reader.identity == identity
    for i, frame_id in enumerate(FRAMES.train):
        record = reader.read(frame_id)
        assert type(record.bins) is ENCODINGS[encoding]
        found, expected = record_arrays(record), record_arrays(random_record(identity, i))
        assert found.keys() == expected.keys() == array_table(identity).keys()
        for name, array in expected.items():
            assert found[name].dtype == array.dtype
            np.testing.assert_array_equal(found[name], array)


def test_arrays_lie_under_their_own_names_and_axes(tmp_path):
    """By hand: three views of 2 x 3 pixels, a window of 5 of 8 bins."""
    tables = {name: array_table(tiny_identity(FRAMES, encoding=name)) for name in ENCODINGS}
    found = {
        name: {key: (spec.dtype, spec.shape) for key, spec in table.items() if key.startswith("bin_")}
        for name, table in tables.items()
    }
    assert found == {
        "window": {"bin_first": ("uint8", (3, 2, 3)), "bin_prob": ("uint8", (3, 2, 3, 5))},
        "closed_form": {"bin_map": ("uint16", (3, 2, 3))},
        "dense": {"bin_dense": ("float16", (3, 2, 3, 8))},
    }


def test_pending_shards_are_those_without_receipt_and_parts_share_them_out(tmp_path):
    fill(tmp_path, (1,))
    w = writer(tmp_path)
    assert w.pending() == (0, 2)
    assert w.pending(part=(1, 2)) == (0, 2)
    assert w.pending(part=(2, 2)) == ()
    assert w.pending(part=(3, 3)) == (2,)
    assert [w.pending(part=(i, 5)) for i in range(1, 6)] == [(0,), (), (2,), (), ()]
    assert [w.plan(part=(i, 5)).in_part for i in range(1, 6)] == [1, 1, 1, 0, 0]


def test_the_plan_says_how_much_room_is_needed(tmp_path):
    """Nothing done: the raw bytes of five frames, an upper bound. One shard done: as much for the two others each."""
    plan = writer(tmp_path).plan()
    assert (plan.in_part, plan.needed_bytes, plan.exact) == (3, 5 * frame_bytes(IDENTITY), False)
    fill(tmp_path, (0,))
    first = sum(path.stat().st_size for path in tmp_path.glob("arrays.zarr/*/c.0.*"))
    plan = writer(tmp_path).plan()
    assert (plan.pending, plan.needed_bytes, plan.exact) == ((1, 2), 2 * first, True)


@pytest.mark.parametrize("part", [(0, 2), (3, 2)])
def test_impossible_parts_are_refused(tmp_path, part):
    with pytest.raises(CacheError, match="--part"):
        writer(tmp_path).pending(part=part)


def test_two_caches_of_the_same_frames_have_the_same_bytes(tmp_path):
    fill(tmp_path / "a")
    fill(tmp_path / "b", (2, 0, 1))
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_another_identity_is_refused_naming_each_difference(tmp_path):
    fill(tmp_path, (0,))
    other = replace(IDENTITY, bin_count=16, teacher_name="big")
    with pytest.raises(StaleCacheError) as error:
        CacheWriter(tmp_path, other, RESOLVED, FRAMES)
    assert error.value.differences == {"bin_count": (8, 16), "teacher_name": ("t", "big")}
    assert "bin_count: cache has 8, recipe says 16" in str(error.value)
    assert str(tmp_path) in str(error.value)


def test_a_cache_begun_in_another_precision_is_refused_but_other_threads_are_not(tmp_path):
    fill(tmp_path, (0,))
    CacheWriter(tmp_path, IDENTITY, Resolved("fp32", 12, 8), FRAMES)
    with pytest.raises(StaleCacheError, match="teacher_precision: cache has 'fp32', recipe says 'bf16'"):
        CacheWriter(tmp_path, IDENTITY, Resolved("bf16", 6, 2), FRAMES)
    with pytest.raises(StaleCacheError, match="teacher_runtime: cache has 'torch', recipe says 'openvino'"):
        CacheWriter(tmp_path, IDENTITY, Resolved("fp32", 6, 2, runtime="openvino"), FRAMES)


def test_a_shard_whose_file_was_cut_off_is_pending_again(tmp_path):
    fill(tmp_path)
    path = tmp_path / shard_name("relation", array_table(IDENTITY)["relation"], 1)
    path.write_bytes(path.read_bytes()[:-1])
    assert writer(tmp_path).pending() == (1,)


def test_quarantined_frames_are_kept_in_the_receipt_and_retried_only_when_asked(tmp_path):
    w = writer(tmp_path)
    w.commit(0, [None, random_record(IDENTITY, 1)], {"d/0": "no image"}, {"d/1": "note"})
    assert w.pending() == (1, 2)
    assert w.pending(retry_quarantined=True) == (0, 1, 2)
    receipt = json.loads((tmp_path / receipt_name(0)).read_text())
    assert receipt["quarantined"] == {"d/0": "no image"}
    assert receipt["notes"] == {"d/1": "note"}


def test_a_record_of_the_wrong_shape_or_type_is_never_stored(tmp_path):
    w = writer(tmp_path)
    taller = random_record(replace(IDENTITY, image_size=(5, 6)), 1)
    with pytest.raises(ValueError, match=r"image: expected uint8 \(3, 4, 6, 3\), got uint8 \(3, 5, 6, 3\)"):
        w.commit(0, [random_record(IDENTITY, 0), taller], {}, {})
    assert 0 in w.pending()


def test_a_full_disk_is_named_and_leaves_the_shard_pending(tmp_path, monkeypatch):
    fill(tmp_path, (0,))

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    w = writer(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(DiskFullError, match=r"shard 1.*2 missing shards need about .* are free now"):
            w.commit(1, [random_record(IDENTITY, i) for i in w.frame_range(1)], {}, {})
    assert w.pending() == (1, 2)
    fill(tmp_path, (1, 2))
    assert writer(tmp_path).pending() == ()


def test_a_writer_killed_in_the_middle_resumes_to_the_same_bytes(tmp_path):
    script = textwrap.dedent(
        f"""
        import os, sys
        sys.path[:0] = {sys.path!r}
        from pathlib import Path
        from support.caches import fill
        from data_cache import files
        calls = 0
        flush = files.fsync
        def dying(path):
            global calls
            calls += path.suffix == ".partial" and "/c." in str(path)
            if calls == 11:  # in the middle of the second shard, with a partial file on disk
                os.kill(os.getpid(), 9)
            flush(path)
        files.fsync = dying
        fill(Path({str(tmp_path / "killed")!r}))
        """
    )
    assert subprocess.run([sys.executable, "-c", script]).returncode == -signal.SIGKILL
    assert len(list((tmp_path / "killed").rglob("*.partial"))) == 1
    assert writer(tmp_path / "killed").pending() == (1, 2)
    fill(tmp_path / "killed", (1, 2))
    fill(tmp_path / "whole")
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


def test_a_shard_belongs_to_one_process_at_a_time(tmp_path):
    one, other = writer(tmp_path), writer(tmp_path)
    assert one.claim(1)
    assert not other.claim(1)
    assert other.claim(2)
    one.release(1)
    assert other.claim(1)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_everybody_else_s_claims_are_seen_whoever_came_first(tmp_path, order):
    holders, looker = (writer(tmp_path), writer(tmp_path)), writer(tmp_path)
    for i in order:
        for shard in ((0, 2), (1,))[i]:
            assert holders[i].claim(shard)
    assert looker.store.taken_elsewhere(3) == [0, 1, 2]


def test_a_receipt_of_another_shard_or_without_its_files_proves_nothing(tmp_path):
    fill(tmp_path)
    good = (tmp_path / receipt_name(1)).read_text()
    emptied = json.dumps(json.loads(good) | {"files": {}})
    for shard, text in ((0, good), (1, emptied)):
        before = (tmp_path / receipt_name(shard)).read_text()
        (tmp_path / receipt_name(shard)).write_text(text)
        assert writer(tmp_path).pending() == (shard,)
        with pytest.raises(DamagedCacheError, match="another cache or shard"):
            CacheReader(tmp_path)
        (tmp_path / receipt_name(shard)).write_text(before)


def test_a_claim_dies_with_its_process(tmp_path):
    script = f"""
import sys; sys.path[:0] = {sys.path!r}
import os
from pathlib import Path
from support.caches import writer
writer(Path({str(tmp_path)!r})).claim(1)
os.kill(os.getpid(), 9)
"""
    assert subprocess.run([sys.executable, "-c", script]).returncode == -signal.SIGKILL
    assert writer(tmp_path).claim(1)


def test_partial_files_are_cleared_away_unless_their_shard_is_being_written(tmp_path):
    fill(tmp_path)
    busy = tmp_path / (shard_name("image", array_table(IDENTITY)["image"], 1) + ".7.partial")
    litter = [
        tmp_path / (shard_name("image", array_table(IDENTITY)["image"], 2) + ".7.partial"),
        tmp_path / (receipt_name(0) + ".7.partial"),
        tmp_path / (DESCRIPTION + ".7.partial"),
    ]
    for path in (busy, *litter):
        path.write_text("half")
    one, other = writer(tmp_path), writer(tmp_path)
    one.claim(1)
    other.pending()
    assert [path.exists() for path in (busy, *litter)] == [True, False, False, False]


def test_a_shard_finished_by_another_process_is_seen_to_be_done(tmp_path):
    w = writer(tmp_path)
    assert not w.is_done(1)
    fill(tmp_path, (1,))
    assert w.is_done(1)
    (tmp_path / shard_name("image", array_table(IDENTITY)["image"], 1)).write_bytes(b"cut")
    assert not w.is_done(1)


def test_an_error_of_a_worker_process_keeps_its_type_and_text():
    error = StaleCacheError("/here", {"bin_count": (8, 16)})
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), str(copy), copy.differences) == (StaleCacheError, str(error), error.differences)


def test_a_cache_of_other_frames_is_not_blamed_on_an_edit():
    other_frames = StaleCacheError("/here", {"frames_sha256": ("a", "b"), "metadata_sha256": ("c", "d")})
    assert (list(other_frames.differences), "was edited" in str(other_frames)) == (["frames_sha256"], False)


def test_a_foreign_folder_is_not_written_into(tmp_path):
    zarr.create_group(tmp_path / "arrays.zarr").create_array("image", shape=(2,), dtype="uint8")
    with pytest.raises(CacheError, match="belongs to another recipe"):
        writer(tmp_path)


def test_a_run_killed_before_cache_json_was_written_starts_again(tmp_path):
    fill(tmp_path, ())
    writer(tmp_path)
    (tmp_path / DESCRIPTION).unlink()
    fill(tmp_path)
    assert CacheReader(tmp_path).identity == IDENTITY


def test_a_failed_replacement_leaves_the_old_file_and_no_litter(tmp_path):
    path = tmp_path / "x"
    write_atomically(path, "old")

    def fail(partial: Path) -> None:
        partial.write_text("half")
        raise OSError(errno.ENOSPC, "full")

    with pytest.raises(DiskFullError, match="full"):
        replace_atomically(path, fail)
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


def test_two_writers_of_one_file_never_share_a_partial_file(tmp_path):
    """Processes in two containers may have the same id; here it is one process."""
    path, seen = tmp_path / "recipe.toml", []

    def outer(partial: Path) -> None:
        seen.append(partial)
        partial.write_text("first")
        write_atomically(path, "second")
        seen.extend(p for p in tmp_path.iterdir() if p != path)

    replace_atomically(path, outer)
    assert seen == [seen[0]] * 2
    assert seen[0].suffix == ".partial"
    assert path.read_text() == "first"


def test_a_partial_file_left_by_a_killed_writer_is_cleared_away_whatever_it_is_called(tmp_path, monkeypatch):
    fill(tmp_path)
    monkeypatch.setattr("data_cache.files.Path.replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    monkeypatch.setattr("data_cache.files.Path.unlink", lambda *_, **__: None)
    for name in (shard_name("image", array_table(IDENTITY)["image"], 1), receipt_name(0), DESCRIPTION):
        with pytest.raises(KeyboardInterrupt):
            write_atomically(tmp_path / name, "half")
    monkeypatch.undo()
    assert len(list(tmp_path.rglob("*.partial"))) == 3
    writer(tmp_path).pending()
    assert not list(tmp_path.rglob("*.partial"))


def test_depth_is_stored_in_256ths_of_a_metre_and_too_far_is_no_return():
    depth_m = np.array([0, 0.1, 12.3456, 255.99, 256.0, 300], np.float32)
    assert pack_depth(depth_m).tolist() == [0, 26, 3160, 65533, 0, 0]
    np.testing.assert_allclose(unpack_depth_m(pack_depth(depth_m))[:4], depth_m[:4], atol=1 / 512)
