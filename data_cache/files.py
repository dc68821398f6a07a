"""Atomic replacement of files, checked opening of files, and errors for a disk that is full or read-only."""

import errno
import hashlib
import os
import secrets
import shutil
import stat
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path

from data_cache.errors import FrameError, SurroundError

PARTIAL = ".partial"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# RuntimeError: encrypted, or (NotImplementedError) a zip feature that numpy never writes.
NPZ_ERRORS = (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, RuntimeError, struct.error, OverflowError)
"""What Python and numpy raise for a damaged npz file."""


class WriteError(SurroundError):
    """A file cannot be written; its old content stays."""


class DiskFullError(WriteError):
    """The disk is full; what is finished stays valid."""


@contextmanager
def open_regular(path: Path, byte_limit: int, what: str) -> Iterator[BufferedReader]:
    """Open a file of a frame for reading; error messages call it `what`.

    Only a regular file is opened: a pipe of that name would block for ever.

    Raises:
        FrameError: if it is missing, not a regular file, larger than `byte_limit`, or cannot be opened.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise FrameError(f"{what} cannot be read: {path}: expected a file, found a folder, a pipe or a device")
        if status.st_size > byte_limit:
            raise FrameError(f"{path}: expected at most {byte_limit} bytes, found {status.st_size}")
        stream = path.open("rb")
    except FileNotFoundError as error:
        raise FrameError(f"{what} missing: {path}") from error
    except (OSError, ValueError) as error:  # ValueError: not a possible file name
        raise FrameError(f"{what} cannot be read: {path}: {getattr(error, 'strerror', None) or error}") from error
    with stream:
        yield stream


def write_atomically(path: Path, text: str) -> None:
    """Replace `path` with `text`, or leave it as it was; durable when this returns. Raises WriteError."""

    def write(partial: Path) -> None:
        partial.write_text(text, encoding="utf-8")

    replace_atomically(path, write)


def require_writable(path: Path) -> None:
    """Raise WriteError now if `path` could not be written later; leaves nothing but its folder."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise write_error(error, path) from error


def replace_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a partial file, flush it to disk, then move it to `path` in one step.

    Raises:
        WriteError: if the system refuses; `path` is then unchanged and no partial file stays.
    """
    # Random, not the process id: machines and containers that share a folder may have the same ids.
    partial = path.with_name(f"{path.name}.{secrets.token_hex(4)}{PARTIAL}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            write(partial)
            fsync(partial)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
        fsync(path.parent)
    except OSError as error:
        raise write_error(error, path) from error


def write_error(error: OSError, path: Path) -> WriteError:
    """An error that says why the system could not write `path` and what to do about it."""
    if error.errno in _FULL:
        existing = next(folder for folder in (path, *path.parents) if folder.exists())
        free_mb = shutil.disk_usage(existing).free / 1e6
        return DiskFullError(
            f"disk full while writing {path} ({error.strerror}; {free_mb:.1f} MB free now); what is finished is kept:"
            " free some space, or move the run folder to a larger disk, and run the same command again"
        )
    return WriteError(f"cannot write {path}: {error.strerror or error}; check the folder and its permissions")


def count_text(count: int, noun: str) -> str:
    """A count as a person reads it: 1 shard, 2,000 shards."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def size_text(byte_count: int) -> str:
    """Bytes as a person reads them, in decimal units."""
    for unit, scale in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if byte_count >= scale:
            return f"{byte_count / scale:.1f} {unit}"
    return f"{byte_count} bytes"


def file_sha256(path: Path) -> str:
    """sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fsync(path: Path) -> None:
    """Flush a file or folder to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
