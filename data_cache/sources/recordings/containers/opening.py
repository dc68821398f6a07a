"""The files of a bag: found, recognised by their first bytes, opened."""

import re
import shutil
import tempfile
from pathlib import Path

from data_cache.errors import SourceError
from data_cache.sources.recordings.containers import mcap_reading, sqlite_reading
from data_cache.sources.recordings.containers.packed import ZSTD_MAGIC, missing_extra

_SUFFIXES = (".mcap", ".db3", ".zstd", ".zst")
_LISTED = re.compile(r"^\s*-\s+[\"']?([^\s\"']+\.(?:mcap|db3)(?:\.zstd)?)[\"']?\s*$", re.MULTILINE)
_LARGEST_RATIO = 1000  # images do not shrink by zstd, tables of numbers to a tenth
_STEP = 16 * 2**20
_LONGEST_HEAD = 18  # bytes of a zstd frame before its first block


MessageFile = mcap_reading.McapFile | sqlite_reading.SqliteFile


def bag_files(bag: Path) -> tuple[Path, ...]:
    """The files of a bag in the order of their names: itself, or those of its folder.

    Raises:
        SourceError: if there are none, or `metadata.yaml` lists one that is missing.
    """
    if bag.is_file():
        return (bag,)
    if not bag.is_dir():
        raise SourceError(f"{bag}: expected a recording (.mcap, .db3, or the folder of a ROS 2 bag), found nothing")
    found = sorted((path for path in bag.iterdir() if path.suffix in _SUFFIXES), key=_natural)
    metadata = bag / "metadata.yaml"
    if metadata.is_file() and metadata.stat().st_size < 16 * 2**20:
        listed = {Path(name).name for name in _LISTED.findall(metadata.read_text(errors="replace"))}
        missing = sorted(listed - {path.name for path in found})
        if missing:
            raise SourceError(f"{bag}: metadata.yaml lists {', '.join(missing[:5])}, which is missing; copy it there")
    if not found:
        raise SourceError(f"{bag}: expected .mcap or .db3 files in the folder of a bag, found none")
    return tuple(found)


def open_file(path: Path) -> MessageFile:
    """Open a file of messages. A file packed as a whole (`.db3.zstd`) is unpacked to a temporary one first.

    Raises:
        SourceError: if it is none.
    """
    try:
        with path.open("rb") as stream:
            begin = stream.read(16)
        if begin[:4] != ZSTD_MAGIC:
            return _open_plain(path, path)
        scratch = tempfile.TemporaryDirectory(prefix="surround-bag-")
        try:
            opened = _open_plain(_unpacked(path, Path(scratch.name)), path)
        except BaseException:
            scratch.cleanup()
            raise
        opened.scratch = scratch
        return opened
    except OSError as error:
        raise SourceError(f"{path}: cannot be read: {error.strerror or error}") from error


def _open_plain(path: Path, named: Path) -> MessageFile:
    with path.open("rb") as stream:
        begin = stream.read(16)
    if begin.startswith(mcap_reading.MAGIC):
        return mcap_reading.McapFile(path)
    if begin == sqlite_reading.MAGIC:
        return sqlite_reading.SqliteFile(path)
    if begin.startswith(b"#ROSBAG"):
        raise SourceError(f"{named}: expected a ROS 2 bag, found one of ROS 1; `rosbags-convert` makes one of it")
    found = f"{begin[:8]!r}" if begin else "an empty file"
    raise SourceError(f"{named}: expected an MCAP file or the .db3 of a ROS 2 bag, found {found}")


def _unpacked(path: Path, folder: Path) -> Path:
    """Unpack a file into a folder. Raises SourceError if it is damaged, or larger than what is free or plausible."""
    try:
        import zstandard
    except ImportError as error:
        raise missing_extra(error) from error
    limit, free = _LARGEST_RATIO * path.stat().st_size, shutil.disk_usage(folder).free
    size = 0
    try:
        with path.open("rb") as stream:
            declared = zstandard.frame_content_size(stream.read(_LONGEST_HEAD))  # -1 if it is not declared
        with (
            path.open("rb") as stream,
            (folder / path.stem).open("wb") as out,
            zstandard.ZstdDecompressor().stream_reader(stream) as reader,
        ):
            while data := reader.read(_STEP):
                size += len(data)
                if size > limit:
                    raise SourceError(
                        f"{path}: expected a recording, found data that unpacks to more than {_LARGEST_RATIO} times its"
                        " size; the file is made to fill the disk"
                    )
                if max(size, declared) > free:
                    raise SourceError(
                        f"{path}: expected room to unpack {max(size, declared):,} bytes or more, found {free:,} free in"
                        f" {folder.parent}; set TMPDIR to a folder on a larger disk"
                    )
                out.write(data)
        return folder / path.stem
    except zstandard.ZstdError as error:
        raise SourceError(f"{path}: expected zstd data, found {error}; it is cut off or damaged") from error


def _natural(path: Path) -> list[tuple[int, str]]:
    """rosbag2_2 before rosbag2_10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", path.name)]
