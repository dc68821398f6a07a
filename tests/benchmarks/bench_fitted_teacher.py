"""What LiDAR and the neighbouring camera say of the teacher that the KL learns from, beside students of an ablation.

`SURROUND_RUN=runs/evidence_pandaset make bench ARGS="-k fitted_teacher"`, after `surround ablate`.
"""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from data_cache.dataset import CachedFrames
from data_cache.shards.encodings import map_arrays
from data_cache.shards.reader import CacheReader
from pipeline.recipe.config import load_recipe
from stages.evaluation.consistency import overlap_consistency, pooled_overlap
from stages.student.checkpoint import load_student
from stages.targets.binning import stored_binning
from stages.targets.bins import decode
from stages.targets.lidar_fit import fit_disparity
from stages.targets.lidar_frame import teacher_disparity

pytestmark = pytest.mark.bench
FRAMES = 24


def test_bench_fitted_teacher(capsys):
    """AbsRel on LiDAR and disagreement of neighbours, both on training frames."""
    folder = os.environ.get("SURROUND_RUN")
    if not folder:
        pytest.skip("set SURROUND_RUN to the run folder of an ablation")
    recipe = load_recipe(str(next(Path(folder).glob("ablate/*/recipe.toml"))))
    near_m, far_m = recipe.student.near_m, recipe.student.far_m
    reader = CacheReader(Path(folder) / "cache")
    rigs = CachedFrames(reader, reader.frames.train[:FRAMES])
    binning = stored_binning(recipe.bins, reader.identity.bin_knots)
    poses = [reader.read(frame_id).world_from_cam for frame_id in rigs.frame_ids]

    def fitted(i: int) -> np.ndarray:
        prob = decode(map_arrays(lambda x: x[None], rigs[i].bins), recipe.bins)
        lidar_m = rigs[i].lidar_depth_m[None]
        disparity = teacher_disparity(prob, lidar_m, binning)
        fit = fit_disparity(disparity, torch.where((lidar_m > near_m) & (lidar_m < far_m), lidar_m, 0.0))
        return fit.depth_m(disparity)[0].clamp(near_m, far_m).numpy()

    def line(name: str, depths_m: list[np.ndarray]) -> str:
        errors, overlaps = [], []
        for rig, world_from_cam, depth_m in zip(map(rigs.__getitem__, range(len(rigs))), poses, depths_m, strict=True):
            truth_m, K_px = rig.lidar_depth_m.numpy(), rig.intrinsics.double().numpy()
            valid = (truth_m > 0.1) & (truth_m < 80)
            errors.append((np.abs(depth_m - truth_m)[valid] / truth_m[valid]).mean())
            V = len(depth_m)
            for pair in ([i, j] for k in range(V) for i, j in ((k, (k + 1) % V), ((k + 1) % V, k))):
                overlaps.append(overlap_consistency(depth_m[pair], K_px[pair], world_from_cam[pair]))
        seen = pooled_overlap(overlaps)
        assert seen.abs_rel is not None
        agree = f"overlap {seen.abs_rel:.3f} over {seen.compared:,} pixels"
        return f"{name:44s} AbsRel at LiDAR {np.mean(errors):.3f}, {agree}"

    lines = [line("teacher, fitted to the LiDAR of each image", [fitted(i) for i in range(len(rigs))])]
    for path in sorted(Path(folder).glob("ablate/*/student/last.safetensors")):
        student = load_student(path).student
        depths_m = []
        for i in range(len(rigs)):
            rig = rigs[i].image[None].float() / 255, rigs[i].focal_px[None], rigs[i].view_valid[None]
            with torch.inference_mode():
                depths_m.append(student(*rig).depth_m[0].numpy())
        lines.append(line(path.parts[-3], depths_m))
    with capsys.disabled():
        print(f"\n{len(rigs)} training frames of {folder}", *lines, sep="\n")
