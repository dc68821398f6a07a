import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from support.caches import contents
from support.fakes import NAMES, STUDENT_SIZE, TEACHER_SIZE, FakeSource, tiny_teacher
from support.teacher_caches import BINS, SPEC, open_writer, write_teacher_cache

from data_cache.dataset import CachedFrames
from data_cache.files import DiskFullError
from data_cache.frames.views import load_images, rig_views
from data_cache.shards.encodings import ENCODINGS
from data_cache.shards.errors import StaleCacheError
from data_cache.shards.reader import CacheReader, cache_status
from data_cache.shards.records import record_arrays, unpack_depth_m
from stages.caching.identity import recipe_identity
from stages.compute.preemption import Preempted
from stages.compute.resize import resize_views
from stages.targets.binning import AffineBinning
from stages.targets.bins import affine_invariant_map, closed_form_prob, decode
from stages.targets.relations import GRID, ring_relations
from stages.teacher.transformers_depth import TransformersTeacher
from stages.teacher_cache import TeacherCacheReport, teacher_cache


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_every_frame_is_stored_with_what_the_teacher_says_about_its_own_images(tmp_path, teacher_folder, encoding):
    source = FakeSource(5)
    report = write_teacher_cache(tmp_path, source, teacher_folder, dataclasses.replace(BINS, encoding=encoding))
    assert report == TeacherCacheReport(shards_written=3, frames_written=5)
    reader = CacheReader(tmp_path)
    teacher = tiny_teacher(teacher_folder)
    frame = source.frame("d/3")
    record = reader.read("d/3")
    native = load_images(frame)
    expected = rig_views(frame, resize_views(native, STUDENT_SIZE), frame.load_sweep(), STUDENT_SIZE)
    np.testing.assert_array_equal(record.image, expected.image)
    np.testing.assert_allclose(unpack_depth_m(record.lidar_depth), expected.lidar_depth_m, atol=1 / 512)
    assert (record.lidar_depth > 0).sum() > 100
    np.testing.assert_array_equal(record.intrinsics, expected.intrinsics)
    teacher_images = np.stack(resize_views(native, TEACHER_SIZE))
    output = teacher(torch.from_numpy(teacher_images))
    u = affine_invariant_map(output.prediction, (8, 16))
    assert u.std() > 0.1
    stored = CachedFrames(reader, ["d/3"])[0].bins
    difference = (decode(stored, BINS) - closed_form_prob(u, BINS)).abs().sum(1)
    assert difference.max() < 0.02  # twice the total variation
    tokens = torch.nn.functional.normalize(
        torch.nn.functional.adaptive_avg_pool2d(output.features, GRID).flatten(2).transpose(1, 2), dim=-1
    )
    np.testing.assert_allclose(record.relation[1], (tokens[1] @ tokens[2].T).numpy(), atol=2e-3)


def test_only_a_closed_form_cache_serves_another_count_and_sigma(tmp_path, teacher_folder):
    other = {"count": 32, "sigma": 2.0, "window": 5}
    for encoding, named in [
        ("closed_form", set()),
        ("dense", {"bin_count", "bin_sigma"}),
        ("window", {"bin_count", "bin_sigma", "window_width"}),
    ]:
        spec = dataclasses.replace(BINS, encoding=encoding)
        write_teacher_cache(tmp_path / encoding, FakeSource(2), teacher_folder, spec)
        changed = dataclasses.replace(spec, **other)
        expected = recipe_identity("fake", ("d",), (), SPEC, changed, STUDENT_SIZE)
        if named:
            with pytest.raises(StaleCacheError) as error:
                CacheReader(tmp_path / encoding, expected)
            assert error.value.differences.keys() == named
        else:
            CacheReader(tmp_path / encoding, expected)
            assert write_teacher_cache(tmp_path / encoding, FakeSource(2), teacher_folder, changed).shards_written == 0


def test_another_encoding_is_another_cache(tmp_path, teacher_folder):
    write_teacher_cache(tmp_path, FakeSource(2), teacher_folder)
    with pytest.raises(StaleCacheError, match="encoding: cache has 'window', recipe says 'dense'"):
        write_teacher_cache(tmp_path, FakeSource(2), teacher_folder, dataclasses.replace(BINS, encoding="dense"))


