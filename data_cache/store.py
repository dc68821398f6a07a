"""Where a cache lies: a folder, or a prefix on object storage. Whatever is written is there whole or not at all."""

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import fsspec

from data_cache.claims import Claims
from data_cache.errors import SettingError, SurroundError
from data_cache.files import PARTIAL, WriteError, fsync, replace_atomically

CLAIMS = "claims.lock"
_REMOTE: Mapping[str, Any] = {"use_listings_cache": False}  # other machines write as well: nothing is remembered
_S3: Mapping[str, Any] = {
    "max_concurrency": 1,  # more would ask for the size of every object before it is read: twice the requests
    # An endpoint that refuses is given up after seconds; the "legacy" mode of botocore takes up to 15 for each request.
    "config_kwargs": {"retries": {"mode": "standard"}},
}


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


def open_store(location: Path | str) -> CacheStore:
    """The store at a path or URL (s3://bucket/prefix, gs://bucket/prefix); nothing is read yet.

    Raises:
        SettingError: if the URL is of a kind that is not installed.
    """
    if "://" not in str(location):
        return FolderStore(Path(location))
    url = str(location).rstrip("/")
    options = {**_REMOTE, **(_S3 if url.startswith("s3://") else {})}
    try:
        fs, prefix = fsspec.core.url_to_fs(url, **options)
    except (ImportError, ValueError) as error:
        raise SettingError(f"{url}: {error}; s3:// needs pip install 'surround-distill[s3]', gs:// [gs]") from error
    return ObjectStore(url, fs, prefix)


@dataclass(frozen=True)
class FolderStore:
    """A cache in a folder of a POSIX file system."""

    root: Path

    @property
    def location(self) -> str:
        """The folder."""
        return str(self.root)

    def read(self, name: str) -> bytes:
        """A whole file."""
        with _reading_file(self.root / name):
            return (self.root / name).read_bytes()

    def read_many(self, names: Sequence[str]) -> Mapping[str, bytes]:
        """Those of these files that are there, by name."""
        found = {}
        for name in names:
            with suppress(FileNotFoundError):
                found[name] = self.read(name)
        return found

    def read_ranges(self, ranges: Sequence[Range]) -> list[bytes | None]:
        """These parts of files, in their order."""
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
        """Remove a file, if it is there; after a crash it does not come back."""
        path = self.root / name
        if path.exists():
            path.unlink()
            fsync(path.parent)

    def size(self, name: str) -> int | None:
        """Bytes of one file, None if it is not there."""
        try:
            return (self.root / name).stat().st_size
        except FileNotFoundError:
            return None

    def sizes(self, folder: str) -> Mapping[str, int]:
        """Bytes of every file below a folder, by name."""
        return dict(_walk(self.root / folder, folder))

    def take(self, shard: int) -> bool:
        """Claim a shard for this process; False if another one is writing it."""
        return self._claims.take(shard)

    def release(self, shard: int) -> None:
        """Give a claim back."""
        self._claims.release(shard)

    def taken_elsewhere(self, shard_count: int) -> list[int]:
        """Shards that other processes are writing at this moment; a folder without a lock file has none."""
        if not (self.root / CLAIMS).exists():
            return []
        try:
            return self._claims.taken_elsewhere(shard_count)
        except OSError:  # somebody else's cache, of which we may only read
            return []

    def creating(self) -> AbstractContextManager[None]:
        """Alone while the metadata is created or mended."""
        self.root.mkdir(parents=True, exist_ok=True)
        return self._claims.creating()

    def clear_partials(self, names: Mapping[str, int]) -> None:
        """Remove these partial files, by name with their shard, unless somebody is writing that shard right now."""
        for name, shard in names.items():
            # Without locks nobody can tell a killed writer's file from a live one's: litter is the smaller harm.
            if self._claims.take(shard) and self._claims.supported:
                (self.root / name).unlink(missing_ok=True)
                self._claims.release(shard)

    def clear_metadata_partials(self) -> None:
        """Remove partial files of the metadata, all of which are written inside `creating`."""
        if self._claims.supported:
            for pattern in (f"*{PARTIAL}", f"*/zarr.json*{PARTIAL}", f"*/*/zarr.json*{PARTIAL}"):
                for path in self.root.glob(pattern):
                    path.unlink(missing_ok=True)

    def free_bytes(self) -> int:
        """Room on the file system that holds the folder."""
        existing = next(folder for folder in (self.root, *self.root.absolute().parents) if folder.exists())
        return shutil.disk_usage(existing).free

    @cached_property
    def _claims(self) -> Claims:
        return Claims(self.root / CLAIMS)

    def __getstate__(self) -> dict[str, Any]:
        return {"root": self.root}  # locks do not travel to another process


