"""Chunks of single frames out of shard files, laid out as zarr's sharding codec lays them out (FORMAT.md).

zarr reads the same and takes two to three times as long, most of it for each array and call whatever its size;
`make bench ARGS="-k bench_training_loader"` prints both. On object storage it makes two round trips for each array, all
arrays of a frame take two here.
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

# Decoding stays on its thread: workers are many, and blosc's own threads do not survive a fork.
numcodecs.blosc.use_threads = False


class ChunkError(ValueError):
    """What is wrong with the stored bytes of one array."""

    def __init__(self, array: str, what: str):
        super().__init__(what)
        self.array = array


def read_chunks(
    store: CacheStore, specs: Mapping[str, ArraySpec], shard: int, position: int, shard_frames: int
) -> dict[str, np.ndarray]:
    """One frame of some arrays.

    Args:
        specs: the arrays, by name.
        shard, position: of the frame; its place among the frames of the shard.
        shard_frames: frames of a full shard.

    Raises:
        ChunkError: if what is stored is missing, cut off or not what its checksum says.
        StoreError: if it cannot be asked for.
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
    """What lies there, each without the crc32c in which it ends."""
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
