"""A cache of five frames of noise, and ways to look at its files."""

from pathlib import Path

from data_cache.shards.identity import Resolved, SplitFrames
from data_cache.shards.reader import verify_files
from data_cache.shards.writer import CacheWriter
from support.fakes import random_record, tiny_identity


def damages_of(root):
    return [line for _, lines in verify_files(root) for line in lines]


def shard_files(root):
    return sorted(p for p in (root / "arrays.zarr").rglob("*") if p.is_file() and p.name != "zarr.json")


FRAMES = SplitFrames(tuple(f"d/{i}" for i in range(5)), ())
RESOLVED = Resolved("fp32", 6, 2)
IDENTITY = tiny_identity(FRAMES)


def writer(root: Path) -> CacheWriter:
    return CacheWriter(root, IDENTITY, RESOLVED, FRAMES)


def fill(root: Path, shards: tuple[int, ...] = (0, 1, 2)) -> None:
    w = writer(root)
    for shard in shards:
        w.commit(shard, [random_record(IDENTITY, i) for i in w.frame_range(shard)], {}, {})


def contents(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}
