"""Verification of a cache beyond its checksums: its values are checked, and the teacher's output is recomputed."""

import random
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from data_cache.shards.encodings import WindowBins, map_arrays
from data_cache.shards.errors import DamagedCacheError
from data_cache.shards.identity import CacheIdentity
from data_cache.shards.reader import CacheReader
from data_cache.shards.records import FrameRecord, record_arrays
from data_cache.sources.base import Source
from stages.caching.products import CONSTANT_NOTE, corrected, frame_record, look
from stages.caching.teacher_input import prepare_frame
from stages.targets import bins
from stages.targets.binning import Binning
from stages.targets.spec import BinSpec
from stages.teacher.base import Teacher

SUM_TOLERANCE = 1e-5


@dataclass(frozen=True)
class Recomputed:
    """How a stored frame differs from the same frame recomputed.

    Attributes:
        frame_id: id of the frame.
        prob_mean, prob_max: absolute difference of bin probabilities, mean and largest over pixels and bins.
        top_bin_changed: share of pixels with another most probable bin.
        relation_max: largest absolute difference of view relations.
        inputs_equal: whether images, LiDAR depth, intrinsics and poses are equal.
    """

    frame_id: str
    prob_mean: float
    prob_max: float
    top_bin_changed: float
    relation_max: float
    inputs_equal: bool


def stored_spec(identity: CacheIdentity) -> BinSpec:
    """The bin settings of a cache; defaults for those that are chosen when it is read."""
    default = BinSpec()
    return BinSpec(
        count=identity.bin_count or default.count,
        sigma=identity.bin_sigma or default.sigma,
        encoding=identity.encoding,
        window=identity.window_width or default.window,
        prob_stride=identity.image_size[0] // identity.prob_size[0],
    )


def content_faults(reader: CacheReader, frame_id: str, note: str) -> list[str]:
    """Faults in the values of one frame, one line each; empty if there are none.

    All values must be finite, the probabilities must sum to one at every pixel of every valid view, and no view may be
    constant unless stage one noted that.

    Args:
        reader: the cache.
        frame_id: a frame that is not quarantined.
        note: stage one's note about the frame.
    """
    try:
        record = reader.read(frame_id)
    except DamagedCacheError as error:
        return [str(error)]
    where = f"{reader.store.location}: frame {frame_id}"
    faults = [
        f"{where}: {name} is not finite"
        for name, values in record_arrays(record).items()
        if values.dtype.kind == "f" and not np.isfinite(values).all()
    ]
    spec = stored_spec(reader.identity)
    if isinstance(record.bins, WindowBins) and int(record.bins.bin_first.max()) + spec.window > spec.count:
        return [*faults, f"{where}: bin_first points beyond the last of {spec.count} bins"]
    prob = _probabilities(record, spec)
    for i in np.flatnonzero(record.view_valid).tolist():
        name = reader.identity.camera_names[i]
        off = (prob[i].sum(0) - 1).abs().max().item()
        if not off <= SUM_TOLERANCE:
            faults.append(f"{where}: probabilities of {name} sum to one only within {off:.1e}")
        if (prob[i] == prob[i][:, :1, :1]).all() and f"{name} {CONSTANT_NOTE}" not in note:
            faults.append(f"{where}: probabilities of {name} are the same everywhere")
    return faults


def recompute(
    reader: CacheReader, source: Source, teacher: Teacher, binning: Binning, frame_count: int, seed: int
) -> Iterator[Recomputed]:
    """Run the teacher again on random frames of a cache and compare.

    Args:
        reader: the cache.
        source, teacher, binning: those with which the cache was made.
        frame_count: number of frames, at most all usable ones.
        seed: seed of the choice of frames.

    Raises:
        FrameError: if a frame can no longer be read.
    """
    identity, spec = reader.identity, stored_spec(reader.identity)
    usable = reader.usable(reader.frames.ordered)
    for frame_id in random.Random(seed).sample(usable, min(frame_count, len(usable))):
        frame = prepare_frame(source, frame_id, teacher.input_size, identity.image_size)
        seen = corrected(frame, look(teacher, frame.teacher_images, identity.prob_size, binning), binning)
        now = frame_record(frame, seen, identity, spec)
        then = reader.read(frame_id)
        there = torch.from_numpy(then.view_valid)
        new, old = (_probabilities(record, spec)[there] for record in (now, then))
        yield Recomputed(
            frame_id,
            (new - old).abs().mean().item(),
            (new - old).abs().max().item(),
            (new.argmax(1) != old.argmax(1)).float().mean().item(),
            float(np.abs(now.relation.astype(np.float32) - then.relation.astype(np.float32)).max()),
            all(
                np.array_equal(getattr(now, name), getattr(then, name))
                for name in ("image", "lidar_depth", "view_valid", "intrinsics", "world_from_cam")
            ),
        )


def _probabilities(record: FrameRecord, spec: BinSpec) -> torch.Tensor:
    return bins.decode(map_arrays(torch.from_numpy, record.bins), spec)
