"""One pass over a bag: when and where the messages of each topic are, its transforms, its calibrations."""

from array import array
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from data_cache.errors import FrameError, SourceError
from data_cache.files import count_text
from data_cache.sources.recordings.containers.opening import MessageFile, bag_files, open_file
from data_cache.sources.recordings.containers.packed import Channel, Place, Recorded
from data_cache.sources.recordings.decoding.messages import (
    CALIBRATION,
    CLOUD,
    IMAGE,
    ODOMETRY,
    TRANSFORMS,
    CalibrationMessage,
    CloudMessage,
    ImageMessage,
    decode,
    kind_of,
    stamp_ns,
)
from data_cache.sources.recordings.transforms import EdgeLog

_COLUMNS = 6  # stamp, log time, number of the file, and the three numbers of a place
_NOTES = 5  # of a file; a damaged one could have thousands
_SAMPLED = 100_000  # messages of a topic whose places nobody needs, only rates and clock offsets


class Row(NamedTuple):
    """A message of a topic: its file and its place there."""

    file: int
    place: Place


@dataclass(eq=False)
class Topic:
    """What a bag holds of a topic; filled while the bag is read.

    Attributes:
        channel: the topic, its type and encoding.
        kind: what it holds, see `messages.KINDS`; None if it is not read.
        count: messages that were read.
        first: the first image or cloud, without its data; there is one if `count` is not 0.
        calibration: the first calibration; there is one if `count` is not 0.
        changed: whether a later calibration differs from the first.
        damaged: how many messages could not be read.
        first_damage: what was wrong with the first of them.
    """

    channel: Channel
    kind: str | None
    count: int = 0
    first: ImageMessage | CloudMessage | None = None
    calibration: CalibrationMessage | None = None
    changed: bool = False
    damaged: int = 0
    first_damage: str = ""
    _table: array = field(default_factory=lambda: array("q"))  # type: ignore[type-arg]

    @property
    def name(self) -> str:
        """The name of the topic."""
        return self.channel.topic

    def unread(self, what: str) -> SourceError:
        """The error of a topic none of whose messages can be read; `what` was expected of it."""
        return SourceError(
            f"{self.name}: expected {what}, found {count_text(self.damaged, 'damaged message')} and none that can be"
            f" read; the first: {self.first_damage}"
        )

    def add(self, stamp: int, log_ns: int, file: int, place: Place) -> None:
        """Remember where a message is."""
        self._table.extend((stamp, log_ns, file, place.start, place.offset, place.length))

    def rows(self, *, by_log: bool, offset_ns: int = 0) -> tuple[Int[np.ndarray, " N"], Int[np.ndarray, "N 4"]]:
        """Times, sorted, and for each the file and place; by header stamp plus an offset, or by recording time."""
        table = self._rows()
        times_ns = table[:, 1] if by_log else table[:, 0] + offset_ns
        order = np.argsort(times_ns, kind="stable")
        return times_ns[order], table[order, 2:]

    def clock_offset_s(self) -> float | None:
        """Median of recording time minus header stamp, seconds; None if the topic has no stamps."""
        table = self._rows()
        return float(np.median(table[:, 1] - table[:, 0])) / 1e9 if len(table) else None

    def rate_hz(self) -> float | None:
        """Messages a second, from the median interval of their stamps; None for less than three."""
        intervals = self._intervals_s()
        median = float(np.median(intervals)) if len(intervals) > 1 else 0.0
        return 1 / median if median > 0 else None

    def gap_count(self) -> int:
        """How many intervals are longer than twice the median one."""
        intervals = self._intervals_s()
        return int((intervals > 2 * np.median(intervals)).sum()) if len(intervals) > 1 else 0

    def longest_gap_s(self) -> float:
        """The longest interval, seconds."""
        return float(self._intervals_s().max(initial=0.0))

    def _rows(self) -> Int[np.ndarray, "N 6"]:
        return np.frombuffer(self._table, np.int64).reshape(-1, _COLUMNS)

    def _intervals_s(self) -> np.ndarray:
        return np.diff(np.sort(self._rows()[:, 0])) / 1e9


