"""Writing a cache: whole shards, each followed by its receipt."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.codecs import BloscCodec, Crc32cCodec
from zarr.core.buffer import Buffer
from zarr.storage import MemoryStore

from data_cache.files import PARTIAL, DiskFullError, size_text, write_error
from data_cache.shards.errors import CacheError, DamagedCacheError, StaleCacheError
from data_cache.shards.identity import DESCRIPTION, FRAME_LIST, CacheIdentity, Resolved, SplitFrames, load_description
from data_cache.shards.receipts import RECEIPTS, Receipt, StoredFile, receipt_name, shard_of
from data_cache.shards.records import FrameRecord, record_arrays
from data_cache.shards.schema import ARRAYS, CHUNK_KEY_SEPARATOR, ArraySpec, array_table, frame_bytes, shard_name
from data_cache.storage.locations import open_store


@dataclass(frozen=True)
class CachePlan:
    """What remains to be written in one part of a cache.

    Attributes:
        pending: shards that are not done, in order.
        in_part: number of shards in the part, done or not.
        needed_bytes: estimate for the pending shards from those that are done; an upper bound if none is.
        exact: whether any shard is done, so that `needed_bytes` is an estimate and not a bound.
    """

    pending: tuple[int, ...]
    in_part: int
    needed_bytes: int
    exact: bool


class CacheWriter:
    """Writes one cache, shard by shard.

    The unit of work is the Zarr shard: frames [i * shard_frames, (i + 1) * shard_frames). `claim` keeps two processes
    from writing one shard. A shard's receipt is written last and moved into place in one step: wherever the process is
    killed, the next run redoes at most the shards that were open.
    """

    def __init__(self, location: Path | str, identity: CacheIdentity, resolved: Resolved, frames: SplitFrames):
        """Create the cache at a path or URL, or continue the one that is there.

        Raises:
            StaleCacheError: if the cache there has another identity, or the teacher another precision or runtime.
            WriteError, CacheError: if it cannot be created.
        """
        self.store = open_store(location)
        self.identity = identity
        self.frames = frames
        self.frame_ids = frames.ordered
        self._table = array_table(identity)
        try:
            with self.store.creating():
                self._create(resolved)
        except OSError as error:
            raise write_error(error, Path(self.store.location)) from error

    def _create(self, resolved: Resolved) -> None:
        """Write all metadata that is missing or differs, the description last."""
        there = self._check_description(resolved)
        self.store.clear_metadata_partials()
        metadata = array_metadata(self.identity)
        if not there and any(
            name.endswith("zarr.json") and self.store.read(name) != metadata.get(name)
            for name in self.store.sizes(ARRAYS)
        ):
            raise CacheError(
                f"{self.store.location}/{ARRAYS} exists but belongs to another recipe;"
                " move it away or choose another --run"
            )
        frame_list = (json.dumps(asdict(self.frames), indent=0) + "\n").encode()
        for name, data in (metadata | {FRAME_LIST: frame_list}).items():
            self._write_if_different(name, data)
        if not there:
            description = {"identity": self.identity.stored(), "resolved": asdict(resolved)}
            self.store.write(DESCRIPTION, (json.dumps(description, indent=1, sort_keys=True) + "\n").encode())

    def _check_description(self, resolved: Resolved) -> bool:
        """Whether a description exists; raises StaleCacheError if it is not of this identity and precision."""
        try:
            self.store.read(DESCRIPTION)
        except FileNotFoundError:
            return False
        found, begun_with = load_description(self.store)
        differences = found.differences(asdict(self.identity))
        for name in ("precision", "runtime"):
            begun, now = getattr(begun_with, name), getattr(resolved, name)
            if begun != now:
                differences[f"teacher_{name}"] = (begun, now)
        if differences:
            raise StaleCacheError(self.store.location, differences)
        return True

    def _write_if_different(self, name: str, data: bytes) -> None:
        try:
            if self.store.read(name) == data:
                return
        except FileNotFoundError:
            pass
        self.store.write(name, data)

    def frame_range(self, shard: int) -> range:
        """Frame numbers of one shard."""
        return self.identity.shard_range(shard)

    def plan(self, *, part: tuple[int, int] = (1, 1), retry_quarantined: bool = False) -> CachePlan:
        """What remains to be written. Removes the partial files of killed writers.

        A shard is done when its receipt is readable and of this cache, and its files have the sizes that it states.

        Args:
            part: (I, N) with I in 1..N takes every N-th shard, beginning at the I-th. Parts are disjoint and cover all
                shards; with I beyond the number of shards, a part is empty.
            retry_quarantined: count finished shards that hold quarantined frames as pending.

        Raises:
            CacheError: if there is no such part.
        """
        index, count = part
        if not 1 <= index <= count:
            raise CacheError(f"--part {index}/{count}: expected I/N with 1 <= I <= N")
        sizes = self.store.sizes(ARRAYS)
        receipts = self.store.sizes(RECEIPTS)
        shards = range(index - 1, self.identity.shard_count, count)
        partials = {name: shard_of(name) for name in (*sizes, *receipts) if name.endswith(PARTIAL)}
        # Only in this part: removing them briefly takes the shard's lock, which its own part may need.
        self.store.clear_partials(
            {name: shard for name, shard in partials.items() if shard is not None and shard in shards}
        )
        texts = self.store.read_many([name for shard in shards if (name := receipt_name(shard)) in receipts])
        done = {
            name: receipt
            for name, text in texts.items()
            if (receipt := self._done_receipt(name, text, sizes, retry_quarantined)) is not None
        }
        pending = tuple(shard for shard in shards if receipt_name(shard) not in done)
        written = sum(stored.bytes for receipt in done.values() for stored in receipt.files.values())
        if done:
            needed = written * len(pending) // len(done)
        else:
            needed = frame_bytes(self.identity) * sum(len(self.frame_range(shard)) for shard in pending)
        return CachePlan(pending, len(shards), needed, bool(done))

    def pending(self, *, part: tuple[int, int] = (1, 1), retry_quarantined: bool = False) -> tuple[int, ...]:
        """Shards still to be written, in order; see `plan`."""
        return self.plan(part=part, retry_quarantined=retry_quarantined).pending

    def claim(self, shard: int) -> bool:
        """Keep other processes from writing a shard until `release`; False if another process is writing it now."""
        return self.store.take(shard)

    def release(self, shard: int) -> None:
        """Let other processes write the shard."""
        self.store.release(shard)

    def is_done(self, shard: int, *, retry_quarantined: bool = False) -> bool:
        """Whether a shard is done by now: another process may have finished it since `pending`."""
        try:
            text = self.store.read(receipt_name(shard))
        except FileNotFoundError:  # the usual case, at one request: on object storage each one costs
            return False
        sizes = {
            name: size
            for name in (shard_name(array, spec, shard) for array, spec in self._table.items())
            if (size := self.store.size(name)) is not None
        }
        return self._done_receipt(receipt_name(shard), text, sizes, retry_quarantined) is not None

    def _done_receipt(
        self, name: str, text: bytes, sizes: Mapping[str, int], retry_quarantined: bool
    ) -> Receipt | None:
        """The receipt, if it proves that its shard is done."""
        try:
            receipt = Receipt.from_json(text, name)
        except DamagedCacheError:
            return None
        ours = name == receipt_name(receipt.shard) and receipt.proves(receipt.shard, self.identity)
        if not ours or (retry_quarantined and receipt.quarantined):
            return None
        return None if wrong_sizes(sizes, receipt) else receipt

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
        # Encoded before anything is written: the hash is of the bytes written, and the size is known if the disk fills.
        encoded = {
            shard_name(name, spec, shard): encode_shard(spec, _stack(name, spec, records), self.identity.shard_frames)
            for name, spec in self._table.items()
        }
        files = {name: StoredFile(len(data), hashlib.sha256(data).hexdigest()) for name, data in encoded.items()}
        receipt = Receipt(shard, self.identity.sha256, files, dict(quarantined), dict(notes))
        try:
            self.store.remove(receipt_name(shard))
            for name, data in encoded.items():
                self.store.write(name, data)
            self.store.write(receipt_name(shard), receipt.to_json().encode())
        except DiskFullError as error:
            raise self._disk_full(error, shard, files) from error
        except OSError as error:
            raise write_error(error, Path(self.store.location)) from error
        return receipt

    def _disk_full(self, error: DiskFullError, shard: int, files: Mapping[str, StoredFile]) -> DiskFullError:
        """Remove the shard's files; returns the error, with the estimated needs of the remaining shards."""
        for name in files:
            self.store.remove(name)
        written = self.store.sizes(RECEIPTS)
        open_count = sum(receipt_name(i) not in written for i in range(self.identity.shard_count))
        needed = open_count * sum(file.bytes for file in files.values())
        free = self.store.free_bytes() or 0
        lacking = f"{size_text(needed - free)} are lacking." if needed > free else "is there a quota?"
        return DiskFullError(
            f"disk full while writing shard {shard} to {self.store.location}: the {open_count} missing shards"
            f" need about {size_text(needed)}, {size_text(free)} are free now: {lacking} Finished shards are kept: free"
            " some space, or move the run folder to a larger disk, and run the same command again"
        )


