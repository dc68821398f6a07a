"""How large a cache will be, per encoding, from a few frames that are really encoded."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from data_cache.shards.identity import CacheIdentity
from data_cache.shards.records import record_arrays
from data_cache.shards.schema import array_table
from data_cache.shards.writer import encode_shard
from data_cache.sources.base import Source
from stages.caching.products import SeenView, frame_record, look
from stages.caching.teacher_input import PreparedFrame, prepare_frame
from stages.targets.binning import Binning
from stages.targets.bins import BinSpec
from stages.teacher.base import Teacher


@dataclass(frozen=True)
class PredictedSize:
    """What one encoding takes.

    Attributes:
        encoding: its name.
        bins_bytes: per frame, of what the teacher said about order and neighbours.
        frame_bytes: per frame, all arrays.
        total_bytes, file_count: of the whole cache.
    """

    encoding: str
    bins_bytes: float
    frame_bytes: float
    total_bytes: float
    file_count: int


@dataclass(frozen=True, eq=False)
class SampledFrame:
    """A frame with what the teacher says about it, not yet encoded."""

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
    """Read frames and ask the teacher about them, as stage one does. Raises FrameError."""
    frames = [prepare_frame(source, frame_id, teacher.input_size, image_size) for frame_id in frame_ids]
    return [SampledFrame(frame, look(teacher, frame.teacher_images, prob_size, binning)) for frame in frames]


def predict_size(samples: Sequence[SampledFrame], identity: CacheIdentity, spec: BinSpec) -> PredictedSize:
    """Encode the samples as the cache of `identity` would hold them, and extrapolate to all of its frames.

    Args:
        samples: at least one.
        identity: of the cache; its encoding is that of `spec`.
        spec: bins.
    """
    arrays = [record_arrays(frame_record(sample.frame, sample.seen, identity, spec)) for sample in samples]
    sizes = {
        name: len(encode_shard(array, np.stack([a[name] for a in arrays]), len(samples))) / len(samples)
        for name, array in array_table(identity).items()
    }
    said = sum(size for name, size in sizes.items() if name.startswith("bin_") or name == "relation")
    per_frame = sum(sizes.values())
    # A receipt per shard, its array files, and the metadata: group, arrays, description, frame list, claims.
    file_count = identity.shard_count * (len(sizes) + 1) + len(sizes) + 4
    return PredictedSize(identity.encoding, said, per_frame, per_frame * identity.frame_count, file_count)
