import dataclasses

import numpy as np
import pytest
from support.fakes import FakeSource, tiny_teacher
from support.teacher_caches import BINS
from support.teacher_caches import write_teacher_cache as run

from data_cache.shards.encodings import ENCODINGS
from data_cache.shards.reader import CacheReader, cache_status
from data_cache.shards.records import record_arrays, record_from_arrays
from data_cache.shards.writer import CacheWriter
from stages.caching import verify
from stages.caching.verify import content_faults, recompute, stored_spec
from stages.targets.binning import AffineBinning

FRAMES = 3


@pytest.fixture(scope="module", params=ENCODINGS)
def cache(request, tmp_path_factory, teacher_folder):
    root = tmp_path_factory.mktemp("cache")
    run(root, FakeSource(FRAMES), teacher_folder, dataclasses.replace(BINS, encoding=request.param))
    return root


def faults_of(root, note=""):
    reader = CacheReader(root)
    return [fault for frame_id in reader.frames.train for fault in content_faults(reader, frame_id, note)]


def rewritten(root, copy, name, change):
    """The cache with one array of every frame changed, its receipts in order again."""
    reader = CacheReader(root)
    writer = CacheWriter(copy, reader.identity, reader.resolved, reader.frames)
    for shard in range(reader.identity.shard_count):
        records = []
        for i in writer.frame_range(shard):
            record = reader.read(reader.frames.train[i])
            arrays = {k: v.copy() for k, v in record_arrays(record).items()}
            change(arrays[name])
            records.append(record_from_arrays(reader.identity.encoding, arrays))
        writer.commit(shard, records, {}, {})
    return copy


def test_a_good_cache_has_no_faults(cache):
    assert faults_of(cache) == []


def test_values_that_are_not_finite_are_found(cache, tmp_path):
    def break_pose(pose):
        pose[1, 0, 3] = np.nan

    faults = faults_of(rewritten(cache, tmp_path, "world_from_cam", break_pose))
    assert len(faults) == FRAMES
    assert "frame d/0: world_from_cam is not finite" in faults[0]


def test_probabilities_that_do_not_sum_to_one_are_found_and_named(cache, tmp_path):
    encoding = CacheReader(cache).identity.encoding
    if encoding == "closed_form":
        pytest.skip("any map has probabilities that sum to one")
    name = {"window": "bin_prob", "dense": "bin_dense"}[encoding]

    def empty_pixel(stored):
        stored[1, 2, 3] = 0

    faults = faults_of(rewritten(cache, tmp_path, name, empty_pixel))
    assert len(faults) == FRAMES
    assert "frame d/0: probabilities of right sum to one only within 1.0e+00" in faults[0]


def test_a_window_beyond_the_last_bin_is_found(cache, tmp_path):
    if CacheReader(cache).identity.encoding != "window":
        pytest.skip("only windows point to a bin")

    def point_beyond(first):
        first[0, 1, 1] = 58  # 58 + 7 > 64

    faults = faults_of(rewritten(cache, tmp_path, "bin_first", point_beyond))
    assert len(faults) == FRAMES
    assert "frame d/0: bin_first points beyond the last of 64 bins" in faults[0]


def test_a_view_that_says_the_same_everywhere_is_found_unless_it_was_noted(cache, tmp_path):
    kind = ENCODINGS[CacheReader(cache).identity.encoding]
    for field in dataclasses.fields(kind):

        def flatten(stored):
            stored[2] = stored[2, :1, :1]

        cache = rewritten(cache, tmp_path / field.name, field.name, flatten)
    assert "probabilities of left are the same everywhere" in faults_of(cache)[0]
    assert faults_of(cache, "no LiDAR sweep, left looks constant to the teacher") == []


def test_the_bins_of_a_cache_are_read_from_its_identity(cache):
    spec = stored_spec(CacheReader(cache).identity)
    assert (spec.count, spec.prob_stride, spec.encoding) == (64, 4, CacheReader(cache).identity.encoding)


def test_the_teacher_asked_again_says_the_same(cache, teacher_folder):
    reader = CacheReader(cache)
    frames = list(recompute(reader, FakeSource(FRAMES), tiny_teacher(teacher_folder), AffineBinning(), 2, seed=5))
    assert len({frame.frame_id for frame in frames}) == 2
    for frame in frames:
        assert frame.prob_max < 0.02
        assert frame.top_bin_changed < 0.01
        assert frame.inputs_equal


def test_another_answer_of_the_teacher_is_measured(cache, teacher_folder, monkeypatch):
    """Half of the pixels of every view move by four bins; the other half stays."""
    honest = verify.look

    def moved(*arguments):
        seen = honest(*arguments)
        for view in seen:
            view.u[:, ::2] = (view.u[:, ::2] + 4 / 64) % 1
        return seen

    monkeypatch.setattr(verify, "look", moved)
    other = FakeSource(FRAMES, no_lidar=("d/1",))
    frames = list(recompute(CacheReader(cache), other, tiny_teacher(teacher_folder), AffineBinning(), 10, seed=0))
    assert sorted(frame.frame_id for frame in frames) == ["d/0", "d/1", "d/2"]
    for frame in frames:
        assert frame.top_bin_changed == pytest.approx(0.5, abs=0.01)
        assert frame.prob_mean == pytest.approx(0.5 * 2 / 64, rel=0.2)
        assert frame.inputs_equal == (frame.frame_id != "d/1")


def test_a_quarantined_frame_is_not_asked_about(tmp_path, teacher_folder):
    run(tmp_path, FakeSource(FRAMES, broken={"d/1": "x"}), teacher_folder)
    assert cache_status(tmp_path).quarantined == {"d/1": "x"}
    asked = recompute(
        CacheReader(tmp_path), FakeSource(FRAMES), tiny_teacher(teacher_folder), AffineBinning(), 9, seed=0
    )
    assert sorted(frame.frame_id for frame in asked) == ["d/0", "d/2"]