def test_a_second_run_looks_at_nothing_and_writes_nothing(tmp_path, teacher_folder):
    write_teacher_cache(tmp_path, FakeSource(5), teacher_folder)
    before = contents(tmp_path)
    looked: list[str] = []
    report = write_teacher_cache(tmp_path, FakeSource(5, on_frame=looked.append), teacher_folder)
    assert report == TeacherCacheReport()
    assert looked == []
    assert contents(tmp_path) == before


@pytest.mark.parametrize("dies_at", range(5))
def test_a_killed_run_resumes_to_the_same_cache(tmp_path, teacher_folder, dies_at):
    def die(frame_id: str) -> None:
        if frame_id == f"d/{dies_at}":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_teacher_cache(tmp_path / "killed", FakeSource(5, on_frame=die), teacher_folder)
    report = write_teacher_cache(tmp_path / "killed", FakeSource(5), teacher_folder)
    assert report.shards_written == 3 - dies_at // 2
    write_teacher_cache(tmp_path / "whole", FakeSource(5), teacher_folder)
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


def test_a_run_asked_to_stop_keeps_finished_shards_and_goes_on_later(tmp_path, teacher_folder):
    answers = iter([False] * 3 + [True])
    with pytest.raises(Preempted, match="finished shards are kept"):
        write_teacher_cache(tmp_path, FakeSource(5), teacher_folder, should_stop=lambda: next(answers))
    assert cache_status(tmp_path).shards_done == 1
    assert write_teacher_cache(tmp_path, FakeSource(5), teacher_folder).shards_written == 2


def test_parts_fill_disjoint_shards_and_together_everything(tmp_path, teacher_folder):
    assert write_teacher_cache(tmp_path / "a", FakeSource(5), teacher_folder, part=(1, 2)).shards_written == 2
    assert write_teacher_cache(tmp_path / "a", FakeSource(5), teacher_folder, part=(2, 2)).shards_written == 1
    write_teacher_cache(tmp_path / "b", FakeSource(5), teacher_folder)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_unreadable_frames_are_quarantined_with_their_reason_and_retried(tmp_path, teacher_folder):
    source = FakeSource(5, broken={"d/0": "image cannot be decoded: a.jpg", "d/3": "NaN calibration"})
    assert write_teacher_cache(tmp_path, source, teacher_folder).frames_written == 3
    assert cache_status(tmp_path).quarantined == source.broken
    reader = CacheReader(tmp_path)
    assert reader.usable(reader.frames.train) == ("d/1", "d/2", "d/4")
    assert write_teacher_cache(tmp_path, source, teacher_folder).shards_written == 0
    healed = write_teacher_cache(tmp_path, FakeSource(5), teacher_folder, retry_quarantined=True)
    assert healed == TeacherCacheReport(shards_written=2, frames_written=4)
    write_teacher_cache(tmp_path / "whole", FakeSource(5), teacher_folder)
    whole = {str(Path("whole") / k): v for k, v in contents(tmp_path / "whole").items()}
    assert contents(tmp_path) == contents(tmp_path) | whole
    assert CacheReader(tmp_path).quarantined == {}


def test_a_cache_of_nothing_but_broken_frames_still_finishes_and_lists_them(tmp_path, teacher_folder):
    source = FakeSource(2, broken={"d/0": "x", "d/1": "y"})
    write_teacher_cache(tmp_path, source, teacher_folder)
    assert cache_status(tmp_path).quarantined == {"d/0": "x", "d/1": "y"}


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_missing_camera_is_a_gap_and_not_an_error(tmp_path, teacher_folder, encoding):
    write_teacher_cache(
        tmp_path, FakeSource(2, missing={"d/1": (1,)}), teacher_folder, dataclasses.replace(BINS, encoding=encoding)
    )
    assert cache_status(tmp_path).notes == {"d/1": "no right"}
    record = CacheReader(tmp_path).read("d/1")
    assert record.view_valid.tolist() == [True, False, True]
    for name in ("image", "lidar_depth", "intrinsics"):
        assert not getattr(record, name)[1].any()
    for array in vars(record.bins).values():
        assert not array[1].any()
        assert array[2].any()
    assert not record.relation[0].any()  # front - right
    assert not record.relation[1].any()  # right - left
    assert record.relation[2].any()  # left - front


