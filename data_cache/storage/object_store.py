"""A cache on object storage."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from typing import Any

from data_cache.files import WriteError
from data_cache.storage.store import Range, StoreError


@dataclass(frozen=True)
class ObjectStore:
    """A cache under a prefix of object storage; a PUT writes a whole object or nothing."""

    url: str
    fs: Any  # fsspec has no types
    prefix: str

    @property
    def location(self) -> str:
        """The URL."""
        return self.url

    def read(self, name: str) -> bytes:
        """Read a whole object; raises StoreError, as every read here does."""
        with _reading(self._url(name)):
            data: bytes = self.fs.cat_file(self._path(name))
        return data

    def read_many(self, names: Sequence[str]) -> Mapping[str, bytes]:
        """Read those of the named objects that exist, by name; requests run concurrently."""
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
        """Read parts of objects, in order, None where one is missing; requests run concurrently."""
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
        """Remove an object if it exists."""
        with _writing(self._url(name)), suppress(FileNotFoundError):
            self.fs.rm_file(self._path(name))

    def size(self, name: str) -> int | None:
        """Size of an object in bytes; None if it does not exist."""
        try:
            with _reading(self._url(name)):
                return int(self.fs.info(self._path(name))["size"])
        except FileNotFoundError:
            return None

    def sizes(self, folder: str) -> Mapping[str, int]:
        """Size in bytes of every object below a folder, by name, from its listing."""
        found = {}
        with suppress(FileNotFoundError), _reading(self._url(folder)):
            found = self.fs.find(self._path(folder), detail=True)
        return {path.removeprefix(self.prefix).lstrip("/"): int(info["size"]) for path, info in found.items()}

    def take(self, shard: int) -> bool:
        """Always True: object storage has no locks; parts keep writers apart."""
        return True

    def release(self, shard: int) -> None:
        """Does nothing: nothing was claimed."""

    def taken_elsewhere(self, shard_count: int) -> list[int]:
        """Always empty: object storage does not know who is writing."""
        return []

    def creating(self) -> AbstractContextManager[None]:
        """Does not lock: writers that start together write the same metadata."""
        return nullcontext()

    def clear_partials(self, names: Mapping[str, int]) -> None:
        """Does nothing: an object whose upload was interrupted does not exist."""

    def clear_metadata_partials(self) -> None:
        """Does nothing: there are no partial objects."""

    def free_bytes(self) -> int | None:
        """Always None: the free space is unknown."""
        return None

    def _path(self, name: str) -> str:
        return f"{self.prefix}/{name}"

    def _url(self, name: str) -> str:
        return f"{self.url}/{name}"


@contextmanager
def _reading(url: str) -> Iterator[None]:
    """Turn any error into a StoreError: the errors of the storage libraries have no common base class."""
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
