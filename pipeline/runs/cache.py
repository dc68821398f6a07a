"""`surround cache`: predicts the size of a cache, verifies its files and values, asks the teacher again."""

import os
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from data_cache.errors import FrameError, SourceError
from data_cache.shards.encodings import ENCODINGS
from data_cache.shards.reader import CacheReader, cache_status, verify_files
from data_cache.sources.selectors import spread
from data_cache.storage.locations import open_store
from pipeline.recipe.config import Recipe, load_recipe
from pipeline.recipe.run_folder import RunFolder, cache_location
from pipeline.runs.stage_one import decided_identity, open_run_stage_one, open_stage_one, with_begun_runtime
from stages.caching.size import PredictedSize, SampledFrame, predict_size, sample_frames
from stages.caching.verify import Recomputed, content_faults, recompute
from stages.compute.progress import progress_bar


@dataclass(frozen=True)
class PredictedSizes:
    """The predicted size of a recipe's cache in each encoding."""

    frame_count: int
    sampled_count: int
    sizes: tuple[PredictedSize, ...]
    location: str
    free_bytes: int | None


def run_cache_size(recipe: Recipe, folder: RunFolder, sample_count: int) -> PredictedSizes:
    """Predict the size of a recipe's cache from a few evenly spread frames; writes nothing."""
    stage = open_run_stage_one(recipe, folder)
    frame_ids = stage.frames.ordered
    sampled = spread(frame_ids, sample_count)
    identity = stage.identity
    with progress_bar(len(sampled), 0, "cache size", "frame") as bar:
        samples: list[SampledFrame] = []
        for frame_id in sampled:
            with suppress(FrameError):  # teacher-cache will quarantine it
                samples += sample_frames(
                    stage.source, stage.teacher, stage.binning, [frame_id], identity.image_size, identity.prob_size
                )
            bar.update()
    if not samples:
        raise SourceError(f"none of the {len(sampled)} sampled frames can be read; see `surround teacher-cache`")
    sizes = []
    for encoding in ENCODINGS:
        variant = replace(stage, recipe=replace(recipe, bins=replace(recipe.bins, encoding=encoding)))
        sizes.append(predict_size(samples, variant.identity, variant.recipe.bins))
    store = open_store(cache_location(recipe, folder))
    return PredictedSizes(len(frame_ids), len(samples), tuple(sizes), store.location, store.free_bytes())


@dataclass(frozen=True)
class VerifiedCache:
    """What was verified, its faults, one line each, and the quarantined frames with their reasons."""

    shard_count: int
    shards_done: int
    frames_checked: int
    faults: tuple[str, ...]
    quarantined: dict[str, str]

    @property
    def complete(self) -> bool:
        """Whether every shard is done."""
        return self.shards_done == self.shard_count


def run_cache_verify(location: str) -> VerifiedCache:
    """Check every receipt, checksum and value of the shards that are done."""
    status = cache_status(location)
    identity = status.identity
    reader = CacheReader(location, complete=False)
    faults: list[str] = []
    frames_checked = 0
    with progress_bar(identity.shard_count, 0, "verify", "shard") as bar:
        for shard, damages in verify_files(location):
            faults += damages
            if shard >= 0:
                bar.update()
            if shard < 0 or damages:
                continue
            for frame_id in reader.usable(tuple(reader.frames.ordered[i] for i in identity.shard_range(shard))):
                faults += content_faults(reader, frame_id, status.notes.get(frame_id, ""))
                frames_checked += 1
    return VerifiedCache(identity.shard_count, status.shards_done, frames_checked, tuple(faults), status.quarantined)


def run_recompute(
    target: str, location: str, frame_count: int, data: Path | None, run: Path | None = None
) -> tuple[Recomputed, ...]:
    """Ask the teacher again about random frames of a cache.

    Args:
        target: the run or cache folder, whose recorded recipe is used, or the recipe itself.
        location: of the cache.
        frame_count: how many frames.
        data: data set folder, if it has moved.
        run: run folder, whose recorded recipe is used rather than that of the target.

    Raises:
        StaleCacheError: if recipe or weights are not those of the cache.
    """
    folders = (run or Path(target), Path(target).parent)
    recorded = next((path for folder in folders if (path := RunFolder(folder).recipe).is_file()), None)
    recipe = load_recipe(str(recorded) if recorded is not None else target, data=data)
    # Fitted bins come from the cache itself, which may have been copied without its run folder.
    knots = CacheReader(location, expected=decided_identity(recipe)).identity.bin_knots
    stage = open_stage_one(with_begun_runtime(recipe, location), knots)
    reader = CacheReader(location, expected=asdict(stage.identity))
    seed = int.from_bytes(os.urandom(4))
    with progress_bar(frame_count, 0, "recompute", "frame") as bar:
        done = []
        for frame in recompute(reader, stage.source, stage.teacher, stage.binning, frame_count, seed):
            done.append(frame)
            bar.update()
    return tuple(done)
