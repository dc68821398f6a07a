"""Stage one: run the teacher once over every frame, and cache its bin probabilities and view relations."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import astuple, dataclass, replace
from itertools import chain, groupby, islice

import numpy as np
import torch
from jaxtyping import UInt8

from data_cache.errors import FrameError
from data_cache.shards.records import FrameRecord
from data_cache.shards.writer import CacheWriter
from data_cache.sources.base import Source
from stages.caching.products import CONSTANT_NOTE, UNCORRECTED_NOTE, SeenView, corrected, frame_record, look
from stages.caching.teacher_input import PreparedFrame, prepare_frame
from stages.compute.preemption import Preempted
from stages.targets.binning import Binning
from stages.targets.spec import BinSpec
from stages.teacher.base import Teacher

PREFETCH_FRAMES = 3
PREFETCH_THREADS = 2
BATCH_IMAGES = {"cpu": 2, "cuda": 12}
"""Images per forward pass by device. On a CPU a small batch fits its caches: of 1, 2, 3, 6, 12 the fastest is 2
(bench_teacher_cache.py)."""


@dataclass(frozen=True)
class TeacherCacheReport:
    """The result of a run of stage one.

    Attributes:
        shards_written: shards written by this run.
        shards_elsewhere: shards left to other processes that were writing them.
        shards_found_done: shards that another process finished after this run was planned.
        frames_written: usable frames in the shards written.
    """

    shards_written: int = 0
    shards_elsewhere: int = 0
    shards_found_done: int = 0
    frames_written: int = 0

    def __add__(self, other: "TeacherCacheReport") -> "TeacherCacheReport":
        """The sum of both, field by field."""
        return TeacherCacheReport(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))


def teacher_lanes(device: torch.device) -> int:
    """How many batches the teacher should process in parallel.

    On a CPU one batch per core, each on one thread: threads that share a batch wait for each other, and most of all for
    a thread that is delayed by a frame being decoded. On a GPU one at a time.
    """
    return torch.get_num_threads() if device.type == "cpu" else 1


def teacher_cache(
    source: Source,
    teacher: Teacher,
    writer: CacheWriter,
    bin_spec: BinSpec,
    binning: Binning,
    shards: Sequence[int],
    *,
    batch_images: int,
    lanes: int = 1,
    retry_quarantined: bool = False,
    on_frame: Callable[[], object] = lambda: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> TeacherCacheReport:
    """Write those of `shards` that are not done and that no other process is writing.

    Reading, inference, and compression with writing overlap; at most three shards are in memory, the last one just
    begun. The bytes written depend on the shard alone, not on lanes (one thread each), order or interruptions. A frame
    that cannot be read, or for which the teacher gives values that are not finite, is quarantined with its reason.

    Args:
        source: the data set.
        teacher: the model to run.
        writer: the cache to fill.
        bin_spec: how bins are cut and stored.
        binning: where the teacher's bins lie.
        shards: shard numbers, as from `CacheWriter.pending`.
        batch_images: images per forward pass; batches never cross shards.
        lanes: batches that the teacher processes in parallel, see `teacher_lanes`.
        retry_quarantined: rewrite finished shards that hold quarantined frames.
        on_frame: called when a frame has been handed to the teacher.
        should_stop: called between frames.

    Raises:
        Preempted: if `should_stop` returns True; the open shard is dropped, finished ones are kept.
        WriteError: if the cache cannot be written.
        SettingError: if a batch does not fit into the GPU's memory.
    """
    claims = _Claims(writer, shards, retry_quarantined)
    report = TeacherCacheReport()
    commits: deque[Future[TeacherCacheReport]] = deque()
    looking: deque[Future[list[SeenView]]] = deque()
    with (
        _one_thread_per_lane(lanes),
        claims,
        ThreadPoolExecutor(PREFETCH_THREADS, "read") as readers,
        ThreadPoolExecutor(lanes, "look") as lookers,
        ThreadPoolExecutor(1, "commit") as committers,
    ):

        def hand_over(images: list[UInt8[np.ndarray, "H W 3"]]) -> Future[list[SeenView]]:
            while len(looking) > lanes:  # bounds the queue in front of the teacher
                looking.popleft().result()
            looking.append(lookers.submit(look, teacher, images, writer.identity.prob_size, binning))
            return looking[-1]

        for shard, reads in groupby(_read_ahead(readers, source, teacher, writer, claims), key=lambda read: read.shard):
            filled = _FilledShard(shard, [], [], {})
            waiting: list[UInt8[np.ndarray, "H W 3"]] = []
            for read in reads:
                if should_stop():
                    raise Preempted(f"stopped before shard {shard} was finished; finished shards are kept")
                if commits and commits[0].done():  # raises its error, such as a full disk, now and not a shard later
                    report += commits.popleft().result()
                try:
                    frame = read.prepared.result()
                except FrameError as error:
                    filled.quarantined[read.frame_id] = str(error)
                else:
                    waiting += frame.teacher_images
                    filled.frames.append(replace(frame, teacher_images=[]))  # so that the batch alone keeps the images
                while len(waiting) >= batch_images:
                    filled.batches.append(hand_over(waiting[:batch_images]))
                    del waiting[:batch_images]
                on_frame()
            if waiting:
                filled.batches.append(hand_over(waiting))
            while len(commits) > 1:
                report += commits.popleft().result()
            commits.append(committers.submit(_commit, filled, writer, bin_spec, binning, claims))
        for commit in commits:
            report += commit.result()
    return replace(report, shards_elsewhere=claims.elsewhere, shards_found_done=claims.found_done)


@dataclass(frozen=True, eq=False)
class _Read:
    """A frame that is being read."""

    shard: int
    frame_id: str
    prepared: Future[PreparedFrame]


@dataclass(frozen=True, eq=False)
class _FilledShard:
    """A shard with all its frames read; its batches may still be with the teacher."""

    number: int
    frames: list[PreparedFrame]
    batches: list[Future[list[SeenView]]]
    quarantined: dict[str, str]


class _Claims:
    """Iterates over the shards to write, claiming each one when it is reached; releases all claims at the end."""

    def __init__(self, writer: CacheWriter, shards: Sequence[int], retry_quarantined: bool):
        self._writer, self._shards, self._retry = writer, shards, retry_quarantined
        self._held: set[int] = set()
        self.elsewhere = self.found_done = 0

    def __iter__(self) -> Iterator[int]:
        refused = []
        for shard in self._shards:
            if self._writer.claim(shard):
                yield from self._ours(shard)
            else:
                refused.append(shard)
        for shard in refused:  # its process may have ended by now
            if self._writer.claim(shard):
                yield from self._ours(shard)
            else:
                self.elsewhere += 1

    def _ours(self, shard: int) -> Iterator[int]:
        self._held.add(shard)
        if self._writer.is_done(shard, retry_quarantined=self._retry):
            self.found_done += 1
            self.release(shard)
        else:
            yield shard

    def release(self, shard: int) -> None:
        self._held.discard(shard)
        self._writer.release(shard)

    def __enter__(self) -> "_Claims":
        return self

    def __exit__(self, *_: object) -> None:
        for shard in tuple(self._held):
            self.release(shard)


def _read_ahead(
    readers: ThreadPoolExecutor, source: Source, teacher: Teacher, writer: CacheWriter, claims: _Claims
) -> Iterator[_Read]:
    """Frames of all claimed shards in order, read at most PREFETCH_FRAMES ahead of the teacher."""
    sizes = (teacher.input_size, writer.identity.image_size)
    jobs = (
        _Read(shard, frame_id, readers.submit(prepare_frame, source, frame_id, *sizes))
        for shard in claims
        for frame_id in (writer.frame_ids[i] for i in writer.frame_range(shard))
    )
    ahead = deque(islice(jobs, PREFETCH_FRAMES))
    while ahead:
        read = ahead.popleft()
        ahead.extend(islice(jobs, 1))
        yield read


def _commit(
    filled: _FilledShard, writer: CacheWriter, bin_spec: BinSpec, binning: Binning, claims: _Claims
) -> TeacherCacheReport:
    """Combine the frames of a shard with the teacher's output, and write the shard."""
    shard, quarantined = filled.number, filled.quarantined
    views = chain.from_iterable(batch.result() for batch in filled.batches)
    records: dict[str, FrameRecord] = {}
    notes: dict[str, str] = {}
    for frame in filled.frames:
        seen = corrected(frame, list(islice(views, int(frame.view_valid.sum()))), binning)
        note = ", ".join([*filter(None, [frame.note]), *_notes(frame, seen, writer.identity.camera_names)])
        if note:
            notes[frame.id] = note
        try:
            records[frame.id] = frame_record(frame, seen, writer.identity, bin_spec)
        except FrameError as error:
            quarantined[frame.id] = str(error)
    frame_ids = [writer.frame_ids[i] for i in writer.frame_range(shard)]
    writer.commit(shard, [records.get(frame_id) for frame_id in frame_ids], quarantined, notes)
    claims.release(shard)
    return TeacherCacheReport(shards_written=1, frames_written=len(records))


def _notes(frame: PreparedFrame, seen: Sequence[SeenView], camera_names: Sequence[str]) -> list[str]:
    """Notes about cameras: the teacher sees no depth order, as behind a covered lens; LiDAR has not corrected it.

    A frame in which no camera was corrected says so once.
    """
    names = [camera_names[i] for i in np.flatnonzero(frame.view_valid).tolist()]
    constant = [f"{name} {CONSTANT_NOTE}" for name, view in zip(names, seen, strict=True) if view.constant]
    kept = [name for name, view in zip(names, seen, strict=True) if view.corrected is False]
    which = ["every camera"] if len(kept) == len(names) else kept
    return constant + [f"{name} {UNCORRECTED_NOTE}" for name in which]


@contextmanager
def _one_thread_per_lane(lanes: int) -> Iterator[None]:
    before = torch.get_num_threads()
    if lanes > 1:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
