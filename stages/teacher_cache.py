"""Stage one: run the teacher over every frame, once, and keep what it says about order and about neighbours."""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from data_cache.errors import FrameError
from data_cache.images import resize_rgb
from data_cache.rig import Rig
from data_cache.schema import (
    ENCODINGS,
    FORMAT_VERSION,
    CacheIdentity,
    FrameRecord,
    SplitFrames,
    StoredBins,
    bin_table,
    map_arrays,
    pack_depth,
)
from data_cache.sources import Source
from data_cache.views import RigViews, load_native_images, rig_views
from data_cache.writer import CacheWriter
from stages import bins, relations
from stages.bins import BinSpec
from stages.devices import require_known
from stages.progress import Preempted, progress_bar
from stages.teacher.base import Teacher, to_disparity

PREFETCH_FRAMES = 3
PREFETCH_THREADS = 2


@dataclass(frozen=True, kw_only=True)
class TeacherCacheSpec:
    """How stage one runs.

    Attributes:
        weights: a name that `surround weights` knows, or a folder with a transformers depth model.
        input_size: (H, W) that the teacher sees, multiples of its patch.
        precision, device: auto, or as named in stages/devices.py.
        batch_images: images per forward pass, over views and frames.
        shard_frames: frames per shard, the unit of work.
    """

    weights: str = "depth-anything-v2-small"
    input_size: tuple[int, int]
    precision: str = "auto"
    device: str = "auto"
    batch_images: int = 6
    shard_frames: int = 32

    def __post_init__(self) -> None:
        require_known(self.device, self.precision)
        if min(self.input_size) < 14:
            raise ValueError(f"input_size: expected sides of at least 14 px, got {list(self.input_size)}")
        if self.batch_images < 1 or self.shard_frames < 1:
            raise ValueError(
                f"expected batch_images and shard_frames >= 1, got {self.batch_images} and {self.shard_frames}"
            )


@dataclass(frozen=True)
class TeacherCacheReport:
    """What a run of stage one did."""

    shards_written: int
    shards_skipped: int
    frames_written: int
    quarantined: dict[str, str]
    notes: dict[str, str]
    seconds: float


