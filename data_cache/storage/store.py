"""What a store is: files by name, each there as a whole or not at all."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from data_cache.errors import SurroundError


class StoreError(SurroundError):
    """A file or object cannot be asked for: no permission, no credentials, no network, or a folder in its place."""


@dataclass(frozen=True)
class Range:
    """A part of a file: `length` bytes from `start` on, or the last ones where `start` is None."""

    name: str
    start: int | None
    length: int


@runtime_checkable
class CacheStore(Protocol):
    """Files by name, relative and with slashes. Reading what is not there raises FileNotFoundError."""

    @property
    def location(self) -> str:
        """Path or URL, as a user would write it."""
        ...

    def read(self, name: str) -> bytes:
        """A whole file."""
        ...

    def read_many(self, names: Sequence[str]) -> Mapping[str, bytes]:
        """Those of these files that are there, by name."""
        ...

    def read_ranges(self, ranges: Sequence[Range]) -> list[bytes | None]:
        """These parts of files, in their order, shorter where a file ends before; None where a file is missing."""
        ...

    def write(self, name: str, data: bytes) -> None:
        """Replace a file in one step, durable when this returns; raises OSError or WriteError."""
        ...

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""
        ...

    def size(self, name: str) -> int | None:
        """Bytes of one file, None if it is not there."""
        ...

    def sizes(self, folder: str) -> Mapping[str, int]:
        """Bytes of every file below a folder, by name; empty if there is no such folder."""
        ...

    def take(self, shard: int) -> bool:
        """Claim a shard for this process; False if another one is writing it. Object storage cannot tell: True."""
        ...

    def release(self, shard: int) -> None:
        """Give a claim back."""
        ...

    def taken_elsewhere(self, shard_count: int) -> list[int]:
        """Shards that other processes are writing at this moment."""
        ...

    def creating(self) -> AbstractContextManager[None]:
        """Alone while the metadata is created or mended."""
        ...

    def clear_partials(self, names: Mapping[str, int]) -> None:
        """Remove these partial files, which killed writers left, unless their shard is being written right now."""
        ...

    def clear_metadata_partials(self) -> None:
        """Remove partial files of the metadata; only inside `creating`."""
        ...

    def free_bytes(self) -> int | None:
        """Room that is left, None where there is no telling."""
        ...
