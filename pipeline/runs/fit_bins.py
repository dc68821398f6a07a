"""`surround fit-bins`: fits the bins of a recipe to LiDAR and writes RUN/bins.json."""

import hashlib
import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

from data_cache.sources.selectors import spread
from pipeline.recipe.config import Recipe
from pipeline.recipe.run_folder import RunFolder
from pipeline.runs.stage_one import fit_settings, open_stage_one
from stages.caching.fit_bins import FittedBins, fit_bins, load_fitted, require_made_with, save_fitted
from stages.compute.preemption import preemption
from stages.compute.progress import progress_bar


@dataclass(frozen=True)
class FitBinsRun:
    """The fitted bins, from now or before, and their file."""

    fitted: FittedBins
    path: Path
    already_done: bool


def run_fit_bins(recipe: Recipe, folder: RunFolder) -> FitBinsRun:
    """Fit the map of the binning strategy `fitted` to the LiDAR of training frames and write RUN/bins.json.

    Raises:
        FitError: if RUN/bins.json belongs to another teacher or recipe, or there is nothing to fit to.
    """
    stage = open_stage_one(replace(recipe, bins=replace(recipe.bins, strategy="affine")))
    made_with = fit_settings(stage)
    if folder.bins.is_file():
        fitted = load_fitted(folder.bins)
        require_made_with(folder.bins, fitted, made_with)
        return FitBinsRun(fitted, folder.bins, already_done=True)
    frame_ids = spread(stage.frames.train, recipe.bins.fit_frames)
    # Each recipe has its own folder of processed frames: those of another one cannot be used.
    seen_by = [made_with, stage.teacher.precision, stage.teacher.runtime, frame_ids]
    key = hashlib.sha256(json.dumps(seen_by).encode()).hexdigest()[:16]
    identity = stage.identity
    with preemption() as should_stop, progress_bar(len(frame_ids), 0, "fit-bins", "frame") as bar:
        fitted = fit_bins(
            stage.source,
            stage.teacher,
            frame_ids,
            made_with,
            folder.fit_partials / key,
            image_size=identity.image_size,
            prob_size=identity.prob_size,
            depth_range_m=recipe.data.depth_range_m,
            batch_images=stage.batch_images,
            on_frame=bar.update,
            should_stop=should_stop,
        )
    save_fitted(folder.bins, fitted)
    shutil.rmtree(folder.fit_partials)
    return FitBinsRun(fitted, folder.bins, already_done=False)
