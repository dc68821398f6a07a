"""Stage one in this process, from a source in memory and by a tiny teacher."""

import dataclasses
from pathlib import Path

from data_cache.shards.identity import Resolved, SplitFrames
from data_cache.shards.writer import CacheWriter
from data_cache.sources.selectors import select
from stages.caching.identity import cache_identity, recipe_identity
from stages.caching.spec import TeacherCacheSpec
from stages.targets.binning import resolve_binning
from stages.targets.spec import BinSpec
from stages.teacher.transformers_depth import TransformersTeacher
from stages.teacher_cache import teacher_cache
from support.fakes import STUDENT_SIZE, TEACHER_SIZE, FakeSource, tiny_teacher

SPEC = TeacherCacheSpec(input_size=TEACHER_SIZE, shard_frames=2, batch_images=4)
BINS = BinSpec(prob_stride=4)


def write_teacher_cache(
    root: Path,
    source: FakeSource,
    folder: Path,
    bin_spec: BinSpec = BINS,
    *,
    part=(1, 1),
    retry_quarantined=False,
    tokens=False,
    **options,
):
    """Plan and write, as the command does."""
    writer, teacher = open_writer(root, source, folder, bin_spec, tokens=tokens)
    binning = resolve_binning(bin_spec, teacher.space, None)
    shards = writer.pending(part=part, retry_quarantined=retry_quarantined)
    return teacher_cache(
        source,
        teacher,
        writer,
        bin_spec,
        binning,
        shards,
        batch_images=4,
        retry_quarantined=retry_quarantined,
        **options,
    )


def open_writer(
    root: Path, source: FakeSource, folder: Path, bin_spec: BinSpec = BINS, *, tokens: bool = False
) -> tuple[CacheWriter, TransformersTeacher]:
    teacher = tiny_teacher(folder)
    frames = SplitFrames(select(source, ["d"]), ())
    decided = recipe_identity("fake", ("d",), (), dataclasses.replace(SPEC, tokens=tokens), bin_spec, STUDENT_SIZE)
    identity = cache_identity(decided, source, frames, teacher)
    return CacheWriter(root, identity, Resolved("fp32", SPEC.batch_images, 1), frames), teacher
