"""Cached frames as torch tensors: images, calibration, LiDAR depth and the teacher's targets."""

import math
import multiprocessing
import os
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from operator import itemgetter
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Float64, UInt8
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from data_cache.errors import SurroundError
from data_cache.metres import read_metres
from data_cache.shards.encodings import StoredBins, map_arrays
from data_cache.shards.reader import CacheReader
from data_cache.shards.records import FrameCameras, FrameRecord, unpack_depth_m
from data_cache.stop_signals import deaf_children

MIN_MOVED_M, MAX_MOVED_M = 0.2, 15.0
"""Limits on the motion between neighbours in time: below there is no parallax; above, the scene or drive changes."""
AT_MOST_APART = 8
"""So many frames before and after are looked at: cameras of 30 Hz see 0.2 m in 8 frames from 0.75 m/s on."""


class LoaderError(SurroundError):
    """A worker process that reads batches ahead has died."""


@dataclass(frozen=True, eq=False)
class CachedViews:
    """What the cameras of a rig saw at one moment: one frame (no leading axis) or a batch of frames (leading B).

    Attributes:
        image: RGB bytes.
        intrinsics: pixels of `image`, pixel centres at half-integers; the identity for missing cameras.
        rig_from_cam: poses in a frame that all views of a rig share, with its origin close enough for float32; its axes
            are those of the first valid camera (x right, y down, z forward). The identity for missing cameras.
        view_valid: False for missing cameras.
    """

    image: UInt8[Tensor, "*B V 3 H W"]
    intrinsics: Float[Tensor, "*B V 3 3"]
    rig_from_cam: Float[Tensor, "*B V 4 4"]
    view_valid: Bool[Tensor, "*B V"]


@dataclass(frozen=True, eq=False)
class CachedRigs(CachedViews):
    """Views with their LiDAR depth and the teacher's targets.

    Attributes:
        frame_ids: one per frame.
        lidar_depth_m: metres, 0 = no return.
        bins: the teacher's probabilities as stored; stages/targets/bins.py decodes them.
        relation: the teacher's view relations.
        tokens: the teacher's pooled features; C = 0 where the cache has none.
        teacher_fit: scale and shift in 1 / m that put the teacher's disparity of a view without LiDAR into metres
            (stages/targets/motion_fit.py); scale 0 where there is none. None if no frame has one.
        neighbour: the same rigs a moment before or after, with poses in the frame of `rig_from_cam`; a frame without
            such a neighbour has no valid view there. None if neighbours were not asked for.
    """

    frame_ids: tuple[str, ...]
    lidar_depth_m: Float[Tensor, "*B V H W"]
    bins: StoredBins[Tensor]
    relation: Float[Tensor, "*B V P P"]
    tokens: Float[Tensor, "*B V P C"]
    teacher_fit: Float[Tensor, "*B V 2"] | None = None
    neighbour: CachedViews | None = None

    @property
    def focal_px(self) -> Float[Tensor, "*B V"]:
        """Focal length fx of each view; 1 for missing cameras, which keeps their meaningless depths finite."""
        return self.intrinsics[..., 0, 0]

    def pin_memory(self) -> "CachedRigs":
        """Copy the tensors to pinned memory; the DataLoader calls this."""
        return map_rigs(Tensor.pin_memory, self)


