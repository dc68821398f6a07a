"""Opens stage one of a recipe in one process: its source, its teacher and the cache that it fills."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch

from data_cache.errors import SourceError
from data_cache.shards.errors import CacheError
from data_cache.shards.identity import CacheIdentity, Resolved, SplitFrames, load_description
from data_cache.shards.writer import CacheWriter
from data_cache.sources.base import Source
from data_cache.sources.selectors import select, shown
from data_cache.storage.locations import open_store
from pipeline.errors import RecipeError
from pipeline.recipe.config import DataSpec, Recipe
from pipeline.recipe.run_folder import RunFolder, cache_location
from pipeline.runs.splits import frames_to_learn, open_data, refuse_leak, select_frames
from pipeline.weights.catalog import KNOWN, UNKNOWN_LICENCE
from pipeline.weights.fetch import WeightFolder, fetch_weights, find_weights
from pipeline.weights.hub import MODELS, PREFIX, cached_hub_weights, hub_weights, weights_sha256
from stages.caching.fit_bins import load_fitted, require_made_with
from stages.caching.identity import cache_identity, recipe_identity
from stages.compute.devices import resolve_device, resolve_precision
from stages.targets.binning import AffineBinning, Binning, resolve_binning
from stages.targets.local_fit import LocalBinning
from stages.teacher.load import LoadedTeacher, load_teacher
from stages.teacher_cache import BATCH_IMAGES, TeacherCacheReport, teacher_cache, teacher_lanes


@dataclass(frozen=True, eq=False)
class StageOne:
    """Everything that writing a shard needs.

    Attributes:
        frames: of the splits that the cache holds.
        batch_images: images per forward pass, resolved.
        lanes: batches side by side, see `stages.teacher_cache.teacher_lanes`.
        binning: where the teacher's bins lie.
        knots: what was fitted for the binning; None if nothing was.
    """

    recipe: Recipe
    source: Source
    frames: SplitFrames
    teacher: LoadedTeacher
    batch_images: int
    lanes: int
    binning: Binning
    knots: tuple[float, ...] | None

    @cached_property
    def identity(self) -> CacheIdentity:
        """The identity of the cache that this recipe fills."""
        decided = decided_identity(self.recipe)
        return cache_identity(decided, self.source, self.frames, self.teacher, self.knots)

    def writer(self, location: str) -> CacheWriter:
        """Create the cache at a path or URL, or continue it; see `CacheWriter`."""
        threads = 1 if self.lanes > 1 else torch.get_num_threads()
        teacher = self.teacher
        resolved = Resolved(teacher.precision, self.batch_images, threads, teacher.attention, teacher.runtime)
        return CacheWriter(location, self.identity, resolved, self.frames)

    def write(
        self,
        writer: CacheWriter,
        shards: Sequence[int],
        *,
        retry_quarantined: bool,
        on_frame: Callable[[], object] = lambda: None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> TeacherCacheReport:
        """Write shards; see `stages.teacher_cache.teacher_cache`."""
        return teacher_cache(
            self.source,
            self.teacher,
            writer,
            self.recipe.bins,
            self.binning,
            shards,
            batch_images=self.batch_images,
            lanes=self.lanes,
            retry_quarantined=retry_quarantined,
            on_frame=on_frame,
            should_stop=should_stop,
        )


def open_stage_one(recipe: Recipe, knots: tuple[float, ...] | None = None) -> StageOne:
    """Open the data set and load the teacher.

    Args:
        recipe: of the run.
        knots: what fit-bins has fitted for it; ignored if its strategy needs none.

    Raises:
        SourceError, SettingError, RecipeError: if one of them cannot be opened, or training and test frames overlap.
    """
    source = open_data(recipe.data)
    frames = frames_to_learn(recipe.data, source)
    with suppress(SourceError):  # the test split may live on another machine; eval looks again
        refuse_leak(frames, select_frames(recipe.data, source, recipe.data.test))
    teacher = open_teacher(recipe)
    batch_images = recipe.teacher_cache.batch_images or BATCH_IMAGES[teacher.device.type]
    knots = knots if recipe.bins.strategy == "fitted" else None
    binning = resolve_binning(recipe.bins, teacher.space, knots, _local_binning(recipe.data, source))
    return StageOne(recipe, source, frames, teacher, batch_images, teacher_lanes(teacher.device), binning, knots)


def open_run_stage_one(recipe: Recipe, folder: RunFolder) -> StageOne:
    """`open_stage_one` with the fitted bins of the run folder, if the recipe's strategy needs them.

    With runtime `auto`, an existing cache is continued in the runtime in which it was begun.
    """
    recipe = with_begun_runtime(recipe, cache_location(recipe, folder))
    if recipe.bins.strategy != "fitted":
        return open_stage_one(recipe)
    fitted = load_fitted(folder.bins)
    stage = open_stage_one(recipe, fitted.knots)
    require_made_with(folder.bins, fitted, fit_settings(stage))
    return stage


def decided_identity(recipe: Recipe) -> dict[str, object]:
    """The fields of the cache identity that the recipe decides."""
    data = recipe.data
    train, selection = (tuple(map(shown, selectors)) for selectors in (data.train, data.selection))
    made = recipe_identity(data.source, train, selection, recipe.teacher_cache, recipe.bins, recipe.student.input_size)
    return made | data.reading | {"bin_lidar": bin_lidar(data) if recipe.bins.strategy == "local" else ""}


def bin_lidar(data: DataSpec) -> str:
    """Which LiDAR corrects the bins of the strategy `local`, as the identity of a cache says it."""
    near_m, far_m = data.depth_range_m
    frames = f" of {', '.join(map(shown, data.lidar_drives))}" if data.lidar_drives else ""
    return f"{near_m:g}..{far_m:g} m{frames}"


def _local_binning(data: DataSpec, source: Source) -> LocalBinning:
    frame_ids = frozenset(select(source, data.lidar_drives)) if data.lidar_drives else None
    return LocalBinning(data.depth_range_m, frame_ids)


def fit_settings(stage: StageOne) -> dict[str, object]:
    """What fitted bins depend on besides the frames' content; recorded with them and compared before use."""
    recipe, identity = stage.recipe, stage.identity
    names = (
        *("source", "train", "image_size", "image_definition", "prob_size", "teacher_name"),
        *("teacher_weights_sha256", "teacher_preprocessing", "teacher_input_size"),
    )
    return {
        **{name: getattr(identity, name) for name in names},
        "closed_form": AffineBinning().definition,
        "depth_range_m": recipe.data.depth_range_m,
        "fit_frames": recipe.bins.fit_frames,
        **({"metadata_sha256": identity.metadata_sha256} if identity.metadata_sha256 else {}),
        **recipe.data.unusual_reading,  # left out at their defaults, so that older files stay valid
    }


