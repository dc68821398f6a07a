"""What the completion of LiDAR is worth on the synthetic drives, and what the photometric loss costs."""

import time

import pytest
import torch
from torch.nn.functional import avg_pool2d, pad

from data_cache.frames.views import load_images, rig_views
from pipeline.recipe.config import load_recipe
from pipeline.runs.splits import open_data
from pipeline.runs.stage_one import open_teacher
from stages.compute.resize import resize_views
from stages.evaluation.regions import truth_at
from stages.losses.completion import densify
from stages.losses.photometric import _sum_3x3
from stages.targets.bins import affine_invariant_map
from stages.targets.space import to_disparity

pytestmark = pytest.mark.bench
DRIVES = range(40, 48)


def test_bench_completion(capsys):
    """AbsRel of the filled pixels against dense truth, and shares of the scene and of the sky that have depth."""
    recipe = load_recipe("evidence")
    source, teacher = open_data(recipe.data), open_teacher(recipe)
    size = recipe.student.input_size
    small = (size[0] // recipe.bins.prob_stride, size[1] // recipe.bins.prob_stride)
    u, lidar, truth = [], [], []
    for drive in DRIVES:
        frame = source.frame(f"drive-{drive}/0")
        images = load_images(frame)
        seen = [teacher(torch.from_numpy(rgb)[None]) for rgb in resize_views(images, teacher.input_size)]
        u += [affine_invariant_map(to_disparity(s.prediction, teacher.space), small)[0] for s in seen]
        lidar += list(
            torch.from_numpy(rig_views(frame, resize_views(images, size), frame.load_sweep(), size).lidar_depth_m)
        )
        truth += [torch.from_numpy(truth_at(load(), size)).float() for load in frame.load_truth_m]
    guide, lidar_m, truth_m = torch.stack(u), torch.stack(lidar), torch.stack(truth)
    scene, kept = truth_m > 0, torch.rand(lidar_m.shape, generator=torch.Generator().manual_seed(0))
    lines = []
    for share, radius_px in ((1.0, 3), (0.25, 4)):
        thin_m = torch.where(kept < share, lidar_m, 0.0)
        returns = (thin_m > 0) & scene
        error = ((thin_m - truth_m).abs() / truth_m)[returns].mean()
        lines.append(f"{share:.0%} of the returns: AbsRel {error:.1%}, {returns.sum() / scene.sum():.0%} of the scene")
        for name, by in (("teacher", guide), ("no", torch.zeros_like(guide))):
            dense_m = densify(thin_m, by, radius_px)
            filled = (dense_m > 0) & (thin_m == 0) & scene
            error = ((dense_m - truth_m).abs() / truth_m)[filled].mean()
            cover, sky = ((dense_m > 0)[where].float().mean() for where in (scene, ~scene))
            covered = f"{cover:.0%} of the scene, {sky:.1%} of the sky"
            lines.append(f"  radius {radius_px}, {name} guide: AbsRel {error:.1%}, {covered}")
    with capsys.disabled():
        print(f"\n{len(u)} images at {size[0]} x {size[1]}, {teacher.name}", *lines, sep="\n")


def _pooled(image: torch.Tensor) -> torch.Tensor:
    return avg_pool2d(pad(image, (1, 1, 1, 1), mode="reflect"), 3, 1)


def test_bench_photometric_windows(capsys):
    """Milliseconds of the 3 x 3 sums of SSIM, forward and backward, as they are and by avg_pool2d."""
    image = torch.rand(12, 3, 98, 162, requires_grad=True)
    lines = []
    for name, total in (("sums of shifted images", _sum_3x3), ("avg_pool2d", _pooled)):
        times = []
        for _ in range(20):
            begin = time.perf_counter()
            total(image).sum().backward()
            times.append(time.perf_counter() - begin)
        lines.append(f"{name}: {1e3 * sorted(times)[10]:.2f} ms")
    with capsys.disabled():
        print(f"\n12 images, {torch.get_num_threads()} threads", *lines, sep="\n")