def test_views_after_a_gap_keep_their_own_images(tmp_path, teacher_folder):
    write_teacher_cache(tmp_path / "gap", FakeSource(2, missing={"d/1": (1,)}), teacher_folder)
    write_teacher_cache(tmp_path / "full", FakeSource(2), teacher_folder)
    gap, full = (CacheReader(tmp_path / name).read("d/1") for name in ("gap", "full"))
    np.testing.assert_array_equal(gap.image[2], full.image[2])
    np.testing.assert_array_equal(record_arrays(gap)["bin_first"][2], record_arrays(full)["bin_first"][2])
    np.testing.assert_allclose(gap.relation[2], full.relation[2], atol=2e-3)  # their batches have other sizes


def test_a_frame_without_lidar_is_stored_without_depth_and_nan_points_are_noted(tmp_path, teacher_folder):
    write_teacher_cache(tmp_path, FakeSource(2, no_lidar=("d/0",), nan_points=("d/1",)), teacher_folder)
    reader = CacheReader(tmp_path)
    assert not reader.read("d/0").lidar_depth.any()
    assert record_arrays(reader.read("d/0"))["bin_prob"].any()
    assert cache_status(tmp_path).notes == {
        "d/0": "no LiDAR sweep",
        "d/1": "5 LiDAR points are not finite and were left out; 3995 stay",
    }
    assert reader.read("d/1").lidar_depth.any()


def test_a_teacher_that_says_nan_quarantines_the_frame(tmp_path, teacher_folder, monkeypatch):

    honest = TransformersTeacher.__call__
    seen = 0

    def sometimes_nan(self, images):
        nonlocal seen
        output = honest(self, images)
        prediction = output.prediction.clone()
        for i in range(len(images)):
            if seen + i == 4:  # the second view of the second frame
                prediction[i, 0, 0] = float("nan")
        seen += len(images)
        return dataclasses.replace(output, prediction=prediction)

    monkeypatch.setattr(TransformersTeacher, "__call__", sometimes_nan)
    write_teacher_cache(tmp_path, FakeSource(2), teacher_folder)
    (frame_id, reason), *others = cache_status(tmp_path).quarantined.items()
    assert (frame_id, "values that are not finite" in reason, others) == ("d/1", True, [])


def test_batches_run_over_views_and_frames(tmp_path, teacher_folder, monkeypatch):

    sizes = []
    honest = TransformersTeacher.__call__
    monkeypatch.setattr(
        TransformersTeacher, "__call__", lambda self, images: (sizes.append(len(images)), honest(self, images))[1]
    )
    write_teacher_cache(tmp_path, FakeSource(3), teacher_folder)
    assert sizes == [4, 2, 3]  # two frames of three views in the first shard, one in the last
    assert len(NAMES) == 3


