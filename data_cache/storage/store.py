"""The interface of a store: files by name, each there as a whole or not at all."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from data_cache.errors import SurroundError


class StoreError(SurroundError):
    """The store does not answer: no permission, no credentials, no network, or a folder in place of a file."""


@dataclass(frozen=True)
class Range:
    """A part of a file: `length` bytes from `start`, or the last `length` bytes if `start` is None."""

    name: str
    start: int | None
    length: int


@runtime_checkable
class CacheStore(Protocol):
    """Files by name; names are relative, with slashes. Reading a missing file raises FileNotFoundError."""

    @property
    def location(self) -> str:
        """Path or URL, as a user would write it."""
        ...

    def read(self, name: str) -> bytes:
        """Read a whole file."""
        ...

    def read_many(self, names: Sequence[str]) -> Mapping[str, bytes]:
        """Read those of the named files that exist, by name."""
        ...

    def read_ranges(self, ranges: Sequence[Range]) -> list[bytes | None]:
        """Read parts of files, in order; shorter where a file ends early, None where a file is missing."""
        ...

    def write(self, name: str, data: bytes) -> None:
        """Replace a file in one step, durable when this returns; raises OSError or WriteError."""
        ...

    def remove(self, name: str) -> None:
        """Remove a file if it exists."""
        ...

    def size(self, name: str) -> int | None:
        """Size of a file in bytes; None if it does not exist."""
        ...

    def sizes(self, folder: str) -> Mapping[str, int]:
        """Size in bytes of every file below a folder, by name; empty if there is no such folder."""
        ...

    def take(self, shard: int) -> bool:
        """Claim a shard for this process; False if another process is writing it. Always True without locks."""
        ...

    def release(self, shard: int) -> None:
        """Release a claim."""
        ...

    def taken_elsewhere(self, shard_count: int) -> list[int]:
        """Shards that other processes are writing at this moment."""
        ...

    def creating(self) -> AbstractContextManager[None]:
        """Lock out other processes while the metadata is created or repaired, if the store has locks."""
        ...

    def clear_partials(self, names: Mapping[str, int]) -> None:
        """Remove partial files of killed writers, given as shard by name, unless their shard is being written."""
        ...

    def clear_metadata_partials(self) -> None:
        """Remove partial files of the metadata; only inside `creating`."""
        ...

    def free_bytes(self) -> int | None:
        """Free bytes; None if unknown."""
        ...
