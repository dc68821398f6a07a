"""Copying the shards that a job needs to a local disk."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from data_cache.files import PARTIAL, DiskFullError, size_text, write_error
from data_cache.shards.errors import DamagedCacheError, IncompleteCacheError
from data_cache.shards.identity import DESCRIPTION, FRAME_LIST
from data_cache.shards.reader import CacheReader, check_metadata, read_checked, read_receipts
from data_cache.shards.receipts import RECEIPTS, Receipt, receipt_name, shard_of
from data_cache.shards.schema import ARRAYS, array_table
from data_cache.storage.folder_store import FolderStore
from data_cache.storage.store import CacheStore

_WAIT_S = 0.1


def stage_cache(
    reader: CacheReader,
    frame_ids: Sequence[str],
    folder: Path,
    *,
    on_bytes: Callable[[int, int], None] = lambda done, total: None,
) -> CacheReader:
    """Copy the shards that hold `frame_ids` to a folder below `folder`, named after the cache's identity.

    Shards that the copy already holds are not copied again: a killed staging continues, and a finished one only reads
    receipts. Any number of processes may stage into one folder: each shard is copied by one of them, and all return
    once every shard is there.

    Args:
        reader: the cache, in a folder or on object storage.
        frame_ids: frames that will be read; nothing is copied for quarantined ones.
        folder: a folder on the disk that is to hold the copy.
        on_bytes: called with the bytes copied so far and in total, at the start and after each file. If it raises, the
            staging ends; finished shards stay.

    Returns:
        A reader of the copy, which gives the same values for `frame_ids` and has the same frames in quarantine.

    Raises:
        KeyError: if a frame is not in the cache.
        IncompleteCacheError: if a needed shard has no receipt.
        DamagedCacheError: if a file of the cache does not match its receipt, or its metadata cannot be read.
        StoreError: if the store of the cache does not answer.
        DiskFullError: if the copy does not fit, usually before anything is copied; finished shards stay.
        WriteError: if the system refuses to write the copy.
    """
    receipts = _needed_receipts(reader, reader.usable(tuple(frame_ids)))
    metadata = _read_metadata(reader)
    target = FolderStore(folder / reader.identity.sha256[:16])
    try:
        with target.creating():
            target.clear_metadata_partials()
            for name, data in metadata.items():
                if target.size(name) is None or target.read(name) != data:
                    target.write(name, data)
        _copy_shards(reader.store, target, receipts, on_bytes)
    except OSError as error:
        raise write_error(error, target.root) from error
    staged = CacheReader(target.root, expected=asdict(reader.identity), complete=False)
    staged.quarantined = dict(reader.quarantined)
    return staged


def _needed_receipts(reader: CacheReader, frame_ids: Iterable[str]) -> list[Receipt]:
    shards = reader.shards(frame_ids)
    receipts = []
    for _, found in read_receipts(reader.store, reader.identity, shards):
        if isinstance(found, DamagedCacheError):
            raise found
        receipts.append(found)
    if len(receipts) < len(shards):
        raise IncompleteCacheError(
            f"{reader.store.location}: {len(shards) - len(receipts)} of the {len(shards)} shards that are needed are"
            " not written yet; run teacher-cache again: it continues where it stopped"
        )
    return receipts


def _read_metadata(reader: CacheReader) -> dict[str, bytes]:
    """Every file of a cache that belongs to no shard, the description last, in the writer's order."""
    check_metadata(reader.store, reader.identity)  # so that an error names the cache, not its copy
    arrays = [f"{ARRAYS}/{name}/zarr.json" for name in array_table(reader.identity)]
    return {name: reader.store.read(name) for name in (FRAME_LIST, f"{ARRAYS}/zarr.json", *arrays, DESCRIPTION)}


def _copy_shards(
    source: CacheStore, target: FolderStore, receipts: Sequence[Receipt], on_bytes: Callable[[int, int], None]
) -> None:
    """Copy the missing shards of these receipts, or wait for the processes that are copying them."""
    partials = {
        name: shard_of(name) for name in (*target.sizes(ARRAYS), *target.sizes(RECEIPTS)) if name.endswith(PARTIAL)
    }
    target.clear_partials({name: shard for name, shard in partials.items() if shard is not None})
    free = target.free_bytes()  # before counting what is missing: other processes may be writing some of it
    if _lacking_bytes(target, receipts) > free:
        raise _too_small(target, receipts)
    pending = [receipt for receipt in receipts if not _is_there(target, receipt)]
    total = _bytes(receipts)
    done = total - _bytes(pending)
    on_bytes(done, total)
    while pending:
        elsewhere = []
        for receipt in pending:
            if not target.take(receipt.shard):
                elsewhere.append(receipt)
                continue
            try:
                for count in _obtain_shard(source, target, receipt):
                    done += count
                    on_bytes(done, total)
            except DiskFullError as error:
                for name in receipt.files:  # makes room for others; useless without the rest of the shard
                    target.remove(name)
                raise _too_small(target, receipts) from error
            finally:
                target.release(receipt.shard)
        pending = elsewhere
        if pending:
            time.sleep(_WAIT_S)


def _obtain_shard(source: CacheStore, target: FolderStore, receipt: Receipt) -> Iterator[int]:
    """Copy one shard, its receipt last, unless another process did; yields the bytes added, file by file."""
    if _is_there(target, receipt):
        yield _bytes([receipt])
        return
    target.remove(receipt_name(receipt.shard))
    for name, stored in receipt.files.items():
        target.write(name, read_checked(source, receipt.shard, name, stored))
        yield stored.bytes
    target.write(receipt_name(receipt.shard), receipt.to_json().encode())


def _is_there(target: FolderStore, receipt: Receipt) -> bool:
    """Whether the copy has this very receipt, and files of the sizes that it states."""
    try:
        ours = target.read(receipt_name(receipt.shard)) == receipt.to_json().encode()
    except FileNotFoundError:
        return False
    return ours and all(target.size(name) == stored.bytes for name, stored in receipt.files.items())


def _bytes(receipts: Sequence[Receipt]) -> int:
    return sum(stored.bytes for receipt in receipts for stored in receipt.files.values())


def _lacking_bytes(target: FolderStore, receipts: Sequence[Receipt]) -> int:
    """Bytes still to be written: missing shards, less those of their files that are there already."""
    there = target.sizes(ARRAYS)
    return sum(
        stored.bytes - there.get(name, 0)
        for receipt in receipts
        if not _is_there(target, receipt)
        for name, stored in receipt.files.items()
    )


def _too_small(target: FolderStore, receipts: Sequence[Receipt]) -> DiskFullError:
    return DiskFullError(
        f"disk too small for a copy of the cache in {target.root}: {size_text(_lacking_bytes(target, receipts))} are"
        f" still to be copied, {size_text(target.free_bytes())} are free. Finished shards are kept: free some space, or"
        " stage to a larger disk, and run the same command again"
    )