def recipe_identity(
    source: str,
    train: tuple[str, ...],
    selection: tuple[str, ...],
    spec: TeacherCacheSpec,
    bin_spec: BinSpec,
    image_size: tuple[int, int],
) -> dict[str, object]:
    """The fields of the cache identity that a recipe decides; stage two insists on them.

    Args:
        source: name of the data set.
        train, selection: selectors of the splits to hold.
        spec, bin_spec: sections of the recipe.
        image_size: the student's input size.
    """
    stride = bin_spec.prob_stride
    settings = {"window_width": bin_spec.window, "bin_count": bin_spec.count, "bin_sigma": bin_spec.sigma}
    needed = ENCODINGS[bin_spec.encoding].settings
    return {
        "format_version": FORMAT_VERSION,
        "source": source,
        "train": train,
        "selection": selection,
        "image_size": image_size,
        "prob_size": (image_size[0] // stride, image_size[1] // stride),
        "encoding": bin_spec.encoding,
        **{name: value if name in needed else None for name, value in settings.items()},
        "bin_definition": bins.DEFINITION,
        "relation_grid": relations.GRID,
        "relation_definition": relations.DEFINITION,
        "shard_frames": spec.shard_frames,
        "teacher_name": Path(spec.weights).name,
        "teacher_input_size": spec.input_size,
    }


def cache_identity(decided: Mapping[str, Any], rig: Rig, frames: SplitFrames, teacher: Teacher) -> CacheIdentity:
    """The whole identity: what the recipe decides, the frames found, and the teacher's weights."""
    return CacheIdentity(
        **decided,
        camera_names=rig.camera_names,
        frame_count=len(frames.ordered),
        frames_sha256=frames.sha256(),
        teacher_licence=teacher.licence,
        teacher_weights_sha256=teacher.weights_sha256,
        teacher_preprocessing=teacher.preprocessing,
    )


def teacher_cache(
    source: Source,
    teacher: Teacher,
    writer: CacheWriter,
    bin_spec: BinSpec,
    *,
    batch_images: int,
    part: tuple[int, int] = (1, 1),
    retry_quarantined: bool = False,
    should_stop: Callable[[], bool] = lambda: False,
) -> TeacherCacheReport:
    """Fill every pending shard of `writer`. Running it twice does nothing the second time.

    A frame that cannot be read, or about which the teacher says nothing finite, is quarantined with its reason.

    Raises:
        Preempted: if `should_stop` says so between two frames; the open shard is dropped, finished ones are kept.
        CacheError: if the cache cannot be written.
    """
    begin = time.perf_counter()
    pending = writer.pending(part=part, retry_quarantined=retry_quarantined)
    in_part = len(range(part[0] - 1, writer.identity.shard_count, part[1]))
    quarantined: dict[str, str] = {}
    notes: dict[str, str] = {}
    frames_written = 0
    total = sum(len(writer.frame_range(shard)) for shard in pending)
    with progress_bar(total, 0, "teacher-cache", "frame") as bar, ThreadPoolExecutor(PREFETCH_THREADS) as pool:
        for shard in pending:
            frame_ids = [writer.frame_ids[i] for i in writer.frame_range(shard)]
            prepared = _prefetched(pool, source, frame_ids, teacher.input_size, writer.identity.image_size)
            looked = _Looked(teacher, bin_spec, writer.identity.prob_size, batch_images)
            frames: list[_Prepared] = []
            for frame in prepared:
                if should_stop():
                    raise Preempted(f"stopped before shard {shard} was finished; finished shards are kept")
                frames.append(frame)
                looked.add(frame.teacher_images)
                bar.update()
            views = iter(looked.finish())
            records = []
            shard_quarantine: dict[str, str] = {}
            shard_notes = {frame.id: frame.note for frame in frames if frame.note}
            for frame in frames:
                seen = list(islice(views, len(frame.teacher_images)))
                reason = frame.reason or next((view.reason for view in seen if view.reason), "")
                if reason:
                    shard_quarantine[frame.id] = reason
                records.append(None if reason or frame.views is None else _record(frame.views, seen, writer.identity))
            writer.commit(shard, records, shard_quarantine, shard_notes)
            quarantined |= shard_quarantine
            notes |= shard_notes
            frames_written += sum(record is not None for record in records)
    seconds = time.perf_counter() - begin
    return TeacherCacheReport(len(pending), in_part - len(pending), frames_written, quarantined, notes, seconds)


@dataclass(frozen=True, eq=False)
class _Prepared:
    """A frame ready for the teacher: images of the views it has, or the reason why not."""

    id: str
    teacher_images: list[UInt8[np.ndarray, "H W 3"]]
    views: RigViews | None
    reason: str = ""
    note: str = ""


@dataclass(frozen=True, eq=False)
class _SeenView:
    """What the teacher said about one view."""

    bins: StoredBins[Tensor]
    tokens: Float[Tensor, "P C"]
    reason: str


def _prepare(source: Source, frame_id: str, teacher_size: tuple[int, int], image_size: tuple[int, int]) -> _Prepared:
    try:
        frame = source.frame(frame_id)
        native = load_native_images(frame)
        sweep = frame.load_sweep() if frame.load_sweep is not None else None
        views = rig_views(frame, native, sweep, image_size)
    except FrameError as error:
        return _Prepared(frame_id, [], None, reason=str(error))
    if not views.view_valid.any():
        return _Prepared(frame_id, [], None, reason=f"frame {frame_id}: expected at least one camera, found none")
    missing = [name for name, there in zip(source.rig.camera_names, views.view_valid, strict=True) if not there]
    notes = [f"no {name}" for name in missing]
    if sweep is None:
        notes.append("no LiDAR sweep")
    elif sweep.dropped_count:
        notes.append(f"{sweep.dropped_count} LiDAR points are not finite and were left out; {len(sweep.points_m)} stay")
    note = ", ".join(notes)
    return _Prepared(frame_id, [resize_rgb(rgb, teacher_size) for rgb in native if rgb is not None], views, note=note)


def _prefetched(
    pool: ThreadPoolExecutor,
    source: Source,
    frame_ids: Iterable[str],
    teacher_size: tuple[int, int],
    image_size: tuple[int, int],
) -> Iterator[_Prepared]:
    """Frames in order, read a few ahead while the teacher is busy; memory is bounded by PREFETCH_FRAMES."""
    jobs = iter(pool.submit(_prepare, source, frame_id, teacher_size, image_size) for frame_id in frame_ids)
    ahead = deque(islice(jobs, PREFETCH_FRAMES))
    while ahead:
        done = ahead.popleft().result()
        ahead.extend(islice(jobs, 1))
        yield done


class _Looked:
    """Gathers images into full batches across views and frames; keeps only the small products."""

    def __init__(self, teacher: Teacher, spec: BinSpec, prob_size: tuple[int, int], batch_images: int):
        self._teacher, self._spec, self._prob_size, self._batch = teacher, spec, prob_size, batch_images
        self._waiting: list[UInt8[np.ndarray, "H W 3"]] = []
        self._seen: list[_SeenView] = []

    def add(self, images: list[UInt8[np.ndarray, "H W 3"]]) -> None:
        self._waiting += images
        while len(self._waiting) >= self._batch:
            self._look(self._waiting[: self._batch])
            del self._waiting[: self._batch]

    def finish(self) -> list[_SeenView]:
        if self._waiting:
            self._look(self._waiting)
        return self._seen

    def _look(self, images: list[UInt8[np.ndarray, "H W 3"]]) -> None:
        output = self._teacher(torch.from_numpy(np.stack(images)))
        disparity = to_disparity(output.prediction, self._teacher.space)
        u = bins.affine_invariant_map(disparity, self._prob_size)
        stored = map_arrays(Tensor.cpu, bins.encode(u, self._spec))
        tokens = relations.pool_tokens(output.features).cpu()
        finite = torch.isfinite(disparity).all(-1).all(-1) & torch.isfinite(tokens).all(-1).all(-1).to(disparity.device)
        for i, good in enumerate(finite.tolist()):
            reason = "" if good else f"teacher {self._teacher.name} gave values that are not finite"
            self._seen.append(_SeenView(map_arrays(itemgetter(i), stored), tokens[i], reason))


def _record(views: RigViews, seen: list[_SeenView], identity: CacheIdentity) -> FrameRecord:
    """Join the views of a frame with what the teacher said about those that are there."""
    V, P = identity.view_count, relations.GRID[0] * relations.GRID[1]
    there = np.flatnonzero(views.view_valid)
    stored = {name: np.zeros(spec.shape, spec.dtype) for name, spec in bin_table(identity).items()}
    relation = np.zeros((V, P, P), np.float16)
    if len(there):
        tokens = torch.zeros(V, *seen[0].tokens.shape)
        for i, view in zip(there, seen, strict=True):
            tokens[i] = view.tokens
            for name, array in stored.items():
                array[i] = getattr(view.bins, name).numpy()
        # Tokens of a missing view are zeros, and so are its relations: a gap is not bridged.
        relation = relations.ring_relations(tokens).numpy().astype(np.float16)
    return FrameRecord(
        image=views.image,
        lidar_depth=pack_depth(views.lidar_depth_m),
        bins=ENCODINGS[identity.encoding](**stored),
        relation=relation,
        view_valid=views.view_valid,
        intrinsics=views.intrinsics,
        world_from_cam=views.world_from_cam,
    )
