"""MCAP files: one pass over their messages, then any message by its place.

The libraries `mcap` and `rosbags` read in time order and trust sizes. This reader also says where a message is, goes on
where a file was cut off or a chunk is damaged, and refuses a size beyond the limit before it unpacks anything. Format:
MCAP specification, version 0.
"""

import os
import struct
import threading
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path

from data_cache.errors import FrameError, SourceError
from data_cache.files import count_text
from data_cache.sources.recordings.containers.packed import MESSAGE_LIMIT, Channel, Damaged, Place, Recorded, unpack

MAGIC = b"\x89MCAP0\r\n"
_KEPT_BYTES = 64 * 2**20  # of unpacked chunks
_HEAD = struct.Struct("<BQ")
_MESSAGE_HEAD = struct.Struct("<HIQQ")
_SCHEMA, _CHANNEL, _MESSAGE, _CHUNK, _DATA_END = 3, 4, 5, 6, 15
_UNCHUNKED = -1
_LATEST_NS = 2**62


class McapFile:
    """An MCAP file, open for reading from any thread.

    `notes` says what the last pass left out: what was cut off, or a damaged chunk. `scratch` lives as long as the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.notes: list[str] = []
        self.scratch: object = None
        self._stream = path.open("rb")
        self._size = os.fstat(self._stream.fileno()).st_size
        self._chunks: OrderedDict[int, memoryview] = OrderedDict()
        self._lock = threading.Lock()

    def messages(self, on_bytes: Callable[[int], object] = lambda _: None) -> Iterator[Recorded]:
        """All messages, in the order of the file; `on_bytes` is told how many bytes were passed.

        Raises:
            SourceError: if the file declares more than the limit.
        """
        self.notes = []
        tables = _Tables()
        position = len(MAGIC)
        while True:
            head = self._at(position, _HEAD.size)
            opcode, length = _HEAD.unpack(head) if len(head) == _HEAD.size else (0, 0)
            start = position + _HEAD.size
            if not opcode or start + length > self._size:
                self.notes.append(
                    f"{self.path}: cut off or damaged after {position:,} of {self._size:,} bytes; what comes before"
                    f" is used: {tables.read_text()}"
                )
                return
            if opcode == _DATA_END:
                on_bytes(self._size - position)  # what follows repeats what was read
                return
            try:
                if opcode == _CHUNK:
                    yield from tables.records(self._unpacked(start, length), start, in_chunk=True)
                elif opcode in (_SCHEMA, _CHANNEL, _MESSAGE):
                    self._require_small(length, position)
                    record = memoryview(self._at(position, _HEAD.size + length))
                    yield from tables.records(record, position, in_chunk=False)
            except Damaged as error:
                self.notes.append(f"{self.path}: the part at byte {position:,} is damaged and left out: {error}")
            on_bytes(_HEAD.size + length)
            position = start + length

    def fetch(self, place: Place) -> memoryview:
        """The bytes of one message. Raises FrameError if the file is not what it was."""
        if place.offset == _UNCHUNKED:
            data = memoryview(self._at(place.start, place.length))
        else:
            data = self._chunk(place.start)[place.offset : place.offset + place.length]
        if len(data) != place.length:
            raise FrameError(f"{self.path}: expected a message of {place.length} bytes, found {len(data)}")
        return data

    def _at(self, position: int, length: int) -> bytes:
        return os.pread(self._stream.fileno(), length, position)

    def _require_small(self, length: int, position: int) -> None:
        if length > MESSAGE_LIMIT:
            raise SourceError(
                f"{self.path}: expected at most {MESSAGE_LIMIT:,} bytes at a time, found {length:,} declared at byte"
                f" {position:,}; the file is damaged or made to fill memory"
            )

    def _chunk(self, start: int) -> memoryview:
        with self._lock:
            if start in self._chunks:
                self._chunks.move_to_end(start)
                return self._chunks[start]
        try:
            unpacked = self._unpacked(start, _HEAD.unpack(self._at(start - _HEAD.size, _HEAD.size))[1])
        except (Damaged, SourceError) as error:
            raise FrameError(f"{self.path}: the chunk at byte {start:,} cannot be read: {error}") from error
        with self._lock:
            self._chunks[start] = unpacked
            while len(self._chunks) > 1 and sum(map(len, self._chunks.values())) > _KEPT_BYTES:
                self._chunks.popitem(last=False)
        return unpacked

    def _unpacked(self, start: int, length: int) -> memoryview:
        """The records of a chunk. Raises Damaged, or SourceError beyond the limit."""
        self._require_small(length, start)
        body = memoryview(self._at(start, length))
        try:
            size, checksum = struct.unpack_from("<QI", body, 16)
            compression, position = _text(body, 28)
            (packed,) = struct.unpack_from("<Q", body, position)
        except (struct.error, UnicodeDecodeError) as error:
            raise Damaged(f"expected a chunk, found {error}") from error
        self._require_small(size, start)
        data = body[position + 8 : position + 8 + packed]
        unpacked = data if not compression else unpack(data, compression, size)
        if len(unpacked) != size:
            raise Damaged(f"expected {size} bytes, found {len(unpacked)}")
        if checksum and zlib.crc32(unpacked) != checksum:
            raise Damaged("its checksum is wrong")
        return unpacked


class _Tables:
    """The channels and schemas that a file has declared so far, and how many messages it had, of what time."""

    def __init__(self) -> None:
        self._schemas: dict[int, tuple[str, bytes]] = {0: ("", b"")}
        self._channels: dict[int, Channel] = {}
        self._count, self._first_ns, self._last_ns = 0, _LATEST_NS, 0

    def read_text(self) -> str:
        """What was read so far: messages, and the seconds over which they were recorded."""
        seconds = max(self._last_ns - self._first_ns, 0) / 1e9
        return f"{count_text(self._count, 'message')} of {seconds:.1f} s"

    def records(self, data: memoryview, start: int, *, in_chunk: bool) -> Iterator[Recorded]:
        """The messages among records; what they declare is kept. Raises Damaged."""
        position = 0
        try:
            while position < len(data):
                opcode, length = _HEAD.unpack_from(data, position)
                body = position + _HEAD.size
                position = body + length
                if position > len(data):
                    raise Damaged(f"expected a record of {length} bytes, found {len(data) - body}")
                if opcode == _MESSAGE:
                    channel, _, log_ns, _ = _MESSAGE_HEAD.unpack_from(data, body)
                    begin = body + _MESSAGE_HEAD.size
                    offset = (start, begin) if in_chunk else (start + begin, _UNCHUNKED)
                    place = Place(*offset, position - begin)
                    if channel not in self._channels:
                        raise Damaged(f"a message of channel {channel}, which is not declared")
                    if log_ns > _LATEST_NS:
                        raise Damaged(f"a message recorded at {log_ns} ns, after the year 2116")
                    self._count += 1
                    self._first_ns, self._last_ns = min(self._first_ns, log_ns), max(self._last_ns, log_ns)
                    yield Recorded(self._channels[channel], log_ns, data[begin:position], place)
                elif opcode == _SCHEMA:
                    self._add_schema(data[body:position])
                elif opcode == _CHANNEL:
                    self._add_channel(data[body:position])
        except (struct.error, UnicodeDecodeError) as error:
            raise Damaged(f"expected records, found {error}") from error

    def _add_schema(self, data: memoryview) -> None:
        (number,) = struct.unpack_from("<H", data)
        name, position = _text(data, 2)
        _, position = _text(data, position)
        (length,) = struct.unpack_from("<I", data, position)
        self._schemas[number] = name, bytes(data[position + 4 : position + 4 + length])

    def _add_channel(self, data: memoryview) -> None:
        number, schema = struct.unpack_from("<HH", data)
        topic, position = _text(data, 4)
        encoding, _ = _text(data, position)
        if schema not in self._schemas:
            raise Damaged(f"channel {topic!r} has the schema {schema}, which is not declared")
        name, definition = self._schemas[schema]
        self._channels[number] = Channel(topic, name, encoding, definition)


def _text(data: memoryview, position: int) -> tuple[str, int]:
    (length,) = struct.unpack_from("<I", data, position)
    end = position + 4 + length
    if end > len(data):
        raise Damaged(f"expected a text of {length} bytes, found {len(data) - position - 4}")
    return bytes(data[position + 4 : end]).decode(), end