def with_begun_runtime(recipe: Recipe, location: str) -> Recipe:
    """The recipe; its runtime `auto` becomes the one in which the cache at `location` was begun, if there is one."""
    spec = recipe.teacher_cache
    if spec.runtime != "auto":
        return recipe
    try:
        _, resolved = load_description(open_store(location))
    except CacheError:  # none is there, or it is damaged, which its reader will report
        return recipe
    return replace(recipe, teacher_cache=replace(spec, runtime=resolved.runtime))


def open_teacher(recipe: Recipe) -> LoadedTeacher:
    """Load the teacher of a recipe on its device and in its runtime."""
    spec = recipe.teacher_cache
    weights = _weights(spec.weights)
    device = resolve_device(spec.device)
    return load_teacher(
        weights.path,
        name=Path(spec.weights).name,
        licence=weights.licence,
        weights_sha256=weights.sha256,
        input_size=spec.input_size,
        device=device,
        precision=resolve_precision(spec.precision, device),
        runtime=spec.runtime,
    )


def find_teacher_weights(name: str) -> WeightFolder | None:
    """Find a teacher's weights on this machine, without downloading; None if they are not here. Raises RecipeError."""
    if name in KNOWN:
        return find_weights(name)
    return cached_hub_weights(name) if name.startswith(PREFIX) else _weights(name)


def _weights(name: str) -> WeightFolder:
    """Get known weights by name, weights of the model hub, or a folder of the user's."""
    if name in KNOWN:
        return fetch_weights(name)
    if name.startswith(PREFIX):
        return hub_weights(name)
    folder = Path(name)
    if not any((folder / file).is_file() for file in MODELS):
        raise RecipeError(
            f"weights {name!r}: neither one of {', '.join(KNOWN)}, nor {PREFIX}owner/name@<40-digit commit>,"
            f" nor a folder with {' or '.join(MODELS)}"
        )
    return WeightFolder(folder, weights_sha256(folder), UNKNOWN_LICENCE, "folder in the recipe")
