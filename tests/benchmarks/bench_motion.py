"""The teacher's metres from motion: how far off at the LiDAR that it did not see, and what a frame costs.

`SURROUND_RUN=runs/evidence make bench ARGS="-k bench_motion"`, after `surround teacher-cache evidence`.
"""

import os
import time
from pathlib import Path

import pytest
import torch

from data_cache.dataset import CachedFrames
from data_cache.shards.reader import CacheReader
from pipeline.recipe.config import load_recipe
from stages.targets.binning import stored_binning
from stages.targets.lidar_fit import LidarFit
from stages.targets.motion_fit import fit_to_motion, usual_nearest
from stages.training.motion_fits import fitted_to_lidar

pytestmark = pytest.mark.bench
LIDAR_DRIVES = 3
EVERY = 3
"""One of so many frames without LiDAR is looked at."""


def test_bench_motion(capsys):
    """LiDAR of every eighth drive says how near the nearest surface usually is; the others are fitted to motion."""
    folder = os.environ.get("SURROUND_RUN")
    if not folder:
        pytest.skip("set SURROUND_RUN to a run folder with the cache of a recipe whose drives all have LiDAR")
    recipe = load_recipe(str(Path(folder) / "recipe.toml"))
    near_m, far_m = recipe.data.depth_range_m
    reader = CacheReader(Path(folder) / "cache")
    frames = CachedFrames(reader, reader.frames.train)
    binning = stored_binning(recipe.bins, reader.identity.bin_knots)
    drives = list(dict.fromkeys(frame_id.rpartition("/")[0] for frame_id in frames.frame_ids))
    chosen = {drives[i * len(drives) // LIDAR_DRIVES] for i in range(LIDAR_DRIVES)}

    def looked_at(i: int) -> tuple[torch.Tensor, torch.Tensor, LidarFit]:
        return fitted_to_lidar(frames, i, recipe.bins, binning, recipe.data.depth_range_m)

    labelled, others = [], []
    for i, frame_id in enumerate(frames.frame_ids):
        (labelled if frame_id.rpartition("/")[0] in chosen else others).append(i)
    nearest = usual_nearest([looked_at(i)[2] for i in labelled])
    errors: dict[str, list[float]] = {"fitted to motion": [], "fitted to their own LiDAR": []}
    seconds = 0.0
    for i in others[::EVERY]:
        disparity, lidar_m, by_lidar = looked_at(i)
        begin = time.perf_counter()
        scale, shift = fit_to_motion(disparity[0], frames.moments(i), nearest)[None].unbind(-1)
        seconds += time.perf_counter() - begin
        for name, fit in zip(errors, (LidarFit(scale, shift, scale > 0), by_lidar), strict=True):
            depth_m = fit.depth_m(disparity).clamp(near_m, far_m)
            for view in fit.fitted[0].nonzero()[:, 0]:
                there = lidar_m[0, view] > 0
                truth_m = lidar_m[0, view][there]
                errors[name].append(float(((depth_m[0, view][there] - truth_m).abs() / truth_m).mean()))
    count = len(others[::EVERY])
    with capsys.disabled():
        print(
            f"\n{count} frames of {folder} outside {', '.join(sorted(chosen))}; {seconds / count:.1f} s a frame on"
            f" {torch.get_num_threads()} threads; AbsRel at their LiDAR, mean over images:"
        )
        for name, found in errors.items():
            values = torch.tensor(found)
            print(
                f"  teacher {name:<26} {values.mean():.4f}, median {values.median():.4f}, above 0.2 in"
                f" {(values > 0.2).float().mean():.1%} of {len(found)} images"
            )
