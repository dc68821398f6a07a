"""Prediction of a cache's size, per encoding, from a few frames that are actually encoded."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from data_cache.shards.identity import CacheIdentity
from data_cache.shards.records import record_arrays
from data_cache.shards.schema import array_table
from data_cache.shards.writer import encode_shard
from data_cache.sources.base import Source
from stages.caching.products import SeenView, corrected, frame_record, look
from stages.caching.teacher_input import PreparedFrame, prepare_frame
from stages.targets.binning import Binning
from stages.targets.spec import BinSpec
from stages.teacher.base import Teacher


@dataclass(frozen=True)
class PredictedSize:
    """The predicted size of a cache in one encoding.

    Attributes:
        encoding: name of the encoding.
        bins_bytes: bytes per frame of bins and relations.
        frame_bytes: bytes per frame of all arrays.
        total_bytes, file_count: bytes and files of the whole cache.
    """

    encoding: str
    bins_bytes: float
    frame_bytes: float
    total_bytes: float
    file_count: int


@dataclass(frozen=True, eq=False)
class SampledFrame:
    """A frame with the teacher's products, not yet encoded."""

    frame: PreparedFrame
    seen: list[SeenView]


def sample_frames(
    source: Source,
    teacher: Teacher,
    binning: Binning,
    frame_ids: Sequence[str],
    image_size: tuple[int, int],
    prob_size: tuple[int, int],
) -> list[SampledFrame]:
    """Read frames and run the teacher on them, as stage one does. Raises FrameError."""
    frames = [prepare_frame(source, frame_id, teacher.input_size, image_size) for frame_id in frame_ids]
    return [
        SampledFrame(frame, corrected(frame, look(teacher, frame.teacher_images, prob_size, binning), binning))
        for frame in frames
    ]


def predict_size(samples: Sequence[SampledFrame], identity: CacheIdentity, spec: BinSpec) -> PredictedSize:
    """Encode the samples as a cache of this `identity` holds them, and extrapolate to all its frames.

    Args:
        samples: at least one frame.
        identity: identity of the cache; its encoding is that of `spec`.
        spec: how bins are cut and stored.
    """
    arrays = [record_arrays(frame_record(sample.frame, sample.seen, identity, spec)) for sample in samples]
    sizes = {
        name: len(encode_shard(array, np.stack([a[name] for a in arrays]), len(samples))) / len(samples)
        for name, array in array_table(identity).items()
    }
    said = sum(size for name, size in sizes.items() if name.startswith("bin_") or name == "relation")
    per_frame = sum(sizes.values())
    # Per shard its receipt and array files; once the metadata: group, arrays, description, frame list, claims.
    file_count = identity.shard_count * (len(sizes) + 1) + len(sizes) + 4
    return PredictedSize(identity.encoding, said, per_frame, per_frame * identity.frame_count, file_count)
