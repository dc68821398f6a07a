"""Metres of frames without LiDAR: how far off at the LiDAR that was kept from them.

The teacher's scale and shift by motion, refined, and by what costs nothing: those of the last frame of a drive with
LiDAR, the usual ones of each camera, and a road as far below as the camera is high. All are measured where the refined
ones lie and the frame's own LiDAR has a return.

`SURROUND_RUN=runs/evidence make bench ARGS="-k bench_metres"`, after `surround teacher-cache evidence`.
"""

import os
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from support.road import fit_or, fit_to_road

from data_cache.dataset import CachedFrames
from data_cache.metres import read_metres
from data_cache.shards.reader import CacheReader
from pipeline.recipe.config import load_recipe
from pipeline.recipe.run_folder import RunFolder
from pipeline.runs.splits import open_data
from pipeline.runs.train_student import refiner_job
from stages.targets.binning import stored_binning
from stages.targets.lidar_fit import LidarFit
from stages.training.motion_fits import fitted_to_lidar, motion_fits
from stages.training.refined_metres import refined_metres

pytestmark = pytest.mark.bench
LIDAR_DRIVES = 3

METRES = (
    "by the last fit of its camera",
    "by the usual fit of its camera",
    "by the height of its camera",
    "placed by motion",
    "fitted to their own LiDAR",
    "refined",
)


def _median(fits: Sequence[LidarFit]) -> LidarFit:
    """Median scale and shift of each camera over frames fitted to LiDAR."""
    found = [
        torch.cat([torch.where(fit.fitted, value, float("nan")) for fit, value in zip(fits, values, strict=True)])
        for values in ([fit.scale for fit in fits], [fit.shift for fit in fits])
    ]
    scale, shift = (values.nanmedian(0, keepdim=True).values for values in found)
    return LidarFit(scale, shift, scale > 0)


def test_bench_metres(capsys):
    """Three drives, spread evenly, have LiDAR, as in `surround ablate` with `ablate.lidar_drives = [3]`."""
    where = os.environ.get("SURROUND_RUN")
    if not where:
        pytest.skip("set SURROUND_RUN to a run folder with the cache of a recipe whose drives all have LiDAR")
    folder = RunFolder(Path(where))
    recipe, reader = load_recipe(str(folder.recipe), ["train_student.workers=0"]), CacheReader(folder.cache)
    near_m, far_m = range_m = recipe.data.depth_range_m
    frames = CachedFrames(reader, reader.usable(tuple(reader.frames.train)))
    drives = list(dict.fromkeys(frame_id.rpartition("/")[0] for frame_id in frames.frame_ids))
    chosen = {drives[i * len(drives) // LIDAR_DRIVES] for i in range(LIDAR_DRIVES)}
    lidar_ids = frozenset(frame_id for frame_id in frames.frame_ids if frame_id.rpartition("/")[0] in chosen)
    begin = time.perf_counter()
    fits = motion_fits(reader, recipe.bins, range_m, lidar_ids, folder.motion, lambda: False, everywhere=True)
    fitted = time.perf_counter()
    job = refiner_job(recipe, reader, lidar_ids, fits, folder, torch.device("cpu"))
    refined = refined_metres(job, lambda: False)
    seconds = (fitted - begin, time.perf_counter() - fitted)

    binning = stored_binning(recipe.bins, reader.identity.bin_knots)
    errors: dict[str, list[float]] = {name: [] for name in METRES}
    labelled = [i for i, frame_id in enumerate(frames.frame_ids) if frame_id in lidar_ids]
    known = {i: fitted_to_lidar(frames, i, recipe.bins, binning, range_m)[2] for i in labelled}
    usual = _median(list(known.values()))
    views = open_data(recipe.data).frame(frames.frame_ids[0]).views
    poses = [view.ego_from_cam for view in views if view is not None and view.ego_from_cam is not None]
    ego_from_cam = torch.from_numpy(np.stack(poses)).float()
    for i, frame_id in enumerate(frames.frame_ids):
        if frame_id in lidar_ids:
            continue
        disparity, lidar_m, by_lidar = fitted_to_lidar(frames, i, recipe.bins, binning, range_m)
        last = fit_or(known[max(j for j in labelled if j < i)], usual)
        road = fit_to_road(disparity, frames[i].intrinsics, ego_from_cam, usual)
        scale, shift = fits[frame_id][None].unbind(-1)
        by_motion = LidarFit(scale, shift, scale > 0)
        metres = torch.from_numpy(read_metres(refined[frame_id], lidar_m.shape[1:], frame_id))[None]
        fitted_m = [fit.depth_m(disparity) for fit in (last, usual, road, by_motion, by_lidar)]
        for name, depth_m in zip(METRES, (*fitted_m, metres), strict=True):
            for view in (by_motion.fitted & by_lidar.fitted)[0].nonzero()[:, 0]:
                there = (lidar_m[0, view] > 0) & (metres[0, view] > 0)
                if not there.any():
                    continue
                truth_m = lidar_m[0, view][there]
                found_m = depth_m[0, view][there].clamp(near_m, far_m)
                errors[name].append(float(((found_m - truth_m).abs() / truth_m).mean()))
    with capsys.disabled():
        print(
            f"\n{len(refined)} frames of {where} outside {', '.join(sorted(chosen))}; motion took {seconds[0]:.0f} s,"
            f" the refiner {seconds[1]:.0f} s in this run, {torch.get_num_threads()} threads; AbsRel at their LiDAR:"
        )
        for name, found in errors.items():
            values = torch.tensor(found)
            print(
                f"  teacher {name:<30} {values.mean():.4f}, median {values.median():.4f}, above 0.2 in"
                f" {(values > 0.2).float().mean():.1%} of {len(found)} images"
            )
