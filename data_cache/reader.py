"""Reading a cache: refuses what is incomplete, stale or damaged."""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from data_cache.files import PARTIAL
from data_cache.schema import (
    ARRAYS,
    FRAME_LIST,
    RECEIPTS,
    CacheIdentity,
    DamagedCacheError,
    FrameRecord,
    IncompleteCacheError,
    Receipt,
    Resolved,
    SplitFrames,
    StaleCacheError,
    array_table,
    load_description,
    receipt_name,
    record_from_arrays,
)
from data_cache.store import CacheStore, StoreError, open_store
from data_cache.writer import wrong_sizes

_REWRITE = "run teacher-cache again: it writes it anew"


@dataclass(frozen=True)
class CacheStatus:
    """How far a cache is.

    Attributes:
        shards_done: shards whose receipt is readable and whose files have the sizes it says.
        shards_open: shards that some process is writing at this moment, as far as the file system can tell.
        damages: what is wrong with the others that have a receipt, one line each; teacher-cache redoes them.
        quarantined, notes: text by frame id.
        bytes: of all shards that are done.
        partial_count: files left by killed writers; the next run clears them away.
    """

    identity: CacheIdentity
    resolved: Resolved
    shards_done: int
    shards_open: int
    damages: tuple[str, ...]
    quarantined: dict[str, str]
    notes: dict[str, str]
    bytes: int
    partial_count: int

    @property
    def complete(self) -> bool:
        """Whether every shard is done."""
        return self.shards_done == self.identity.shard_count


def cache_status(location: Path | str) -> CacheStatus:
    """Progress of a cache, at any moment of its life; only receipts and listings are read.

    Raises:
        IncompleteCacheError: if there is no cache.
        DamagedCacheError: if its description cannot be read.
    """
    store = open_store(location)
    identity, resolved = load_description(store)
    sizes = store.sizes(ARRAYS)
    done, damages = [], []
    for shard, found in _receipts(store, identity):
        if isinstance(found, DamagedCacheError):
            damages.append(str(found))
        elif wrong := wrong_sizes(sizes, found):
            damages += [_damage(store, shard, name, what) for name, what in wrong.items()]
        else:
            done.append(found)
    return CacheStatus(
        identity,
        resolved,
        len(done),
        len(store.taken_elsewhere(identity.shard_count)),
        tuple(damages),
        {frame_id: reason for receipt in done for frame_id, reason in receipt.quarantined.items()},
        {frame_id: note for receipt in done for frame_id, note in receipt.notes.items()},
        sum(stored.bytes for receipt in done for stored in receipt.files.values()),
        sum(name.endswith(PARTIAL) for name in (*sizes, *store.sizes(RECEIPTS))),
    )


def verify_files(location: Path | str) -> Iterator[tuple[int, list[str]]]:
    """Check all metadata and hash every file of every receipt.

    Yields:
        The number of the shard (-1 for the metadata, which comes first) and a line per damage found.
    """
    store = open_store(location)
    identity, _ = load_description(store)
    damages = []
    for look in (read_split_frames, _open_arrays):
        try:
            look(store, identity)
        except DamagedCacheError as error:
            damages.append(str(error))
    yield -1, damages
    for shard, found in _receipts(store, identity):
        if isinstance(found, DamagedCacheError):
            yield shard, [str(found)]
            continue
        wrong = {}
        for name, stored in found.files.items():
            try:
                data = store.read(name)
            except FileNotFoundError:
                wrong[name] = "missing"
                continue
            except StoreError as error:
                wrong[name] = str(error)
                continue
            if len(data) != stored.bytes:
                wrong[name] = f"{len(data)} bytes, receipt says {stored.bytes}"
            elif hashlib.sha256(data).hexdigest() != stored.sha256:
                wrong[name] = "content differs from its receipt"
        yield shard, [_damage(store, shard, name, what) for name, what in wrong.items()]


