import struct

import google_crc32c
import numcodecs
import numpy as np
import pytest
import zarr
from support.caches import FRAMES, IDENTITY, fill

from data_cache.shards.chunks import ChunkError, read_chunks
from data_cache.shards.schema import ArraySpec, array_table, shard_name
from data_cache.storage.folder_store import FolderStore

SPECS = array_table(IDENTITY)
PAIR = {"pair": ArraySpec("uint16", (2,))}


def with_crc(data: bytes) -> bytes:
    return data + google_crc32c.value(data).to_bytes(4, "little")


def shard_by_hand(*values: tuple[int, int] | None) -> bytes:
    """Chunks one after the other, then where each begins and how long it is, 2^64 - 1 twice for one that is not."""
    chunks, index = b"", b""
    for value in values:
        entry = (2**64 - 1,) * 2
        if value is not None:
            chunk = with_crc(numcodecs.Blosc("zstd").encode(np.array(value, "<u2")))
            entry = (len(chunks), len(chunk))
            chunks += chunk
        index += struct.pack("<QQ", *entry)
    return chunks + with_crc(index)


def pair(root, position: int) -> list[int]:
    return read_chunks(FolderStore(root), PAIR, 4, position, 3)["pair"].tolist()


def test_a_shard_laid_out_by_hand(tmp_path):
    path = tmp_path / shard_name("pair", PAIR["pair"], 4)
    path.parent.mkdir(parents=True)
    path.write_bytes(shard_by_hand((7, 300), None, (65535, 1)))
    assert (pair(tmp_path, 0), pair(tmp_path, 2)) == ([7, 300], [65535, 1])
    with pytest.raises(ChunkError, match="never written") as caught:
        pair(tmp_path, 1)
    assert caught.value.array == "pair"
    for kept, message in ((-1, "differs from its checksum"), (51, "cut off: expected 52 bytes, found 51"), (0, "cut")):
        path.write_bytes(shard_by_hand((7, 300), None, (65535, 1))[:kept])
        with pytest.raises(ChunkError, match=message):
            pair(tmp_path, 0)
    path.unlink()
    with pytest.raises(ChunkError, match="missing"):
        pair(tmp_path, 0)


def test_every_frame_is_what_zarr_reads(tmp_path):
    """The last of the shards is not full."""
    fill(tmp_path)
    arrays = zarr.open_group(tmp_path / "arrays.zarr", mode="r")
    for i in range(len(FRAMES.train)):
        shard, position = divmod(i, IDENTITY.shard_frames)
        found = read_chunks(FolderStore(tmp_path), SPECS, shard, position, IDENTITY.shard_frames)
        assert found.keys() == SPECS.keys()
        for name, value in found.items():
            assert value.dtype == arrays[name].dtype
            np.testing.assert_array_equal(value, arrays[name][i])
