"""The data set of a recipe, and the frames that its splits select."""

from contextlib import suppress
from pathlib import Path

from data_cache.errors import SourceError
from data_cache.files import count_text
from data_cache.shards.errors import CacheError
from data_cache.shards.identity import SplitFrames, load_description
from data_cache.shards.reader import read_split_frames
from data_cache.sources.base import Source
from data_cache.sources.registry import open_source
from data_cache.sources.selectors import first, select
from data_cache.storage.locations import open_store
from pipeline.errors import RecipeError
from pipeline.recipe.config import DataSpec, Recipe
from pipeline.recipe.run_folder import RunFolder, cache_location
from stages.evaluation.protocols import PROTOCOLS, measured_frames, require_full_count


def open_data(data: DataSpec) -> Source:
    """The data set of a recipe."""
    root, masks = (Path(folder) if folder else None for folder in (data.root, data.masks))
    return open_source(
        data.source,
        root,
        data.version,
        masks=masks,
        lidar=data.lidar,
        nearby_sweep_s=data.nearby_sweep_s,
    )


def select_frames(data: DataSpec, source: Source, selectors: tuple[str, ...]) -> tuple[str, ...]:
    """Ids of the frames that selectors of a recipe select, within its limits."""
    return first(source, select(source, selectors), drives=data.limit_scenes, frames=data.limit_frames)


def frames_to_learn(data: DataSpec, source: Source) -> SplitFrames:
    """Ids of the frames that a cache of a recipe holds."""
    return SplitFrames(select_frames(data, source, data.train), select_frames(data, source, data.selection))


def lidar_frames(data: DataSpec, train: tuple[str, ...]) -> frozenset[str] | None:
    """Ids of the training frames whose LiDAR teaches; None for all of them. Needs the data set if not all do.

    Raises:
        RecipeError: if data.lidar_drives selects no training frame.
    """
    if not data.lidar_drives:
        return None
    found = frozenset(select(open_data(data), data.lidar_drives)) & frozenset(train)
    if not found:
        raise RecipeError(
            f"data.lidar_drives: {list(data.lidar_drives)} selects none of the {count_text(len(train), 'frame')} of"
            f" data.train, the first of which is {train[0]!r}"
        )
    return found


def refuse_leak(frames: SplitFrames, test: tuple[str, ...]) -> None:
    """Raise RecipeError if a test frame is also learnt from."""
    shared = set(frames.ordered) & set(test)
    if shared:
        raise RecipeError(
            f"data.test: {count_text(len(shared), 'frame')} both learnt from and tested on, {min(shared)!r} among them;"
            " make test disjoint from train and selection"
        )


def frames_to_test(recipe: Recipe, source: Source) -> tuple[str, ...]:
    """Ids of the frames that a recipe tests on and its protocol measures.

    A published split must be whole, unless the recipe limits it.
    """
    protocol = PROTOCOLS[recipe.eval.protocol]
    selected = select_frames(recipe.data, source, recipe.data.test)
    frame_ids = measured_frames(protocol, source, selected)
    if not frame_ids:
        raise RecipeError(
            f"data.test: protocol {protocol.name} measures none of its {len(selected)} frames: it leaves out the first"
            " and the last one of each drive"
        )
    if selected == select(source, recipe.data.test):
        require_full_count(protocol, source, recipe.data.test, frame_ids)
    return frame_ids


def learnt_from(recipe: Recipe, folder: RunFolder, source: Source) -> SplitFrames:
    """Frames that the run's student has learnt from, by its cache, else by the recipe if the data set is here."""
    try:
        store = open_store(cache_location(recipe, folder))
        identity, _ = load_description(store)
        return read_split_frames(store, identity)
    except CacheError:
        with suppress(SourceError):
            return frames_to_learn(recipe.data, source)
    return SplitFrames((), ())
