import pytest
import torch
from fakes import random_record, tiny_identity

from data_cache.dataset import CachedFrames, collate
from data_cache.reader import CacheReader
from data_cache.schema import ENCODINGS, Resolved, SplitFrames
from data_cache.writer import CacheWriter

FRAMES = SplitFrames(("d/0", "d/1"), ())
TYPES = {
    "bin_first": torch.uint8,
    "bin_prob": torch.uint8,
    "bin_map": torch.int32,
    "bin_dense": torch.float16,
}


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_stored_bins_are_served_as_tensors_and_stacked_into_batches(tmp_path, encoding):
    identity = tiny_identity(FRAMES, encoding=encoding)
    records = [random_record(identity, seed) for seed in (0, 1)]
    if encoding == "closed_form":
        records[1].bins.bin_map[2, 1, 0] = 65535
    CacheWriter(tmp_path, identity, Resolved("fp32", 6, 1), FRAMES).commit(0, records, {}, {})
    frames = CachedFrames(CacheReader(tmp_path), FRAMES.train)
    batch = collate([frames[0], frames[1]])
    assert batch.frame_ids == FRAMES.train
    assert type(batch.bins) is ENCODINGS[encoding]
    for name, tensor in vars(batch.bins).items():
        assert tensor.dtype == TYPES[name]
        for i, record in enumerate(records):
            assert tensor[i].tolist() == getattr(record.bins, name).tolist()
    if encoding == "closed_form":
        assert batch.bins.bin_map[1, 2, 1, 0] == 65535