class CacheReader:
    """A cache, frame by frame. Safe to send to another process: stores open there, on first use."""

    def __init__(self, location: Path | str, expected: Mapping[str, object] | None = None, *, complete: bool = True):
        """Open the cache at a path or URL.

        Args:
            location: cache folder, or s3://bucket/prefix, gs://bucket/prefix.
            expected: fields of the identity that the recipe decides; None to take what is there.
            complete: refuse a cache of which something is missing or damaged; otherwise that is met when it is read.

        Raises:
            StaleCacheError: if the identity differs, naming each difference.
            IncompleteCacheError: if there is no cache or shards are missing.
            DamagedCacheError: if files are missing, cut off or not what their receipts say.
        """
        self.store = open_store(location)
        self.identity, self.resolved = load_description(self.store)
        if expected is not None and (differences := self.identity.differences(expected)):
            raise StaleCacheError(self.store.location, differences)
        sizes = self.store.sizes(ARRAYS)
        self.quarantined: dict[str, str] = {}
        missing = self.identity.shard_count
        damages = []
        for shard, found in _receipts(self.store, self.identity):
            missing -= 1
            if isinstance(found, DamagedCacheError):
                damages.append(str(found))
                continue
            damages += [_damage(self.store, shard, name, what) for name, what in wrong_sizes(sizes, found).items()]
            self.quarantined |= found.quarantined
        if complete and missing:
            raise IncompleteCacheError(
                f"{self.store.location}: {missing} of {self.identity.shard_count} shards are not written yet;"
                " run teacher-cache again, it continues where it stopped"
            )
        if complete and damages:
            raise DamagedCacheError(damages[0])
        self.frames = read_split_frames(self.store, self.identity)
        self._index = {frame_id: index for index, frame_id in enumerate(self.frames.ordered)}
        self._arrays: dict[str, zarr.Array[Any]] = {}
        self._opened_by = -1

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_arrays": {}, "_opened_by": -1}

    def usable(self, frame_ids: tuple[str, ...]) -> tuple[str, ...]:
        """Those of `frame_ids` that are not quarantined."""
        return tuple(frame_id for frame_id in frame_ids if frame_id not in self.quarantined)

    def read(self, frame_id: str) -> FrameRecord:
        """All arrays of one frame.

        Raises:
            DamagedCacheError: if a stored checksum does not match.
            KeyError: if the frame is not in the cache.
        """
        if self._opened_by != os.getpid():
            # A store opened before a fork must not be used after it: some codecs deadlock.
            self._arrays = _open_arrays(self.store, self.identity)
            self._opened_by = os.getpid()
        index = self._index[frame_id]
        values: dict[str, np.ndarray] = {}
        for name, array in self._arrays.items():
            try:
                values[name] = np.asarray(array[index])
            except (ValueError, RuntimeError, OSError) as error:
                shard = index // self.identity.shard_frames
                raise DamagedCacheError(_damage(self.store, shard, name, f"frame {frame_id}: {error}")) from error
        return record_from_arrays(self.identity.encoding, values)


def _receipts(store: CacheStore, identity: CacheIdentity) -> Iterator[tuple[int, Receipt | DamagedCacheError]]:
    """Every receipt that is there, in order of shards, or what is wrong with it."""
    there = store.sizes(RECEIPTS)
    texts = store.read_many([name for shard in range(identity.shard_count) if (name := receipt_name(shard)) in there])
    for shard in range(identity.shard_count):
        name = receipt_name(shard)
        if name not in texts:
            continue
        where = f"{store.location}/{name}"
        try:
            receipt = Receipt.from_json(texts[name], where)
        except DamagedCacheError as error:
            yield shard, error
            continue
        if receipt.proves(shard, identity):
            yield shard, receipt
        else:
            yield (
                shard,
                DamagedCacheError(f"{where} belongs to another cache or shard; delete it and run teacher-cache again"),
            )


def read_split_frames(store: CacheStore, identity: CacheIdentity) -> SplitFrames:
    """Frame ids of a cache, by split; raises DamagedCacheError."""
    where = f"{store.location}/{FRAME_LIST}"
    try:
        table = json.loads(store.read(FRAME_LIST))
        frames = SplitFrames(tuple(table["train"]), tuple(table["selection"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DamagedCacheError(
            f"{where} cannot be read ({error}); run teacher-cache again: it writes it anew"
        ) from error
    if frames.sha256() != identity.frames_sha256:
        raise DamagedCacheError(
            f"{where} is not the frame list of this cache; run teacher-cache again: it writes it anew"
        )
    return frames


def _open_arrays(store: CacheStore, identity: CacheIdentity) -> dict[str, zarr.Array[Any]]:
    try:
        group = zarr.open_group(store.zarr_store(ARRAYS), mode="r")
        arrays = {name: group[name] for name in array_table(identity)}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DamagedCacheError(
            f"{store.location}/{ARRAYS}: metadata cannot be read ({error!r}); {_REWRITE}"
        ) from error
    return {name: array for name, array in arrays.items() if isinstance(array, zarr.Array)}


def _damage(store: CacheStore, shard: int, name: str, what: str) -> str:
    return (
        f"{store.location}: {name}: damaged ({what}); delete {store.location}/{receipt_name(shard)} and run"
        " teacher-cache again: that shard is redone"
    )
