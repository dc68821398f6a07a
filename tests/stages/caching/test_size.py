import dataclasses

import pytest
from support.fakes import STUDENT_SIZE, FakeSource, tiny_teacher
from support.teacher_caches import BINS, open_writer
from support.teacher_caches import write_teacher_cache as run

from data_cache.shards.encodings import ENCODINGS
from data_cache.shards.reader import cache_status
from stages.caching.size import predict_size, sample_frames
from stages.targets.binning import AffineBinning


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_the_prediction_from_a_few_frames_is_within_a_tenth_of_the_cache(tmp_path, teacher_folder, encoding):
    source, spec = FakeSource(12), dataclasses.replace(BINS, encoding=encoding)
    identity = open_writer(tmp_path / "plan", source, teacher_folder, spec)[0].identity
    samples = sample_frames(
        source, tiny_teacher(teacher_folder), AffineBinning(), ["d/2", "d/9"], STUDENT_SIZE, identity.prob_size
    )
    predicted = predict_size(samples, identity, spec)
    run(tmp_path / "cache", source, teacher_folder, spec)
    assert predicted.total_bytes == pytest.approx(cache_status(tmp_path / "cache").bytes, rel=0.1)
    assert predicted.total_bytes == pytest.approx(12 * predicted.frame_bytes)
    assert 0 < predicted.bins_bytes < predicted.frame_bytes
    files = [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert predicted.file_count == len(files)


def test_encodings_are_compared_on_the_same_look(tmp_path, teacher_folder):
    source = FakeSource(2)
    sizes = {}
    for encoding in ENCODINGS:
        spec = dataclasses.replace(BINS, encoding=encoding)
        identity = open_writer(tmp_path / encoding, source, teacher_folder, spec)[0].identity
        samples = sample_frames(
            source, tiny_teacher(teacher_folder), AffineBinning(), ["d/0"], STUDENT_SIZE, identity.prob_size
        )
        sizes[encoding] = predict_size(samples, identity, spec).bins_bytes
    assert sizes["closed_form"] < sizes["window"] < sizes["dense"]