@pytest.mark.parametrize("lanes", [2, 3])
def test_lanes_do_not_change_a_byte(tmp_path, teacher_folder, lanes):
    """Each on one thread, as `teacher_lanes` plans them; on several, sums would be rounded in another order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        write_teacher_cache(tmp_path / "one", FakeSource(5), teacher_folder)
    finally:
        torch.set_num_threads(threads)
    write_teacher_cache(tmp_path / "more", FakeSource(5), teacher_folder, lanes=lanes)
    assert contents(tmp_path / "more") == contents(tmp_path / "one")


def test_a_shard_that_another_process_writes_is_left_to_it(tmp_path, teacher_folder):
    other, _ = open_writer(tmp_path, FakeSource(5), teacher_folder)
    other.claim(1)
    report = write_teacher_cache(tmp_path, FakeSource(5), teacher_folder)
    assert report == TeacherCacheReport(shards_written=2, shards_elsewhere=1, frames_written=3)
    other.release(1)
    assert write_teacher_cache(tmp_path, FakeSource(5), teacher_folder) == TeacherCacheReport(
        shards_written=1, frames_written=2
    )


def test_a_shard_finished_elsewhere_since_the_plan_is_not_written_again(tmp_path, teacher_folder):
    source = FakeSource(5)
    writer, teacher = open_writer(tmp_path, source, teacher_folder)
    planned = writer.pending()
    write_teacher_cache(tmp_path, source, teacher_folder, part=(1, 3))
    report = teacher_cache(source, teacher, writer, BINS, AffineBinning(), planned, batch_images=4)
    assert report == TeacherCacheReport(shards_written=2, shards_found_done=1, frames_written=3)


def test_claims_are_given_back_when_a_run_stops(tmp_path, teacher_folder):
    with pytest.raises(Preempted):
        write_teacher_cache(tmp_path, FakeSource(5), teacher_folder, should_stop=lambda: True)
    assert write_teacher_cache(tmp_path, FakeSource(5), teacher_folder).shards_written == 3


def test_a_disk_that_fills_up_stops_the_run_and_names_what_is_lacking(tmp_path, teacher_folder, monkeypatch):
    from data_cache.storage.folder_store import FolderStore

    honest = FolderStore.write

    def full(self, name, data):
        if "bin_prob/c.1" in name:
            raise DiskFullError("disk full")
        honest(self, name, data)

    with monkeypatch.context() as patch:
        patch.setattr(FolderStore, "write", full)
        with pytest.raises(DiskFullError, match=r"shard 1 .* 2 missing shards need about"):
            write_teacher_cache(tmp_path, FakeSource(5), teacher_folder)
    assert cache_status(tmp_path).shards_done in (1, 2)  # the last one may have been under way
    write_teacher_cache(tmp_path, FakeSource(5), teacher_folder)
    write_teacher_cache(tmp_path / "whole", FakeSource(5), teacher_folder)
    assert {k: v for k, v in contents(tmp_path).items() if not k.startswith("whole")} == contents(tmp_path / "whole")


def test_a_covered_lens_is_noted(tmp_path, teacher_folder, monkeypatch):
    from stages.targets import bins

    honest = bins.affine_invariant_map

    def covered(disparity, size):
        u = honest(disparity, size)
        u[0] = 0.5
        return u

    monkeypatch.setattr(bins, "affine_invariant_map", covered)
    write_teacher_cache(tmp_path, FakeSource(1), teacher_folder)
    assert cache_status(tmp_path).notes == {"d/0": "front looks constant to the teacher"}


def test_tokens_are_kept_where_they_are_asked_for_and_make_the_relations(tmp_path, teacher_folder):
    write_teacher_cache(tmp_path, FakeSource(2, missing={"d/1": (1,)}), teacher_folder, tokens=True)
    reader = CacheReader(tmp_path)
    assert reader.identity.token_channels == 16
    frames = CachedFrames(reader, ["d/0", "d/1"])
    for rig in (frames[0], frames[1]):
        torch.testing.assert_close(ring_relations(rig.tokens), rig.relation, atol=2e-3, rtol=0)
    assert frames[0].tokens[1].norm(dim=-1).sub(1).abs().max() < 1e-3
    assert not frames[1].tokens[1].any()


def test_a_cache_without_tokens_is_what_it_was_before_there_were_any(tmp_path, teacher_folder):
    """Its identity and its files: caches that exist stay valid."""
    write_teacher_cache(tmp_path, FakeSource(1), teacher_folder)
    identity = json.loads((tmp_path / "cache.json").read_text())["identity"]
    assert "token_channels" not in identity
    assert not (tmp_path / "arrays.zarr/tokens").exists()
    assert CachedFrames(CacheReader(tmp_path), ["d/0"])[0].tokens.shape == (3, 60, 0)
    with pytest.raises(StaleCacheError, match="token_channels: cache has 0, recipe says 16"):
        write_teacher_cache(tmp_path, FakeSource(1), teacher_folder, tokens=True)


def test_a_data_set_that_was_edited_since_makes_its_cache_stale(tmp_path, teacher_folder):
    class Edited(FakeSource):
        written = "a" * 64

        def metadata_sha256(self, frame_ids):
            return self.written

    source = Edited(1)
    write_teacher_cache(tmp_path, source, teacher_folder)
    assert write_teacher_cache(tmp_path, source, teacher_folder).frames_written == 0
    source.written = "b" * 64
    with pytest.raises(StaleCacheError, match=r"frames.jsonl was edited since:\n  metadata_sha256: cache"):
        write_teacher_cache(tmp_path, source, teacher_folder)
