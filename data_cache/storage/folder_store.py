"""A cache in a folder."""

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from data_cache.files import PARTIAL, fsync, replace_atomically
from data_cache.storage.claims import Claims
from data_cache.storage.store import Range, StoreError

CLAIMS = "claims.lock"


@dataclass(frozen=True)
class FolderStore:
    """A cache in a folder of a POSIX file system."""

    root: Path

    @property
    def location(self) -> str:
        """The folder."""
        return str(self.root)

    def read(self, name: str) -> bytes:
        """Read a whole file."""
        with _reading_file(self.root / name):
            return (self.root / name).read_bytes()

    def read_many(self, names: Sequence[str]) -> Mapping[str, bytes]:
        """Read those of the named files that exist, by name."""
        found = {}
        for name in names:
            with suppress(FileNotFoundError):
                found[name] = self.read(name)
        return found

    def read_ranges(self, ranges: Sequence[Range]) -> list[bytes | None]:
        """Read parts of files, in order; None where a file is missing."""
        return [self._read_range(asked) for asked in ranges]

    def _read_range(self, asked: Range) -> bytes | None:
        with _reading_file(self.root / asked.name):
            try:
                with (self.root / asked.name).open("rb", buffering=0) as file:
                    size = os.fstat(file.fileno()).st_size
                    start = max(0, size - asked.length) if asked.start is None else asked.start
                    return os.pread(file.fileno(), max(0, min(asked.length, size - start)), start)
            except FileNotFoundError:
                return None

    def write(self, name: str, data: bytes) -> None:
        """Replace a file in one step, flushed to disk."""
        replace_atomically(self.root / name, lambda partial: partial.write_bytes(data))

    def remove(self, name: str) -> None:
        """Remove a file if it exists, durably: it does not come back after a crash."""
        path = self.root / name
        if path.exists():
            path.unlink()
            fsync(path.parent)

    def size(self, name: str) -> int | None:
        """Size of a file in bytes; None if it does not exist."""
        try:
            return (self.root / name).stat().st_size
        except FileNotFoundError:
            return None

    def sizes(self, folder: str) -> Mapping[str, int]:
        """Size in bytes of every file below a folder, by name."""
        return dict(_walk(self.root / folder, folder))

    def take(self, shard: int) -> bool:
        """Claim a shard for this process; False if another process is writing it."""
        return self._claims.take(shard)

    def release(self, shard: int) -> None:
        """Release a claim."""
        self._claims.release(shard)

    def taken_elsewhere(self, shard_count: int) -> list[int]:
        """Shards that other processes are writing at this moment; a folder without a lock file has none."""
        if not (self.root / CLAIMS).exists():
            return []
        try:
            return self._claims.taken_elsewhere(shard_count)
        except OSError:  # a cache of another user, which is read-only here
            return []

    def creating(self) -> AbstractContextManager[None]:
        """Lock out other processes while the metadata is created or repaired."""
        self.root.mkdir(parents=True, exist_ok=True)
        return self._claims.creating()

    def clear_partials(self, names: Mapping[str, int]) -> None:
        """Remove these partial files, given as shard by name, unless their shard is being written right now."""
        for name, shard in names.items():
            # Without locks a killed writer's file looks like a live one's: leaving it is the smaller harm.
            if self._claims.take(shard) and self._claims.supported:
                (self.root / name).unlink(missing_ok=True)
                self._claims.release(shard)

    def clear_metadata_partials(self) -> None:
        """Remove partial files of the metadata; only inside `creating`, where all of them are written."""
        if self._claims.supported:
            for pattern in (f"*{PARTIAL}", f"*/zarr.json*{PARTIAL}", f"*/*/zarr.json*{PARTIAL}"):
                for path in self.root.glob(pattern):
                    path.unlink(missing_ok=True)

    def free_bytes(self) -> int:
        """Free bytes on the file system that holds the folder."""
        existing = next(folder for folder in (self.root, *self.root.absolute().parents) if folder.exists())
        return shutil.disk_usage(existing).free

    @cached_property
    def _claims(self) -> Claims:
        return Claims(self.root / CLAIMS)

    def __getstate__(self) -> dict[str, Any]:
        return {"root": self.root}  # locks do not travel to another process


@contextmanager
def _reading_file(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        raise StoreError(
            f"cannot read {path}: {error.strerror or error}; check that it is a file and that you may read it"
        ) from error


def _walk(folder: Path, name: str) -> Iterator[tuple[str, int]]:
    try:
        entries = os.scandir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return
    with entries:
        for entry in entries:
            path = f"{name}/{entry.name}"
            if entry.is_dir(follow_symlinks=False):
                yield from _walk(folder / entry.name, path)
            else:
                try:
                    yield path, entry.stat().st_size
                except FileNotFoundError:  # moved into place or removed since it was listed
                    continue