@dataclass(frozen=True)
class ObjectStore:
    """A cache under a prefix of object storage; one PUT puts a whole object or none."""

    url: str
    fs: Any  # fsspec has no types
    prefix: str

    @property
    def location(self) -> str:
        """The URL."""
        return self.url

    def read(self, name: str) -> bytes:
        """A whole object; raises StoreError as everything here does."""
        with _reading(self._url(name)):
            data: bytes = self.fs.cat_file(self._path(name))
        return data

    def read_many(self, names: Sequence[str]) -> Mapping[str, bytes]:
        """Those of these objects that are there, by name; many requests at a time."""
        answers = self.fs.cat([self._path(name) for name in names], on_error="return") if names else {}
        found = {}
        for name in names:
            with suppress(FileNotFoundError), _reading(self._url(name)):
                answer = answers[self._path(name)]
                if isinstance(answer, Exception):
                    raise answer
                found[name] = answer
        return found

    def read_ranges(self, ranges: Sequence[Range]) -> list[bytes | None]:
        """These parts of objects, in their order; many requests at a time."""
        starts = [-asked.length if asked.start is None else asked.start for asked in ranges]
        stops = [None if asked.start is None else asked.start + asked.length for asked in ranges]
        answers = self.fs.cat_ranges([self._path(asked.name) for asked in ranges], starts, stops, on_error="return")
        found: list[bytes | None] = []
        for asked, answer in zip(ranges, answers, strict=True):
            try:
                with _reading(self._url(asked.name)):
                    if isinstance(answer, Exception):
                        raise answer
                found.append(answer)
            except FileNotFoundError:
                found.append(None)
        return found

    def write(self, name: str, data: bytes) -> None:
        """Replace an object."""
        with _writing(self._url(name)):
            self.fs.pipe_file(self._path(name), data)

    def remove(self, name: str) -> None:
        """Remove an object, if it is there."""
        with _writing(self._url(name)), suppress(FileNotFoundError):
            self.fs.rm_file(self._path(name))

    def size(self, name: str) -> int | None:
        """Bytes of one object, None if it is not there."""
        try:
            with _reading(self._url(name)):
                return int(self.fs.info(self._path(name))["size"])
        except FileNotFoundError:
            return None

    def sizes(self, folder: str) -> Mapping[str, int]:
        """Bytes of every object below a folder, from its listing."""
        found = {}
        with suppress(FileNotFoundError), _reading(self._url(folder)):
            found = self.fs.find(self._path(folder), detail=True)
        return {path.removeprefix(self.prefix).lstrip("/"): int(info["size"]) for path, info in found.items()}

    def take(self, shard: int) -> bool:
        """Object storage has no locks: parts keep writers apart."""
        return True

    def release(self, shard: int) -> None:
        """Nothing was claimed."""

    def taken_elsewhere(self, shard_count: int) -> list[int]:
        """Nobody can tell."""
        return []

    def creating(self) -> AbstractContextManager[None]:
        """Writers that start together write the same metadata."""
        return nullcontext()

    def clear_partials(self, names: Mapping[str, int]) -> None:
        """There are none: an object that was not uploaded to its end does not exist."""

    def clear_metadata_partials(self) -> None:
        """There are none."""

    def free_bytes(self) -> int | None:
        """Nobody can tell."""
        return None

    def _path(self, name: str) -> str:
        return f"{self.prefix}/{name}"

    def _url(self, name: str) -> str:
        return f"{self.url}/{name}"


@contextmanager
def _reading_file(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        raise StoreError(
            f"cannot read {path}: {error.strerror or error}; it should be a file that you may read"
        ) from error


@contextmanager
def _reading(url: str) -> Iterator[None]:
    """Say what object storage cannot read; its libraries raise errors of their own that have no base in common."""
    try:
        yield
    except FileNotFoundError:
        raise
    except Exception as error:
        raise StoreError(_refusal("read", url, error)) from error


@contextmanager
def _writing(url: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        raise WriteError(_refusal("write", url, error)) from error


def _refusal(verb: str, url: str, error: Exception) -> str:
    reason = " ".join(str(error).split()) or repr(error)
    return f"cannot {verb} {url}: {reason}; check bucket, credentials, endpoint and network"


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