class CachedFrames(Dataset[CachedRigs]):
    """Frames of a cache, indexed by position in `frame_ids`."""

    def __init__(
        self,
        reader: CacheReader,
        frame_ids: Sequence[str],
        *,
        neighbours: bool = False,
        lidar_ids: Collection[str] | None = None,
        teacher_fits: Mapping[str, Float[Tensor, "V 2"]] | None = None,
        metres: Mapping[str, Path] | None = None,
    ):
        """Serve frames of a cache.

        Args:
            reader: the cache.
            frame_ids: which frames, in this order.
            neighbours: serve each with its neighbour in time. That is always one of these frames: frames of another
                split must not teach.
            lidar_ids: frames that keep their LiDAR, the others are served without returns; None keeps all.
            teacher_fits: `CachedRigs.teacher_fit` of frames by id; frames that are not named have none.
            metres: files (data_cache/metres.py) that stand for the LiDAR of frames without.
        """
        self.reader, self.frame_ids, self.neighbours = reader, tuple(frame_ids), neighbours
        self.lidar_ids, self.teacher_fits, self.metres = lidar_ids, teacher_fits, metres or {}
        self._cameras: dict[int, FrameCameras] = {}  # of frames around those served: a rig that stands has many

    def read_from(self, reader: CacheReader) -> "CachedFrames":
        """The same frames, read from a copy of the cache."""
        return CachedFrames(
            reader,
            self.frame_ids,
            neighbours=self.neighbours,
            lidar_ids=self.lidar_ids,
            teacher_fits=self.teacher_fits,
            metres=self.metres,
        )

    def has_lidar(self, position: int) -> bool:
        """Whether a frame keeps its LiDAR."""
        return self.lidar_ids is None or self.frame_ids[position] in self.lidar_ids

    def __len__(self) -> int:
        return len(self.frame_ids)

    def __getitem__(self, position: int) -> CachedRigs:
        frame_id = self.frame_ids[position]
        record = self.reader.read(frame_id)
        world_from_rig = record.world_from_cam[np.argmax(record.view_valid)]
        tokens = record.tokens if record.tokens is not None else np.zeros((*record.relation.shape[:2], 0), np.float16)
        return CachedRigs(
            **vars(_views(record, record.image, world_from_rig)),
            frame_ids=(frame_id,),
            lidar_depth_m=torch.from_numpy(self._depth_m(position, record)),
            bins=map_arrays(_tensor, record.bins),
            relation=torch.from_numpy(record.relation).float(),
            tokens=torch.from_numpy(tokens).float(),
            teacher_fit=self._teacher_fit(position, len(record.view_valid)) if self.teacher_fits is not None else None,
            neighbour=self._neighbour(position, record, world_from_rig) if self.neighbours else None,
        )

    def moments(self, position: int) -> list[CachedViews]:
        """A frame and those just before and after it from which the rig has moved, with poses in the frame's axes."""
        record = self.reader.read_cameras(self.frame_ids[position])
        world_from_rig = record.world_from_cam[np.argmax(record.view_valid)]
        image = self.reader.read_image(self.frame_ids[position])
        return [_views(record, image, world_from_rig), *self._moved(position, record, world_from_rig)]

    def _neighbour(self, position: int, record: FrameRecord, world_from_rig: Float64[np.ndarray, "4 4"]) -> CachedViews:
        """One before, or else one after: most of what a rig sees ahead was visible from further back, too."""
        for views in self._moved(position, record, world_from_rig):
            return views
        nothing = _views(record, record.image, world_from_rig)
        return replace(nothing, view_valid=torch.zeros_like(nothing.view_valid))

    def _moved(
        self, position: int, cameras: FrameCameras, world_from_rig: Float64[np.ndarray, "4 4"]
    ) -> Iterator[CachedViews]:
        """The nearest frame before, and the nearest after, from which the rig has moved, in the same drive."""
        for direction in (-1, 1):
            for other in range(position + direction, position + (AT_MOST_APART + 1) * direction, direction):
                if not (0 <= other < len(self) and same_drive(self.frame_ids[position], self.frame_ids[other])):
                    break
                if (there := self._cameras.get(other)) is None:
                    there = self._cameras[other] = self.reader.read_cameras(self.frame_ids[other])
                if (moved := moved_m(cameras, there)) > MIN_MOVED_M:
                    if moved < MAX_MOVED_M:
                        yield _views(there, self.reader.read_image(self.frame_ids[other]), world_from_rig)
                    break

    def _depth_m(self, position: int, record: FrameRecord) -> Float32[np.ndarray, "V H W"]:
        """LiDAR of a frame, or what stands for it."""
        if self.has_lidar(position):
            return unpack_depth_m(record.lidar_depth)
        if (path := self.metres.get(self.frame_ids[position])) is None:
            return np.zeros(record.lidar_depth.shape, np.float32)
        return read_metres(path, record.lidar_depth.shape, self.frame_ids[position])

    def _teacher_fit(self, position: int, view_count: int) -> Float[Tensor, "V 2"]:
        assert self.teacher_fits is not None
        return self.teacher_fits.get(self.frame_ids[position], torch.zeros(view_count, 2))


def same_drive(frame_id: str, other_id: str) -> bool:
    """Whether two frames may belong to one drive: their ids agree up to the last slash.

    The cache stores no drives, and poses cannot tell them apart: each drive of PandaSet and of the synthetic source
    begins near the origin of its own world.
    """
    return frame_id.rpartition("/")[0] == other_id.rpartition("/")[0]


def moved_m(cameras: FrameCameras, other: FrameCameras) -> float:
    """Distance in metres between the positions of the first camera that both frames have; infinite if none is."""
    both = cameras.view_valid & other.view_valid
    if not both.any():
        return math.inf
    view = np.argmax(both)
    return float(np.linalg.norm(cameras.world_from_cam[view, :3, 3] - other.world_from_cam[view, :3, 3]))


