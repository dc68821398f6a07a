"""Reading the JSON metadata of data sets; every error message names the file."""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from data_cache.errors import SourceError

_JSON_LIMIT = 8 * 2**30  # the largest table of nuScenes takes a gigabyte


def read_small(path: Path, byte_limit: int) -> bytes:
    """The bytes of a file of at most `byte_limit` bytes.

    Raises:
        SourceError: if it is missing, not a file, larger, or cannot be read.
    """
    if not path.is_file():
        raise SourceError(f"{path}: expected a file, found {'something else' if path.exists() else 'none'}")
    try:
        with path.open("rb") as stream:
            # Not read(byte_limit), which would reserve that much memory at once.
            data = stream.read(min(byte_limit, os.fstat(stream.fileno()).st_size) + 1)
    except OSError as error:
        raise SourceError(f"{path}: cannot be read: {error.strerror or error}") from error
    if len(data) > byte_limit:
        raise SourceError(f"{path}: expected at most {byte_limit} bytes, found more")
    return data


def read_text(path: Path, byte_limit: int) -> str:
    """The text of a file of at most `byte_limit` bytes.

    Raises:
        SourceError: if it is missing, empty, not UTF-8, or larger.
    """
    data = read_small(path, byte_limit)
    if not data.strip():
        raise SourceError(f"{path}: expected text, found an empty file; write it, or fetch it again")
    return decoded(data, str(path))


def decoded(data: bytes, where: str) -> str:
    """Decode UTF-8 text. Raises SourceError naming `where`."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        hint = "; it looks like UTF-16: save it as UTF-8" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else ""
        raise SourceError(f"{where}: expected UTF-8 text, found {error}{hint}") from error


def read_json(path: Path, visit: Callable[[dict[str, Any]], object] | None = None) -> Any:
    """Parse a JSON file.

    Args:
        path: the file.
        visit: called with every object as soon as it is parsed; its return value replaces the object.

    Raises:
        SourceError: if the file is missing, too large, or not JSON.
    """
    if not path.exists():
        raise SourceError(f"expected the metadata file {path}, found none; complete the download")
    try:
        return json.loads(read_text(path, _JSON_LIMIT), object_hook=visit)
    except (json.JSONDecodeError, RecursionError) as error:
        raise SourceError(f"{path}: expected JSON, found {error}; fetch the file again") from error


@contextmanager
def fields_of(where: object) -> Iterator[None]:
    """Turn the error of a missing or ill-typed field inside the context into a SourceError naming `where`."""
    try:
        yield
    except KeyError as error:
        raise SourceError(f"{where}: expected the key {error}, found none; the file is damaged or trimmed") from error
    except (AttributeError, IndexError, OverflowError, TypeError, ValueError) as error:
        raise SourceError(f"{where}: unexpected content: {error}; the file is damaged or of another format") from error


def text(value: object) -> str:
    """Check that a field is text; raises TypeError, which `fields_of` turns into a SourceError."""
    if not isinstance(value, str):
        raise TypeError(f"expected text, found {value!r}")
    return value


def below(value: object) -> str:
    """Check that metadata names a file below the data folder; links that the user placed there may lead elsewhere.

    Raises TypeError or ValueError, which `fields_of` turns into a SourceError.
    """
    path = text(value)
    if path.startswith("/") or ".." in path.split("/") or "\\" in path or path[1:2] == ":" or not path.isprintable():
        raise ValueError(f"expected a file below the data folder, without .., found {path[:80]!r}")
    return path


def found_in(folder: Path) -> str:
    """A short list of what a folder holds, for error messages."""
    if not folder.is_dir():
        return f"found no folder at {folder}"
    names = sorted(path.name for path in folder.iterdir())
    return f"found in {folder}: " + (", ".join(names[:8]) + (", ..." if len(names) > 8 else "") or "nothing")
