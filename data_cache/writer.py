"""Writing a cache: whole shards, each followed by its receipt."""

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import zarr
from zarr.codecs import BloscCodec, Crc32cCodec

from data_cache.files import file_sha256, fsync, write_atomically, write_error
from data_cache.schema import (
    ArraySpec,
    CacheError,
    CacheIdentity,
    DamagedCacheError,
    FrameRecord,
    Layout,
    Receipt,
    Resolved,
    SplitFrames,
    StaleCacheError,
    StoredFile,
    array_table,
    load_description,
    record_arrays,
)


class CacheWriter:
    """Owns one cache folder while it is being filled.

    The unit of work is the Zarr shard: frames [i * shard_frames, (i + 1) * shard_frames). Two writers never share a
    shard, so nothing is locked. A shard's receipt is written last and moved into place in one step: kill the process
    anywhere and the next run redoes at most the shards that were open.
    """

    def __init__(self, root: Path, identity: CacheIdentity, resolved: Resolved, frames: SplitFrames):
        """Create the cache at `root`, or take up the one that is there.

        Raises:
            StaleCacheError: if the cache there has another identity or precision.
            WriteError, CacheError: if it cannot be created.
        """
        self.layout = Layout(root)
        self.identity = identity
        self.frames = frames
        self.frame_ids = frames.ordered
        self._table = array_table(identity)
        if self.layout.description.exists():
            found, begun_with = load_description(root)
            differences = found.differences(asdict(identity))
            if begun_with.precision != resolved.precision:
                differences["teacher_precision"] = (begun_with.precision, resolved.precision)
            if differences:
                raise StaleCacheError(root, differences)
        try:
            self._write_metadata(resolved)
        except OSError as error:
            raise write_error(error, root) from error

    def _write_metadata(self, resolved: Resolved) -> None:
        """Write all metadata that is not there as it should be, `cache.json` last.

        Of two processes that start together both end with the same files.
        """
        layout = self.layout
        ours = layout.description.exists()
        with tempfile.TemporaryDirectory() as folder:
            metadata = self._array_metadata(Path(folder) / "arrays.zarr")
        if not ours and layout.arrays.exists() and not _metadata(layout.arrays).items() <= metadata.items():
            raise CacheError(f"{layout.arrays} is there but is not this recipe's; move it away or choose another --run")
        layout.receipt(0).parent.mkdir(parents=True, exist_ok=True)
        for name, text in metadata.items():
            _write_if_different(layout.arrays / name, text)
        _write_if_different(layout.frame_list, json.dumps(asdict(self.frames), indent=0) + "\n")
        if not ours:
            description = {"identity": asdict(self.identity), "resolved": asdict(resolved)}
            write_atomically(layout.description, json.dumps(description, indent=1, sort_keys=True) + "\n")

    def _array_metadata(self, scratch: Path) -> dict[str, str]:
        """What zarr writes for a group of our arrays, by path inside the group."""
        group = zarr.create_group(scratch)
        for name, spec in self._table.items():
            group.create_array(
                name,
                shape=(self.identity.frame_count, *spec.shape),
                dtype=spec.dtype,
                chunks=(1, *spec.shape),
                shards=(self.identity.shard_frames, *spec.shape),
                compressors=[_compressor(spec), Crc32cCodec()],
                fill_value=0,
                config={"write_empty_chunks": True},
            )
        return _metadata(scratch)

    def frame_range(self, shard: int) -> range:
        """Frame numbers of one shard."""
        return self.identity.shard_range(shard)

    def pending(self, *, part: tuple[int, int] = (1, 1), retry_quarantined: bool = False) -> list[int]:
        """Shards still to be written, in order.

        Args:
            part: (I, N) takes every N-th shard, I in 1..N; parts are disjoint and cover everything.
            retry_quarantined: count finished shards that hold quarantined frames as pending.

        Raises:
            CacheError: if there are fewer shards than parts.
        """
        index, count = part
        if not 1 <= index <= count:
            raise CacheError(f"--part {index}/{count}: expected I/N with 1 <= I <= N")
        if count > self.identity.shard_count:
            raise CacheError(
                f"--part {index}/{count}: the cache has only {self.identity.shard_count} shards of"
                f" {self.identity.shard_frames} frames; use at most that many parts"
            )
        return [
            shard
            for shard in range(index - 1, self.identity.shard_count, count)
            if not self._done(shard, retry_quarantined)
        ]

    def _done(self, shard: int, retry_quarantined: bool) -> bool:
        """A shard is done when its receipt is readable, is ours, and its files have the sizes it says."""
        path = self.layout.receipt(shard)
        try:
            receipt = Receipt.from_json(path.read_bytes(), path)
        except (FileNotFoundError, DamagedCacheError):
            return False
        if receipt.identity_sha256 != self.identity.sha256() or (retry_quarantined and receipt.quarantined):
            return False
        return not wrong_sizes(self.layout.root, receipt)

    def commit(
        self,
        shard: int,
        records: Sequence[FrameRecord | None],
        quarantined: Mapping[str, str],
        notes: Mapping[str, str],
    ) -> Receipt:
        """Store every array of one shard, then its receipt.

        Args:
            shard: number of the shard.
            records: one per frame of the shard, None where the frame is quarantined.
            quarantined, notes: texts by frame id, kept in the receipt.

        Raises:
            WriteError: if the system refuses (DiskFullError: the disk is full); the shard stays pending.
        """
        frames = self.frame_range(shard)
        if len(records) != len(frames):
            raise ValueError(f"shard {shard} takes {len(frames)} records, got {len(records)}")
        try:
            self.layout.receipt(shard).unlink(missing_ok=True)
            files = {}
            group = zarr.open_group(self.layout.arrays, mode="r+")
            for name, spec in self._table.items():
                path = self.layout.shard_file(name, spec, shard)
                _remove_leftovers(path)
                array = group[name]
                assert isinstance(array, zarr.Array)
                array = array.with_config({"write_empty_chunks": True})
                array[frames.start : frames.stop] = _stack(name, spec, records)
                files[str(path.relative_to(self.layout.root))] = _settle(path)
            receipt = Receipt(shard, self.identity.sha256(), files, dict(quarantined), dict(notes))
            write_atomically(self.layout.receipt(shard), receipt.to_json())
        except OSError as error:
            raise write_error(error, self.layout.root) from error
        return receipt


