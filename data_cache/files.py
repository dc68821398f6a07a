"""Files that are replaced in one step or not at all, and the words for a disk that says no."""

import errno
import hashlib
import os
import secrets
import shutil
from collections.abc import Callable
from pathlib import Path

from data_cache.errors import SurroundError

PARTIAL = ".partial"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class WriteError(SurroundError):
    """A file cannot be written; what was there before stays."""


class DiskFullError(WriteError):
    """The disk is full; what is finished stays valid."""


def write_atomically(path: Path, text: str) -> None:
    """Replace `path` with `text`, or leave it as it was; durable when this returns. Raises WriteError."""

    def write(partial: Path) -> None:
        partial.write_text(text, encoding="utf-8")

    replace_atomically(path, write)


def replace_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a partial file, then move it to `path` in one step, flushed to disk.

    Raises:
        WriteError: if the system refuses; `path` is then as it was and no partial file stays.
    """
    # Not the process id: containers and machines that share a folder share those, too.
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
    """What the system said about writing `path`, and what to do about it."""
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
