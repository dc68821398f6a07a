"""Read the chunks of single frames from shard files, in the layout of zarr's sharding codec (FORMAT.md).

zarr itself reads the same bytes but takes two to three times as long, most of it a fixed cost per array and call;
`make bench ARGS="-k bench_training_loader"` prints both. On object storage zarr makes two round trips per array; here
all arrays of a frame share two.
"""

import struct
from collections.abc import Mapping

import google_crc32c
import numcodecs.blosc
import numpy as np

from data_cache.shards.schema import ArraySpec, shard_name
from data_cache.storage.store import CacheStore, Range

_CRC = struct.Struct("<I")
_ENTRY = struct.Struct("<QQ")
_MISSING = 2**64 - 1

# Decode on the calling thread: there are many workers, and blosc's own threads do not survive a fork.
numcodecs.blosc.use_threads = False


class ChunkError(ValueError):
    """The stored bytes of one array are missing or damaged."""

    def __init__(self, array: str, what: str):
        super().__init__(what)
        self.array = array


def read_chunks(
    store: CacheStore, specs: Mapping[str, ArraySpec], shard: int, position: int, shard_frames: int
) -> dict[str, np.ndarray]:
    """Read one frame of some arrays.

    Args:
        specs: the arrays, by name.
        shard, position: number of the shard, and place of the frame among the frames of that shard.
        shard_frames: frames in a full shard.

    Raises:
        ChunkError: if the stored bytes are missing, truncated, or do not match their checksum.
        StoreError: if the store does not answer.
    """
    files = {name: shard_name(name, spec, shard) for name, spec in specs.items()}
    index_bytes = _ENTRY.size * shard_frames + _CRC.size
    places = {}
    for name, index in _read(store, {name: Range(file, None, index_bytes) for name, file in files.items()}).items():
        start, length = _ENTRY.unpack_from(index, _ENTRY.size * position)
        if start == _MISSING:
            raise ChunkError(name, "the frame was never written")
        places[name] = Range(files[name], start, length)
    values = {}
    for name, chunk in _read(store, places).items():
        values[name] = np.empty(specs[name].shape, specs[name].dtype)
        try:
            numcodecs.blosc.decompress(chunk, values[name])
        except (ValueError, RuntimeError) as error:
            raise ChunkError(name, str(error)) from error
    return values


def _read(store: CacheStore, ranges: Mapping[str, Range]) -> dict[str, bytes]:
    """The bytes of each range, checked against the crc32c at their end and without it."""
    found = {}
    for (name, asked), data in zip(ranges.items(), store.read_ranges(tuple(ranges.values())), strict=True):
        if data is None:
            raise ChunkError(name, "missing")
        if len(data) != asked.length:
            raise ChunkError(name, f"cut off: expected {asked.length} bytes, found {len(data)}")
        found[name] = data[: -_CRC.size]
        if data[-_CRC.size :] != _CRC.pack(google_crc32c.value(found[name])):
            raise ChunkError(name, "content differs from its checksum")
    return found
