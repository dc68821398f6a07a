"""Reading a cache: refuses what is incomplete, stale or damaged."""

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from data_cache.files import file_sha256
from data_cache.schema import (
    CacheIdentity,
    DamagedCacheError,
    FrameRecord,
    IncompleteCacheError,
    Layout,
    Receipt,
    Resolved,
    SplitFrames,
    StaleCacheError,
    array_table,
    load_description,
    record_from_arrays,
)
from data_cache.writer import wrong_sizes

_REWRITE = "run teacher-cache again: it writes it anew"


@dataclass(frozen=True)
class CacheStatus:
    """How far a cache is."""

    identity: CacheIdentity
    resolved: Resolved
    shards_done: int
    quarantined: dict[str, str]
    notes: dict[str, str]
    bytes: int

    @property
    def complete(self) -> bool:
        """Whether every shard has its receipt."""
        return self.shards_done == self.identity.shard_count


def cache_status(root: Path) -> CacheStatus:
    """Progress of the cache at `root`, at any moment of its life; only receipts and file sizes are read."""
    identity, resolved = load_description(root)
    receipts = [receipt for receipt in _receipts(root, identity) if not wrong_sizes(root, receipt)]
    return CacheStatus(
        identity,
        resolved,
        len(receipts),
        {frame_id: reason for receipt in receipts for frame_id, reason in receipt.quarantined.items()},
        {frame_id: note for receipt in receipts for frame_id, note in receipt.notes.items()},
        sum(stored.bytes for receipt in receipts for stored in receipt.files.values()),
    )


def verify_cache(root: Path) -> list[str]:
    """Check all metadata and hash every file of every receipt; one line per damage found, empty when all is well."""
    identity, _ = load_description(root)
    damages = []
    for look in (read_split_frames, _open_arrays):
        try:
            look(root, identity)
        except DamagedCacheError as error:
            damages.append(str(error))
    for receipt in _receipts(root, identity):
        wrong = wrong_sizes(root, receipt)
        for name, stored in receipt.files.items():
            if name not in wrong and file_sha256(root / name) != stored.sha256:
                wrong[name] = "content differs from its receipt"
        damages += [_damage(root, receipt.shard, name, what) for name, what in wrong.items()]
    return damages


class CacheReader:
    """A complete cache, frame by frame. Safe to send to another process: stores open there, on first use."""

    def __init__(self, root: Path, expected: Mapping[str, object] | None = None):
        """Open the cache at `root`.

        Args:
            root: cache folder.
            expected: fields of the identity that the recipe decides; None to take what is there.

        Raises:
            StaleCacheError: if the identity differs, naming each difference.
            IncompleteCacheError: if there is no cache or shards are missing.
            DamagedCacheError: if files are missing, cut off or not what their receipts say.
        """
        self.root = root
        self.identity, self.resolved = load_description(root)
        if expected is not None and (differences := self.identity.differences(expected)):
            raise StaleCacheError(root, differences)
        receipts = list(_receipts(root, self.identity))
        missing = self.identity.shard_count - len(receipts)
        if missing:
            raise IncompleteCacheError(
                f"{root}: {missing} of {self.identity.shard_count} shards are not written yet;"
                " run teacher-cache again, it continues where it stopped"
            )
        for receipt in receipts:
            for name, what in wrong_sizes(root, receipt).items():
                raise DamagedCacheError(_damage(root, receipt.shard, name, what))
        self.frames = read_split_frames(root, self.identity)
        self.quarantined = {k: v for receipt in receipts for k, v in receipt.quarantined.items()}
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
            self._arrays = _open_arrays(self.root, self.identity)
            self._opened_by = os.getpid()
        index = self._index[frame_id]
        values: dict[str, np.ndarray] = {}
        for name, array in self._arrays.items():
            try:
                values[name] = np.asarray(array[index])
            except (ValueError, RuntimeError, OSError, FileNotFoundError) as error:
                shard = index // self.identity.shard_frames
                raise DamagedCacheError(_damage(self.root, shard, name, f"frame {frame_id}: {error}")) from error
        return record_from_arrays(self.identity.encoding, values)


def _receipts(root: Path, identity: CacheIdentity) -> Iterator[Receipt]:
    layout = Layout(root)
    for shard in range(identity.shard_count):
        path = layout.receipt(shard)
        if path.exists():
            receipt = Receipt.from_json(path.read_bytes(), path)
            if receipt.identity_sha256 != identity.sha256():
                raise DamagedCacheError(f"{path} belongs to another cache; delete it and run teacher-cache again")
            yield receipt


def read_split_frames(root: Path, identity: CacheIdentity) -> SplitFrames:
    """Frame ids of the cache at `root`, by split; raises DamagedCacheError."""
    path = Layout(root).frame_list
    try:
        table = json.loads(path.read_text())
        frames = SplitFrames(tuple(table["train"]), tuple(table["selection"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DamagedCacheError(
            f"{path} cannot be read ({error}); run teacher-cache again: it writes it anew"
        ) from error
    if frames.sha256() != identity.frames_sha256:
        raise DamagedCacheError(
            f"{path} is not the frame list of this cache; run teacher-cache again: it writes it anew"
        )
    return frames


def _open_arrays(root: Path, identity: CacheIdentity) -> dict[str, zarr.Array[Any]]:
    path = Layout(root).arrays
    try:
        group = zarr.open_group(path, mode="r")
        arrays = {name: group[name] for name in array_table(identity)}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DamagedCacheError(f"{path}: metadata cannot be read ({error!r}); {_REWRITE}") from error
    return {name: array for name, array in arrays.items() if isinstance(array, zarr.Array)}


def _damage(root: Path, shard: int, name: str, what: str) -> str:
    receipt = Layout(root).receipt(shard)
    return f"{root}: {name}: damaged ({what}); delete {receipt} and run teacher-cache again: that shard is redone"
