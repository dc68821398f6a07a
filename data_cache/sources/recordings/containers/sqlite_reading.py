"""The sqlite3 files of ROS 2 bags (`.db3`): one pass over their messages, then any message by its row."""

import sqlite3
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import quote

from data_cache.errors import FrameError, SourceError
from data_cache.sources.recordings.containers.packed import (
    MESSAGE_LIMIT,
    ZSTD_MAGIC,
    Channel,
    Damaged,
    Place,
    Recorded,
    unpack,
)

MAGIC = b"SQLite format 3\0"
# What reading a damaged file raises; UnicodeDecodeError comes from its texts, and from those of error messages.
_FAULTS = (sqlite3.Error, UnicodeDecodeError, OverflowError)
_CUT = (
    "cut off or damaged: `sqlite3 CUT.db3 .recover | sqlite3 NEW.db3` writes what is left to a new file, and `ros2 bag"
    " reindex` makes its metadata.yaml"
)


class SqliteFile:
    """A sqlite3 file of a ROS 2 bag, open for reading from any thread.

    Bags that compress each message are unpacked: a message of ROS 2 never begins as zstd data does. `notes` says what
    the last pass left out. `scratch` lives as long as the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.notes: list[str] = []
        self.scratch: object = None
        self._lock = threading.Lock()
        uri = f"file:{quote(str(path.absolute()))}?mode=ro&immutable=1"
        self._database = sqlite3.connect(uri, uri=True, check_same_thread=False)

    def messages(self, on_bytes: Callable[[int], object] = lambda _: None) -> Iterator[Recorded]:
        """All messages, row by row; `on_bytes` is told how many bytes were passed.

        Raises:
            SourceError: if it is no bag.
        """
        self.notes = []
        try:
            topics = self._database.execute("SELECT id, name, type, serialization_format FROM topics")
            channels = {number: Channel(str(name), str(kind), str(code)) for number, name, kind, code in topics}
            rows = self._database.execute("SELECT id, topic_id, timestamp, data FROM messages ORDER BY id")
        except _FAULTS as error:
            raise SourceError(
                f"{self.path}: expected the tables of a ROS 2 bag, found {error}; it is no bag, or {_CUT}"
            ) from error
        while True:
            try:
                row = rows.fetchone()
            except _FAULTS as error:
                self.notes.append(f"{self.path}: the rest is left out: {error}; it is {_CUT}")
                return
            if row is None:
                return
            number, topic, log_ns, packed = row
            try:
                if (
                    topic not in channels
                    or not isinstance(packed, bytes)
                    or type(number) is not int
                    or type(log_ns) is not int
                ):
                    raise Damaged("expected a topic, a time and bytes")
                data = _plain(packed)
            except Damaged as error:
                self.notes.append(f"{self.path}: message {number} is damaged and left out: {error}")
                continue
            on_bytes(len(packed))
            yield Recorded(channels[topic], log_ns, data, Place(number, 0, len(data)))

    def fetch(self, place: Place) -> memoryview:
        """The bytes of one message. Raises FrameError if the file is not what it was."""
        try:
            with self._lock:
                row = self._database.execute("SELECT data FROM messages WHERE id = ?", (place.start,)).fetchone()
            data = _plain(row[0] if row else b"")
        except (*_FAULTS, Damaged) as error:
            raise FrameError(f"{self.path}: message {place.start} cannot be read: {error}") from error
        if len(data) != place.length:
            raise FrameError(f"{self.path}: expected a message of {place.length} bytes, found {len(data)}")
        return data


def _plain(data: bytes) -> memoryview:
    if len(data) > MESSAGE_LIMIT:
        raise Damaged(f"expected at most {MESSAGE_LIMIT:,} bytes, found {len(data):,}")
    return unpack(memoryview(data), "zstd") if data[:4] == ZSTD_MAGIC else memoryview(data)