def _views(
    cameras: FrameCameras, image: UInt8[np.ndarray, "V H W 3"], world_from_rig: Float64[np.ndarray, "4 4"]
) -> CachedViews:
    valid = cameras.view_valid
    # A missing camera shows the first valid camera's image, so that black frames do not enter batch statistics;
    # `view_valid` keeps it out of every loss.
    shown = np.where(valid, np.arange(len(valid)), np.argmax(valid))
    # In float64: world coordinates reach kilometres, where float32 would lose centimetres.
    rig_from_cam = np.linalg.solve(world_from_rig, cameras.world_from_cam)
    there = valid[:, None, None]
    return CachedViews(
        image=torch.from_numpy(image[shown]).permute(0, 3, 1, 2),
        intrinsics=torch.from_numpy(np.where(there, cameras.intrinsics, np.eye(3, dtype=np.float32))),
        rig_from_cam=torch.from_numpy(np.where(there, rig_from_cam, np.eye(4)).astype(np.float32)),
        view_valid=torch.from_numpy(valid),
    )


def map_rigs(function: Callable[..., Tensor], *rigs: CachedRigs) -> CachedRigs:
    """Apply `function` to corresponding tensors of one or several rigs; their frame ids are concatenated."""
    return cast("CachedRigs", _map(function, *rigs))


def _map(function: Callable[..., Tensor], *parts: Any) -> Any:
    first = parts[0]
    if first is None:
        return None
    if isinstance(first, Tensor):
        return function(*parts)
    if isinstance(first, tuple):
        return tuple(frame_id for part in parts for frame_id in part)
    return type(first)(**{f.name: _map(function, *(getattr(p, f.name) for p in parts)) for f in fields(first)})


def collate(rigs: Sequence[CachedRigs]) -> CachedRigs:
    """Stack frames into a batch."""
    return map_rigs(lambda *tensors: torch.stack(tensors), *rigs)


def single(rigs: CachedRigs, i: int) -> CachedRigs:
    """Frame `i` of a batch."""
    return replace(map_rigs(itemgetter(i), rigs), frame_ids=(rigs.frame_ids[i],))


def _tensor(array: np.ndarray) -> Tensor:
    # uint16 tensors can hardly be indexed or stacked.
    return torch.from_numpy(array.astype(np.int32) if array.dtype == np.uint16 else array)


@contextmanager
def batches(
    dataset: CachedFrames, order: Sequence[list[int]], workers: int, *, pin_memory: bool = False
) -> Iterator[Iterator[CachedRigs]]:
    """Iterate over batches in the given order, whatever the number of workers.

    Workers end with the context. They ignore stop signals, so a worker that outlived it would keep this process alive.
    Workers are spawned, never forked: forked ones deadlock in some codecs once the parent has read.

    Args:
        dataset: the frames.
        order: positions of each batch.
        workers: processes that read ahead; 0 to read in this process.
        pin_memory: deliver batches in pinned memory, for a GPU.

    Raises:
        SurroundError: during iteration, if a frame cannot be read; LoaderError if a worker has died.
    """
    loader = DataLoader(
        _FramesOrErrors(dataset),
        batch_sampler=order,
        num_workers=workers,
        collate_fn=_collate_or_error,
        pin_memory=pin_memory,
        multiprocessing_context="spawn" if workers else None,
        worker_init_fn=_end_with_parent,
    )
    if not workers:
        yield _raise_errors(iter(loader))
        return
    with deaf_children():
        reading = iter(loader)
    try:
        yield _raise_errors(reading)
    finally:
        # torch has no public call for this: it waits until the last reference is gone.
        reading._shutdown_workers()  # type: ignore[attr-defined]


def _end_with_parent(_: int) -> None:
    """End a worker when the process that started it is killed.

    Torch's own watchdog starts once a worker has imported everything. It misses a parent that was killed before that,
    and the worker, which ignores stop signals, would stay for ever.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


class _FramesOrErrors(Dataset[CachedRigs | SurroundError]):
    """Frames, or the error met while reading them: torch would turn an error raised in a worker into traceback text."""

    def __init__(self, frames: CachedFrames):
        self._frames = frames

    def __getitem__(self, position: int) -> CachedRigs | SurroundError:
        try:
            return self._frames[position]
        except SurroundError as error:
            return error


def _collate_or_error(rigs: Sequence[CachedRigs | SurroundError]) -> CachedRigs | SurroundError:
    errors = [rig for rig in rigs if isinstance(rig, SurroundError)]
    return errors[0] if errors else collate(cast("Sequence[CachedRigs]", rigs))


def _raise_errors(reading: Iterator[CachedRigs | SurroundError]) -> Iterator[CachedRigs]:
    while True:
        try:
            found = next(reading)
        except StopIteration:
            return
        # Torch raises RuntimeError, unless the worker died while handing over a batch: then the connection breaks.
        except (RuntimeError, EOFError, ConnectionError) as error:
            if isinstance(error, RuntimeError) and "DataLoader worker" not in str(error):
                raise
            raise LoaderError(
                f"a loader worker has died ({error!r}); it may have run out of memory, which includes /dev/shm: lower"
                " train_student.workers or the number of frames per step. The same command continues from the newest"
                " state"
            ) from error
        if isinstance(found, SurroundError):
            raise found
        yield found
