"""Reading a cache; an incomplete, stale or damaged one is refused."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from data_cache.files import PARTIAL
from data_cache.shards.chunks import ChunkError, read_chunks
from data_cache.shards.errors import DamagedCacheError, IncompleteCacheError, StaleCacheError
from data_cache.shards.identity import FRAME_LIST, CacheIdentity, Resolved, SplitFrames, load_description
from data_cache.shards.receipts import RECEIPTS, Receipt, StoredFile, receipt_name
from data_cache.shards.records import FrameCameras, FrameRecord, record_from_arrays
from data_cache.shards.schema import ARRAYS, array_table
from data_cache.shards.writer import array_metadata, wrong_sizes
from data_cache.storage.locations import open_store
from data_cache.storage.store import CacheStore, StoreError

LAYOUT = ("zarr_format", "node_type", "shape", "data_type", "chunk_grid")
"""The array metadata that decides where a chunk lies and how large it is."""
_REWRITE = "run teacher-cache again: it writes the file anew"


@dataclass(frozen=True)
class CacheStatus:
    """The progress of a cache.

    Attributes:
        shards_done: shards whose receipt is readable and whose files have the sizes that it states.
        shards_open: shards that some process is writing at this moment, as far as the file system can tell.
        damages: one line for each damage of the other shards that have a receipt; teacher-cache redoes them.
        quarantined, notes: text by frame id.
        bytes: size of all shards that are done.
        partial_count: files left by killed writers; the next run removes them.
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
    """The progress of a cache, also while it is being written; only receipts and listings are read.

    Raises:
        IncompleteCacheError: if there is no cache.
        DamagedCacheError: if its description cannot be read.
    """
    store = open_store(location)
    identity, resolved = load_description(store)
    sizes = store.sizes(ARRAYS)
    done, damages = [], []
    for shard, found in read_receipts(store, identity, range(identity.shard_count)):
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
        The number of the shard (-1 for the metadata, which comes first) and one line for each damage.
    """
    store = open_store(location)
    identity, _ = load_description(store)
    damages = []
    for look in (read_split_frames, check_metadata):
        try:
            look(store, identity)
        except DamagedCacheError as error:
            damages.append(str(error))
    yield -1, damages
    for shard, found in read_receipts(store, identity, range(identity.shard_count)):
        if isinstance(found, DamagedCacheError):
            yield shard, [str(found)]
            continue
        lines = []
        for name, stored in found.files.items():
            try:
                read_checked(store, shard, name, stored)
            except DamagedCacheError as error:
                lines.append(str(error))
            except StoreError as error:
                lines.append(_damage(store, shard, name, str(error)))
        yield shard, lines


def read_checked(store: CacheStore, shard: int, name: str, stored: StoredFile) -> bytes:
    """Read a file of a shard and check it against its receipt.

    Raises:
        DamagedCacheError: if it is missing or differs in size or content.
        StoreError: if the store does not answer.
    """
    try:
        data = store.read(name)
    except FileNotFoundError as error:
        raise DamagedCacheError(_damage(store, shard, name, "missing")) from error
    if len(data) != stored.bytes:
        raise DamagedCacheError(_damage(store, shard, name, f"{len(data)} bytes, receipt says {stored.bytes}"))
    if hashlib.sha256(data).hexdigest() != stored.sha256:
        raise DamagedCacheError(_damage(store, shard, name, "content differs from its receipt"))
    return data


class CacheReader:
    """Reads a cache frame by frame. Can be sent to another process."""

    def __init__(self, location: Path | str, expected: Mapping[str, object] | None = None, *, complete: bool = True):
        """Open the cache at a path or URL.

        Args:
            location: cache folder, or s3://bucket/prefix, gs://bucket/prefix.
            expected: fields of the identity that the recipe decides; None to accept any cache.
            complete: refuse a cache with missing or damaged shards now, not when one of them is read.

        Raises:
            StaleCacheError: if the identity differs, naming each difference.
            IncompleteCacheError: if there is no cache or shards are missing.
            DamagedCacheError: if files are missing or do not match their receipts.
        """
        self.store = open_store(location)
        self.identity, self.resolved = load_description(self.store)
        if expected is not None and (differences := self.identity.differences(expected)):
            raise StaleCacheError(self.store.location, differences)
        sizes = self.store.sizes(ARRAYS)
        self.quarantined: dict[str, str] = {}
        self._written: set[int] = set()
        damages = []
        for shard, found in read_receipts(self.store, self.identity, range(self.identity.shard_count)):
            self._written.add(shard)
            if isinstance(found, DamagedCacheError):
                damages.append(str(found))
                continue
            damages += [_damage(self.store, shard, name, what) for name, what in wrong_sizes(sizes, found).items()]
            self.quarantined |= found.quarantined
        missing = self.identity.shard_count - len(self._written)
        if complete and missing:
            raise IncompleteCacheError(
                f"{self.store.location}: {missing} of {self.identity.shard_count} shards are not written yet;"
                " run teacher-cache again: it continues where it stopped"
            )
        if complete and damages:
            raise DamagedCacheError(damages[0])
        self.frames = read_split_frames(self.store, self.identity)
        self._index = {frame_id: index for index, frame_id in enumerate(self.frames.ordered)}
        self._metadata_read = False

    def usable(self, frame_ids: tuple[str, ...]) -> tuple[str, ...]:
        """The `frame_ids` without those in quarantine."""
        return tuple(frame_id for frame_id in frame_ids if frame_id not in self.quarantined)

    def shards(self, frame_ids: Iterable[str]) -> tuple[int, ...]:
        """Numbers of the shards that hold these frames, in order; raises KeyError if a frame is not in the cache."""
        return tuple(sorted({self._index[frame_id] // self.identity.shard_frames for frame_id in frame_ids}))

    def read(self, frame_id: str) -> FrameRecord:
        """All arrays of one frame.

        Raises:
            DamagedCacheError: if a stored checksum does not match.
            IncompleteCacheError: if its shard is not written yet.
            KeyError: if the frame is not in the cache.
        """
        return record_from_arrays(self.identity.encoding, self._read(frame_id))

    def read_cameras(self, frame_id: str) -> FrameCameras:
        """Only the calibration and poses of one frame, a few hundred bytes; raises what `read` raises."""
        return FrameCameras(**self._read(frame_id, *(f.name for f in fields(FrameCameras))))

    def read_image(self, frame_id: str) -> UInt8[np.ndarray, "V H W 3"]:
        """Only the images of one frame, RGB; raises what `read` raises."""
        return self._read(frame_id, "image")["image"]

    def _read(self, frame_id: str, *names: str) -> dict[str, np.ndarray]:
        """The named arrays of a frame; all of them if none is named."""
        if not self._metadata_read:
            check_metadata(self.store, self.identity)
            self._metadata_read = True
        shard_frames = self.identity.shard_frames
        shard, position = divmod(self._index[frame_id], shard_frames)
        if shard not in self._written and self.store.size(receipt_name(shard)) is None:
            # Files without a receipt, left by a killed writer, do not count.
            raise IncompleteCacheError(
                f"{self.store.location}: frame {frame_id}: shard {shard} is not written yet; run teacher-cache"
            )
        specs = {name: spec for name, spec in array_table(self.identity).items() if not names or name in names}
        try:
            return read_chunks(self.store, specs, shard, position, shard_frames)
        except ChunkError as error:
            raise DamagedCacheError(_damage(self.store, shard, error.array, f"frame {frame_id}: {error}")) from error


def read_receipts(
    store: CacheStore, identity: CacheIdentity, shards: Sequence[int]
) -> Iterator[tuple[int, Receipt | DamagedCacheError]]:
    """For each of these shards that has a receipt, in order: the receipt, or the error that says what is wrong."""
    there = store.sizes(RECEIPTS)
    texts = store.read_many([name for shard in shards if (name := receipt_name(shard)) in there])
    for shard in shards:
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
            f"{where} cannot be read ({error}); run teacher-cache again: it writes the file anew"
        ) from error
    if frames.sha256() != identity.frames_sha256:
        raise DamagedCacheError(
            f"{where} is not the frame list of this cache; run teacher-cache again: it writes the file anew"
        )
    return frames


def check_metadata(store: CacheStore, identity: CacheIdentity) -> None:
    """Check that the zarr metadata of the arrays has the layout that `read_chunks` assumes.

    Raises:
        DamagedCacheError: if it is missing, cannot be read, or states another shape, type or shard size.
    """
    for name, written in array_metadata(identity).items():
        where, expected = f"{store.location}/{name}", json.loads(written)
        try:
            found = json.loads(store.read(name))
            differing = [key for key in LAYOUT if found.get(key) != expected.get(key)]
        except (OSError, ValueError, AttributeError) as error:
            raise DamagedCacheError(f"{where}: metadata cannot be read ({error!r}); {_REWRITE}") from error
        if differing:
            key = differing[0]
            raise DamagedCacheError(f"{where}: expected {key} {expected.get(key)}, found {found.get(key)}; {_REWRITE}")


def _damage(store: CacheStore, shard: int, name: str, what: str) -> str:
    return (
        f"{store.location}: {name}: damaged ({what}); delete {store.location}/{receipt_name(shard)} and run"
        " teacher-cache again: that shard is redone"
    )
