"""The array table of a cache: which arrays it holds, their types, shapes and compression. See FORMAT.md."""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from data_cache.shards.identity import CacheIdentity


@dataclass(frozen=True)
class ArraySpec:
    """One stored array: type, shape per frame, and how its chunks are compressed (blosc zstd)."""

    dtype: str
    shape: tuple[int, ...]
    shuffle: Literal["noshuffle", "shuffle", "bitshuffle"] = "noshuffle"
    level: int = 2


def array_table(identity: CacheIdentity) -> dict[str, ArraySpec]:
    """The arrays of a cache: one entry per array of a FrameRecord, under the same name.

    Shuffle and level were measured on real frames. A level must save 2 % of a frame per 20 ms, because compression
    takes time from the teacher. Level 2 does; level 3 does only for the bins.
    """
    V, (H, W) = identity.view_count, identity.image_size
    P = identity.relation_grid[0] * identity.relation_grid[1]
    tokens = {"tokens": ArraySpec("float16", (V, P, identity.token_channels), "shuffle")}
    return {
        # Photographs repeat few bytes, but their high bits are smooth: 2 % smaller and a quarter faster than bytes.
        "image": ArraySpec("uint8", (V, H, W, 3), "bitshuffle"),
        # Mostly zeros between points: bytes keep them in runs, bit planes break the runs (a quarter larger).
        "lidar_depth": ArraySpec("uint16", (V, H, W), "shuffle"),
        **bin_table(identity),
        "relation": ArraySpec("float16", (V, P, P), "shuffle"),
        "view_valid": ArraySpec("bool", (V,)),
        "intrinsics": ArraySpec("float32", (V, 3, 3)),
        "world_from_cam": ArraySpec("float64", (V, 4, 4)),
        **(tokens if identity.token_channels else {}),
    }


def bin_table(identity: CacheIdentity) -> dict[str, ArraySpec]:
    """The arrays that hold a cache's bins: the fields of its encoding's class in ENCODINGS."""
    shape = (identity.view_count, *identity.prob_size)
    if identity.encoding == "closed_form":
        return {"bin_map": ArraySpec("uint16", shape, "shuffle", 3)}
    if identity.encoding == "dense":
        assert identity.bin_count is not None
        return {"bin_dense": ArraySpec("float16", (*shape, identity.bin_count), "shuffle")}
    assert identity.window_width is not None
    # No shuffle: the weights of neighbouring pixels repeat byte for byte, and bit planes hide that (twice the size).
    return {
        "bin_first": ArraySpec("uint8", shape, level=3),
        "bin_prob": ArraySpec("uint8", (*shape, identity.window_width), level=3),
    }


def frame_bytes(identity: CacheIdentity) -> int:
    """Bytes of one frame before compression."""
    return sum(math.prod(spec.shape) * np.dtype(spec.dtype).itemsize for spec in array_table(identity).values())


ARRAYS = "arrays.zarr"
CHUNK_KEY_SEPARATOR = "."
"""With "." there is one folder per array and one file per shard; with "/" zarr nests up to four folders per file."""


def shard_name(array: str, spec: ArraySpec, shard: int) -> str:
    """The file that holds one shard of one array (Zarr v3 default chunk keys)."""
    return f"{ARRAYS}/{array}/" + CHUNK_KEY_SEPARATOR.join(["c", str(shard), *("0" for _ in spec.shape)])