def array_metadata(identity: CacheIdentity) -> dict[str, bytes]:
    """The metadata files that zarr writes for the arrays of a cache, by name in the cache."""
    files: dict[str, Buffer] = {}
    group = zarr.create_group(MemoryStore(store_dict=files))
    for name, spec in array_table(identity).items():
        group.create_array(name, **_array_settings(spec, identity.frame_count, identity.shard_frames))
    return {f"{ARRAYS}/{name}": buffer.to_bytes() for name, buffer in files.items()}


def wrong_sizes(sizes: Mapping[str, int], receipt: Receipt) -> dict[str, str]:
    """Files of a receipt that `sizes` lacks or lists with another size, each with a text of what was found."""
    return {
        name: "missing" if name not in sizes else f"{sizes[name]} bytes, receipt says {stored.bytes}"
        for name, stored in receipt.files.items()
        if sizes.get(name) != stored.bytes
    }


def encode_shard(spec: ArraySpec, values: np.ndarray, shard_frames: int) -> bytes:
    """The bytes of one shard file, as zarr writes it.

    Args:
        spec: the array.
        values: (n, *spec.shape) frames, n <= shard_frames.
        shard_frames: frames in a full shard.
    """
    files: dict[str, Buffer] = {}
    store = MemoryStore(store_dict=files)
    array = zarr.create_array(store, **_array_settings(spec, len(values), shard_frames))
    array[...] = values
    key = CHUNK_KEY_SEPARATOR.join(["c", *("0" for _ in values.shape)])
    return files[key].to_bytes()


def _array_settings(spec: ArraySpec, frame_count: int, shard_frames: int) -> dict[str, Any]:
    return {
        "shape": (frame_count, *spec.shape),
        "dtype": spec.dtype,
        "chunks": (1, *spec.shape),
        "shards": (shard_frames, *spec.shape),
        "compressors": [_compressor(spec), Crc32cCodec()],
        "fill_value": 0,
        "config": {"write_empty_chunks": True},
        "chunk_key_encoding": {"name": "default", "separator": CHUNK_KEY_SEPARATOR},
    }


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
