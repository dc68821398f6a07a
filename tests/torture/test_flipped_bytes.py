import random

import numpy as np
import pytest
from support.caches import damages_of, shard_files
from support.fakes import random_record, tiny_identity

from data_cache.shards.errors import DamagedCacheError
from data_cache.shards.identity import Resolved, SplitFrames
from data_cache.shards.reader import CacheReader
from data_cache.shards.writer import CacheWriter

FLIPS = 200


@pytest.mark.torture
def test_every_flipped_byte_of_a_cache_of_real_size_is_found_by_verify_and_by_reading(tmp_path):
    frames = SplitFrames(tuple(f"d/{i}" for i in range(3)), ())
    views = tuple(f"view-{i}" for i in range(6))
    identity = tiny_identity(
        frames, camera_names=views, image_size=(352, 640), prob_size=(88, 160), relation_grid=(6, 10), bin_count=64
    )
    writer = CacheWriter(tmp_path, identity, Resolved("fp32", 2, 1), frames)
    for shard in writer.pending():
        writer.commit(shard, [random_record(identity, i) for i in writer.frame_range(shard)], {}, {})
    assert damages_of(tmp_path) == []
    files = shard_files(tmp_path)
    sizes = np.array([path.stat().st_size for path in files])
    rng = random.Random(5)
    # Half of the places anywhere in the data, most of which is images; half of them in any file.
    chosen = rng.choices(files, sizes.tolist(), k=FLIPS // 2) + rng.choices(files, k=FLIPS // 2)
    for path in chosen:
        data = path.read_bytes()
        flipped = bytearray(data)
        flipped[rng.randrange(len(data))] ^= rng.randrange(1, 256)
        path.write_bytes(flipped)
        assert len(damages_of(tmp_path)) == 1
        shard = int(path.name.split(".")[1])
        reader = CacheReader(tmp_path)
        with pytest.raises(DamagedCacheError, match=path.parent.name):
            for index in identity.shard_range(shard):
                reader.read(frames.train[index])
        path.write_bytes(data)
    assert damages_of(tmp_path) == []
    print(f"\n{FLIPS} flips in {sizes.sum() / 1e6:.0f} MB: all found by verify and by reading")