def wrong_sizes(root: Path, receipt: Receipt) -> dict[str, str]:
    """Files of a receipt that are missing or of another size, with what was found."""
    wrong = {}
    for name, stored in receipt.files.items():
        try:
            found = (root / name).stat().st_size
        except FileNotFoundError:
            wrong[name] = "missing"
            continue
        if found != stored.bytes:
            wrong[name] = f"{found} bytes, receipt says {stored.bytes}"
    return wrong


def _compressor(spec: ArraySpec) -> BloscCodec:
    return BloscCodec(cname="zstd", clevel=spec.level, shuffle=spec.shuffle, typesize=np.dtype(spec.dtype).itemsize)


def _stack(name: str, spec: ArraySpec, records: Sequence[FrameRecord | None]) -> np.ndarray:
    stacked = np.zeros((len(records), *spec.shape), dtype=spec.dtype)
    for row, record in zip(stacked, records, strict=True):
        if record is not None:
            value = record_arrays(record)[name]
            if value.shape != spec.shape or value.dtype != spec.dtype:
                raise ValueError(f"{name}: expected {spec.dtype} {spec.shape}, got {value.dtype} {value.shape}")
            row[...] = value
    return stacked


def _settle(path: Path) -> StoredFile:
    """Flush a shard file to disk and describe it."""
    fsync(path)
    fsync(path.parent)
    return StoredFile(path.stat().st_size, file_sha256(path))


def _remove_leftovers(path: Path) -> None:
    """Partial files that a killed writer left where this shard goes; nobody else writes there."""
    for partial in path.parent.glob("*.partial") if path.parent.is_dir() else ():
        partial.unlink(missing_ok=True)


def _metadata(group: Path) -> dict[str, str]:
    return {
        str(path.relative_to(group)): path.read_text(encoding="utf-8", errors="replace")
        for path in sorted((*group.glob("zarr.json"), *group.glob("*/zarr.json")))
    }


def _write_if_different(path: Path, text: str) -> None:
    if not path.exists() or path.read_bytes() != text.encode():
        write_atomically(path, text)