@dataclass(frozen=True, eq=False)
class Bag:
    """A bag that was read once: its files, topics, transforms, and what was left out.

    `edges` are by parent and child, `odometry` by topic as well: two filters often say where one vehicle is.
    """

    path: Path
    files: tuple[MessageFile, ...]
    topics: Mapping[str, Topic]
    edges: Mapping[tuple[str, str], EdgeLog]
    odometry: Mapping[tuple[str, str, str], EdgeLog]
    notes: tuple[str, ...]

    def fetch(self, row: Row) -> memoryview:
        """The bytes of a message. Raises FrameError."""
        return self.files[row.file].fetch(row.place)


def read_bag(path: Path, on_bytes: Callable[[int], object] = lambda _: None) -> Bag:
    """Go through a bag once.

    Args:
        path: a file, or the folder of a bag.
        on_bytes: called with the number of bytes that were passed, now and then.

    Raises:
        SourceError: if it is no bag, or holds no message.
        SettingError: if the extra `bags` is missing.
    """
    files = tuple(open_file(one) for one in bag_files(path))
    topics: dict[str, Topic] = {}
    edges: dict[tuple[str, str], EdgeLog] = {}
    odometry: dict[tuple[str, str, str], EdgeLog] = {}
    for number, file in enumerate(files):
        for one in file.messages(on_bytes):
            try:
                _take(one, number, topics, edges, odometry)
            except FrameError as error:
                topic = topics[one.channel.topic]
                topic.damaged += 1
                topic.first_damage = topic.first_damage or str(error)
    notes = [note for file in files for note in _shortened(file.notes)]
    notes += [
        f"{topic.name}: {count_text(topic.damaged, 'damaged message')} left out; the first: {topic.first_damage}"
        for topic in topics.values()
        if topic.damaged
    ]
    if not any(topic.count for topic in topics.values()):
        why = f"; {notes[0]}" if notes else ""
        raise SourceError(f"{path}: expected messages, found none{why}")
    return Bag(path, files, topics, edges, odometry, tuple(notes))


def _shortened(notes: list[str]) -> list[str]:
    """The first notes of a file, and how many there are beyond them."""
    beyond = len(notes) - _NOTES
    return notes if beyond <= 0 else [*notes[:_NOTES], f"{count_text(beyond, 'more part')} of this file left out"]


def _take(
    one: Recorded,
    file: int,
    topics: dict[str, Topic],
    edges: dict[tuple[str, str], EdgeLog],
    odometry: dict[tuple[str, str, str], EdgeLog],
) -> None:
    channel = one.channel
    topic = topics.get(channel.topic)
    if topic is None:
        topic = topics[channel.topic] = Topic(channel, kind_of(channel))
    if topic.channel.type != channel.type:
        raise FrameError(f"{channel.topic}: expected {topic.channel.type} throughout, found {channel.type}")
    if topic.kind in (IMAGE, CLOUD):
        if topic.first is None:
            first = decode(channel, one.data)
            assert isinstance(first, ImageMessage | CloudMessage)
            topic.first = _without_data(first)
        topic.add(stamp_ns(channel, one.data), one.log_ns, file, one.place)
    elif topic.kind == CALIBRATION:
        if topic.count < _SAMPLED:
            topic.add(stamp_ns(channel, one.data), one.log_ns, file, one.place)
        found = decode(channel, one.data)
        assert isinstance(found, CalibrationMessage)
        topic.changed |= topic.calibration not in (None, found)
        topic.calibration = topic.calibration or found
    elif topic.kind in (TRANSFORMS, ODOMETRY):
        found_all = decode(channel, one.data)
        assert isinstance(found_all, tuple)
        static = is_static(channel.topic)
        for each in found_all:
            log = EdgeLog(each.parent, each.child, channel.topic, static)
            if topic.kind == TRANSFORMS:
                log = edges.setdefault((each.parent, each.child), log)
            else:
                log = odometry.setdefault((each.parent, each.child, channel.topic), log)
            log.add(each)
        if found_all and topic.count < _SAMPLED and not static:
            topic.add(found_all[0].stamp_ns, one.log_ns, file, one.place)
    topic.count += 1  # a damaged message does not come here


def is_static(topic: str) -> bool:
    """Whether transforms of a topic hold at all times: that of the name `tf_static`, in any namespace."""
    return topic.rpartition("/")[2] == "tf_static"


def _without_data(message: ImageMessage | CloudMessage) -> ImageMessage | CloudMessage:
    kept = message.data[:16] if isinstance(message, ImageMessage) else b""
    return replace(message, data=kept)
