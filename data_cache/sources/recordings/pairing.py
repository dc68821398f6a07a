"""Which messages make up a frame: a sweep, or a moment, and of each camera the image nearest to it."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from data_cache.errors import SourceError
from data_cache.files import count_text
from data_cache.sources.recordings.choices import Choices
from data_cache.sources.recordings.containers.packed import Place
from data_cache.sources.recordings.indexing import Bag, Row
from data_cache.sources.recordings.transforms import Tree

_NONE = -1


@dataclass(frozen=True, eq=False)
class _Stream:
    """The messages of one sensor whose pose is known: times, sorted, and for each its file and place."""

    times_ns: Int[np.ndarray, " N"]
    rows: Int[np.ndarray, "N 4"]


@dataclass(frozen=True, eq=False)
class Pairs:
    """The frames of a bag.

    Attributes:
        times_ns: (F,) of each frame: of its sweep, else of the first camera.
        lidar: whether the frames have sweeps.
        absent: of each camera, how many frames lack it.
        notes: what was left out, and why.
    """

    times_ns: Int[np.ndarray, " F"]
    lidar: bool
    absent: Mapping[str, int]
    notes: tuple[str, ...]
    _sweeps: Int[np.ndarray, "F 4"]
    _images: Int[np.ndarray, "V F 5"]

    def sweep(self, frame: int) -> Row | None:
        """The sweep of a frame; None without a LiDAR."""
        return _row(self._sweeps[frame]) if self.lidar else None

    def image(self, camera: int, frame: int) -> tuple[int, Row] | None:
        """Time stamp and place of the image of a camera in a frame; None if it is absent."""
        time_ns, *row = self._images[camera, frame]
        return (int(time_ns), _row(np.array(row))) if row[0] != _NONE else None


def pair(bag: Bag, choices: Choices, tree: Tree) -> Pairs:
    """Make frames of a bag: one per LiDAR sweep, or per image of the first camera where there is no LiDAR.

    With `rate_hz` only so many a second are kept. A sensor's message without a known pose is left out; so is a frame
    without any camera. An image belongs to one frame only, the nearest.

    Raises:
        SourceError: if no frame is left.
    """
    notes: list[str] = []
    streams = [_stream(bag, choices, tree, camera.topic, camera.frame, notes) for camera in choices.cameras]
    if choices.lidar is not None:
        beats = _stream(bag, choices, tree, choices.lidar, choices.lidar_frame, notes)
    else:
        beats = next((stream for stream in streams if len(stream.times_ns)), streams[0])
    kept = _thinned(beats.times_ns, choices.settings.rate_hz)
    times_ns, sweeps = beats.times_ns[kept], beats.rows[kept]
    slack_ns = round(choices.settings.slack_ms * 1e6)
    nearest = [_nearest(stream.times_ns, times_ns, slack_ns) for stream in streams]
    seen: np.ndarray = (np.stack(nearest) != _NONE).any(axis=0)
    if not seen.all() and seen.any():
        notes.append(
            f"{int((~seen).sum()):,} of {count_text(len(seen), 'frame')} left out: no image within"
            f" {slack_ns / 1e6:g} ms"
        )
    if not seen.any():
        raise SourceError(
            f"{bag.path}: expected frames, found none: {len(times_ns)} sweeps or moments, and no image within"
            f" {slack_ns / 1e6:g} ms of any" + (f"; {'; '.join(notes)}" if notes else "; raise --slack-ms")
        )
    images = np.full((len(streams), int(seen.sum()), 5), _NONE, np.int64)
    for camera, (stream, index) in enumerate(zip(streams, nearest, strict=True)):
        index = index[seen]
        there = index != _NONE
        images[camera, there, 0] = stream.times_ns[index[there]]
        images[camera, there, 1:] = stream.rows[index[there]]
    absent = {camera.name: int((images[i, :, 1] == _NONE).sum()) for i, camera in enumerate(choices.cameras)}
    return Pairs(times_ns[seen], choices.lidar is not None, absent, tuple(notes), sweeps[seen], images)


def _stream(bag: Bag, choices: Choices, tree: Tree, name: str, frame: str, notes: list[str]) -> _Stream:
    topic = bag.topics.get(name)
    if topic is None:
        notes.append(f"{name} is not in this bag")
        return _Stream(np.empty(0, np.int64), np.empty((0, 4), np.int64))
    offset_ns = round(choices.settings.clock_offset_s.get(name, 0.0) * 1e9)
    times_ns, rows = topic.rows(by_log=choices.settings.clock == "log", offset_ns=offset_ns)
    known = tree.covers(choices.world, frame, times_ns) & (times_ns >= 0)
    twice = np.append(False, np.diff(times_ns) == 0)
    if not known.all():
        notes.append(
            f"{name}: {int((~known).sum()):,} of {count_text(len(known), 'message')} left out: no pose of {frame} in"
            f" {choices.world} at their time"
        )
    if twice.any():
        notes.append(
            f"{name}: {count_text(int(twice.sum()), 'message')} left out: the one before has the same time stamp"
        )
    return _Stream(times_ns[known & ~twice], rows[known & ~twice])


def _thinned(times_ns: Int[np.ndarray, " N"], rate_hz: float | None) -> Int[np.ndarray, " F"]:
    """Indices of times that are at least 1 / rate apart, within half the usual interval."""
    if rate_hz is None or len(times_ns) < 2:
        return np.arange(len(times_ns))
    apart_ns = 1e9 / rate_hz - float(np.median(np.diff(times_ns))) / 2
    kept = [0]
    for i in range(1, len(times_ns)):
        if times_ns[i] - times_ns[kept[-1]] >= apart_ns:
            kept.append(i)
    return np.array(kept)


def _nearest(times_ns: Int[np.ndarray, " N"], wanted_ns: Int[np.ndarray, " F"], slack_ns: int) -> Int[np.ndarray, " F"]:
    """Index of the time nearest to each wanted one; -1 if none is within the slack, or it is nearer to another one."""
    if not len(times_ns):
        return np.full(len(wanted_ns), _NONE)
    after = np.clip(np.searchsorted(times_ns, wanted_ns), 1, max(len(times_ns) - 1, 1))
    before = after - 1
    after = np.minimum(after, len(times_ns) - 1)
    index = np.where(wanted_ns - times_ns[before] <= times_ns[after] - wanted_ns, before, after)
    off_ns = np.abs(times_ns[index] - wanted_ns)
    best_ns = np.full(len(times_ns), np.iinfo(np.int64).max)
    np.minimum.at(best_ns, index, off_ns)
    taken = off_ns == best_ns[index]
    # Of two equally far frames the first has the image.
    first = np.append(True, (index[1:] != index[:-1]) | ~taken[:-1])
    chosen: np.ndarray = np.where((off_ns <= slack_ns) & taken & first, index, _NONE)
    return chosen


def _row(numbers: Int[np.ndarray, " 4"]) -> Row:
    file, start, offset, length = numbers.tolist()
    return Row(file, Place(start, offset, length))
