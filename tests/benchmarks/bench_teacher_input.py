"""Whether the teacher says the same of a JPEG decoded at reduced scale, and in each precision and attention."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate

from data_cache.frames.geometry import sparse_depth
from data_cache.frames.images import larger
from data_cache.frames.rig import Frame
from data_cache.frames.views import load_images
from pipeline.recipe.config import load_recipe
from pipeline.runs.splits import open_data
from pipeline.runs.stage_one import open_teacher
from stages.compute.resize import resize_rgb
from stages.evaluation.metrics import abs_rel, affine_depth_m, fit_affine_disparity
from stages.targets.bins import affine_invariant_map

pytestmark = pytest.mark.bench
RANGE_M = (0.1, 80.0)
SETS = {"pandaset": ("pandaset", 6), "nuscenes": ("nuscenes", 1), "ddad": ("ddad/ddad_train_val", 1)}


def aligned_abs_rel(frame: Frame, disparity: torch.Tensor) -> list[float]:
    """AbsRel on LiDAR of each view after a least-squares fit in disparity, as the evaluation does it."""
    sweep, errors = frame.load_sweep(), []
    for view, image in zip(frame.views, disparity, strict=True):
        size = (view.camera.height_px, view.camera.width_px)
        truth_m = sparse_depth(view, sweep, size)
        valid = (truth_m > RANGE_M[0]) & (truth_m < RANGE_M[1])
        native = interpolate(image[None, None], size=size, mode="bilinear", align_corners=False)[0, 0].numpy()[valid]
        fit = fit_affine_disparity(disparity=native, truth_m=truth_m[valid])
        errors.append(abs_rel(predicted_m=affine_depth_m(native, fit, RANGE_M), truth_m=truth_m[valid]))
    return errors


@pytest.mark.parametrize("name", SETS)
def test_bench_teacher_input(name, capsys):
    data = os.environ.get("SURROUND_REAL_DATA")
    if not data:
        pytest.skip("real frames: set SURROUND_REAL_DATA to their folder")
    folder, step = SETS[name]
    version = ["data.version=v1.0-mini"] if name == "nuscenes" else []
    recipe = load_recipe(name, version, Path(data) / folder)
    source = open_data(recipe.data)
    drive = next(ids for ids in source.drives.values() if source.frame(ids[0]).load_sweep is not None)
    frames = [source.frame(frame_id) for frame_id in drive[::step]]
    sizes = (recipe.teacher_cache.input_size, recipe.student.input_size)
    stride = recipe.bins.prob_stride
    prob_size = (sizes[1][0] // stride, sizes[1][1] // stride)
    decoded = {"full size": None, "reduced": larger(*sizes)}
    asked = [("fp32", "sdpa", "full size")]
    asked += [("bf16", attention, size) for attention in ("sdpa", "blocked") for size in decoded]
    first: torch.Tensor | None = None
    lines = []
    for precision, attention, size in asked:
        spec = recipe.teacher_cache
        overrides = [*version, f"teacher_cache.precision={precision}", "teacher_cache.runtime=torch"]
        teacher = open_teacher(load_recipe(name, overrides, Path(data) / folder))
        teacher.model.backbone.set_attn_implementation(attention)
        maps, errors = [], []
        for frame in frames:
            images = [resize_rgb(image, spec.input_size) for image in load_images(frame, decoded[size])]
            pairs = [torch.from_numpy(np.stack(images[i : i + 2])) for i in range(0, len(images), 2)]
            disparity = torch.cat([teacher(pair).prediction for pair in pairs])
            maps.append(affine_invariant_map(disparity, prob_size))
            errors += aligned_abs_rel(frame, disparity)
        u = torch.stack(maps) * recipe.bins.count
        first = u if first is None else first
        lines.append(
            f"| {precision} | {attention} | {size} | {np.mean(errors):.4f} | {(u - first).abs().mean():.3f}"
            f" | {(u - first).abs().flatten().quantile(0.99):.2f} |"
        )
    with capsys.disabled():
        print(f"\n{name}, {len(frames)} frames, affine-aligned teacher on LiDAR; distance from the first row in bins:")
        print("| precision | attention | JPEG | AbsRel | mean distance | 99 % below |")
        print("| --- | --- | --- | --- | --- | --- |")
        print("\n".join(lines))
