"""What the edge filter of a point cloud takes away and what it costs, what overlaps hold, and what a frame takes.

`SURROUND_CHECKPOINT=RUN/student/last.safetensors make bench ARGS="-k bench_point_cloud"`, of a student of the synthetic
drives, which alone have dense truth.
"""

import os
import time

import numpy as np
import pytest
import torch

from data_cache.frames.geometry import OCCLUSION_RATIO, project, unproject
from data_cache.sources.registry import open_source
from data_cache.sources.synthetic.source import SyntheticSource
from pipeline.api import load_student
from pipeline.recipe.config import load_recipe
from pipeline.viewers.cloud_page import cloud_page
from stages.evaluation.predictions import save_prediction
from stages.evaluation.regions import truth_at
from stages.inference import point_cloud
from stages.inference.cloud_files import glb_bytes, ply_bytes
from stages.inference.point_cloud import frame_cloud, smooth_pixels
from stages.student.checkpoint import save_student
from stages.student.model import Student

pytestmark = pytest.mark.bench
FRAMES = tuple(f"drive-{drive}/{drive % 6}" for drive in range(48, 60))
NEAR_TRUTH = 1.1  # a point is good where a surface within two pixels is within this factor of its depth
FAR_M = 80.0
ROAD_M = (15.0, 45.0)


@pytest.fixture(scope="module")
def seen():
    """The student, and its prediction, frame and truth (at its input size) of every frame."""
    path = os.environ.get("SURROUND_CHECKPOINT")
    if not path:
        pytest.skip("set SURROUND_CHECKPOINT to a student of the synthetic drives")
    student = load_student(path, "cpu", "fp32")
    source, found = SyntheticSource(), []
    for frame in map(source.frame, FRAMES):
        prediction = student.look(frame)
        size = student.network.spec.input_size
        found.append((frame, prediction, np.stack([truth_at(load(), size) for load in frame.load_truth_m])))
    return student, found


def in_ego(frame, prediction, i: int, depth_m: np.ndarray) -> tuple[np.ndarray, float]:
    """Pixels of a view in the vehicle's frame, and the height of the camera there."""
    ego_from_cam = np.linalg.inv(frame.world_from_ego) @ prediction.rig.world_from_cam[i]
    points_m = unproject(depth_m.astype(np.float64), prediction.rig.intrinsics[i].astype(np.float64))
    return points_m @ ego_from_cam[:3, :3].T + ego_from_cam[:3, 3], float(ego_from_cam[2, 3])


def windows(values: np.ndarray, radius_px: int = 2) -> np.ndarray:
    padded, (H, W) = np.pad(values, radius_px, mode="edge"), values.shape
    offsets = range(2 * radius_px + 1)
    return np.stack([padded[y : y + H, x : x + W] for y in offsets for x in offsets])


def judged(found):
    """Of each view: depth, points in the vehicle frame, height of the camera; pixels that fly, are good, are street.

    Flying: between two true surfaces within two pixels, and near none of them.
    """
    for frame, prediction, truth_m in found:
        for i, depth_m in enumerate(prediction.depth_m.astype(np.float64)):
            surface_m = np.where(truth_m[i] > 0, truth_m[i], 1e6)
            near = windows(surface_m)
            good = (np.abs(np.log(near / depth_m)) < np.log(NEAR_TRUTH)).any(axis=0)
            flying = (depth_m > near.min(axis=0) * NEAR_TRUTH) & (depth_m < near.max(axis=0) / NEAR_TRUTH) & ~good
            height_m = in_ego(frame, prediction, i, surface_m)[0][..., 2]
            road = (height_m < 0.25) & (surface_m > ROAD_M[0]) & (surface_m < ROAD_M[1])
            within = depth_m < FAR_M
            yield depth_m, *in_ego(frame, prediction, i, depth_m), flying & within, good & within, road


def test_bench_point_cloud_edges(seen, monkeypatch, capsys):
    _, found = seen
    pixels = list(judged(found))
    total = sum(int((depth_m < FAR_M).sum()) for depth_m, *_ in pixels)
    flying_count, good_count = (sum(int(p[k].sum()) for p in pixels) for k in (3, 4))
    lines = [
        f"{total:,} points within {FAR_M:g} m, {100 * flying_count / total:.1f} % flying,"
        f" {100 * good_count / total:.1f} % good",
        "jump  level  flying removed   good lost  beyond 40 m  street 15 to 45 m",
    ]
    settings = [(jump, point_cloud.LEVEL_SLOPE) for jump in (1.05, 1.08, 1.1, 1.15)] + [(1.08, -1.0), (1.1, -1.0)]
    for jump, level in settings:
        monkeypatch.setattr(point_cloud, "JUMP_RATIO", jump)
        monkeypatch.setattr(point_cloud, "LEVEL_SLOPE", level)
        dropped = np.zeros((4, 2))
        for depth_m, ego_m, height_m, flying, good, road in pixels:
            gone = ~smooth_pixels(depth_m, ego_m, height_m)
            groups = (flying, good, good & (depth_m > 40), good & road)
            dropped += [(int((gone & group).sum()), int(group.sum())) for group in groups]
        shares = "".join(f"{100 * a / b:13.1f} %" for a, b in dropped)
        lines.append(f"{jump:<6g}{'-' if level < 0 else f'{level:g}':<6}{shares}")
    with capsys.disabled():
        print("", *lines, sep="\n")


def test_bench_point_cloud_confidence(seen, capsys):
    """What edges remove, what sigma removes, what both do; sigma alone where it loses as many good points as edges."""
    student, found = seen
    if student.calibration is None:
        pytest.skip("the student has no calibration; run `surround calibrate`")
    sigma = np.concatenate([prediction.sigma for _, prediction, _ in found])
    pixels = list(judged(found))
    edge = np.stack([~smooth_pixels(depth_m, ego_m, height_m) for depth_m, ego_m, height_m, *_ in pixels])
    depth_m, flying, good, road = (np.stack([pixel[k] for pixel in pixels]) for k in (0, 3, 4, 5))
    within = depth_m < FAR_M
    alike = np.quantile(sigma[good], 1 - (edge & good).sum() / good.sum())
    ways = {
        f"edges, {point_cloud.JUMP_RATIO}": edge,
        f"sigma > {alike:.2f}": sigma > alike,
        f"edges or sigma > {point_cloud.SIGMA_LIMIT}": edge | (sigma > point_cloud.SIGMA_LIMIT),
    }
    groups = (flying, within & ~good, good, good & (depth_m > 40), good & road)
    lines = ["removed               flying   wrong    good  good beyond 40 m  good street"]
    for name, gone in ways.items():
        lines.append(f"{name:20s}" + "".join(f"{100 * (gone & g).sum() / g.sum():7.1f}%" for g in groups))
    with capsys.disabled():
        print("", *lines, sep="\n")


def test_bench_point_cloud_overlap(seen, capsys):
    """Points that a ring neighbour sees, too: how far apart, and which of the two is nearer to the truth."""
    _, found = seen
    points = twins = 0
    apart, apart_m, better, worse = [], [], [], []
    for frame, prediction, truth_m in found:
        rig, depths_m, V = prediction.rig, prediction.depth_m.astype(np.float64), len(truth_m)
        kept = [
            smooth_pixels(depth_m, *in_ego(frame, prediction, i, depth_m)) & (depth_m < FAR_M)
            for i, depth_m in enumerate(depths_m)
        ]
        axis = [np.tan(off_axis(rig.intrinsics[i], truth_m.shape[1:])) for i in range(V)]
        for i in range(V):
            points += int(kept[i].sum())
            own_m = unproject(depths_m[i], rig.intrinsics[i].astype(np.float64))[kept[i]]
            for j in ((i - 1) % V, (i + 1) % V):
                pose = np.linalg.inv(rig.world_from_cam[j]) @ rig.world_from_cam[i]
                there = project(own_m, pose, rig.intrinsics[j].astype(np.float64), truth_m.shape[1:])
                at = there.v_px.astype(int), there.u_px.astype(int)
                ratio = there.depth_m / depths_m[j][at]
                same = kept[j][at] & (np.abs(np.log(ratio)) < np.log(OCCLUSION_RATIO))
                twins += int(same.sum())
                apart.append(np.abs(ratio[same] - 1))
                apart_m.append(np.abs(there.depth_m - depths_m[j][at])[same])
                pixel = np.flatnonzero(kept[i])[there.index]
                errors = [
                    np.abs(depth_m / np.where(truth > 0, truth, np.nan) - 1)
                    for depth_m, truth in (
                        (depths_m[i].flat[pixel], truth_m[i].flat[pixel]),
                        (depths_m[j][at], truth_m[j][at]),
                    )
                ]
                nearer = same & (axis[i].flat[pixel] < axis[j][at]) & np.isfinite(errors[0] + errors[1])
                better.append(errors[0][nearer])
                worse.append(errors[1][nearer])
    relative, metres, nearer_error, other_error = (
        float(np.concatenate(values).mean()) for values in (apart, apart_m, better, worse)
    )
    with capsys.disabled():
        print(
            f"\n{100 * twins / points:.0f} % of {points:,} points have a twin, {100 * relative:.1f} % = {metres:.2f} m"
            f" away on average; AbsRel of the one nearer to its optical axis {nearer_error:.4f}, of the other"
            f" {other_error:.4f}"
        )


def off_axis(K_px: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Angle between each pixel's ray and the optical axis."""
    rays = unproject(np.ones(size), K_px.astype(np.float64))
    return np.arctan(np.hypot(rays[..., 0], rays[..., 1]))


def test_bench_point_cloud_files(seen, real_data, capsys, tmp_path):
    """Points, bytes and processor milliseconds of a frame: of the student at hand, of a PandaSet frame at 352 x 640.

    The second student has random weights: it sees one smooth wall around it, so almost no point is left out.
    """
    trained, found = seen
    recipe = load_recipe("pandaset", ["student.pretrained=false"])
    torch.manual_seed(0)
    save_student(tmp_path / "random.safetensors", Student(recipe.student, recipe.bins), trained.lineage)
    untrained = load_student(tmp_path / "random.safetensors", "cpu")
    street = open_source("pandaset", real_data / "pandaset").frame("002/11")
    lines = []

    def timed(what: str, make):
        times = []
        for _ in range(3):
            begin = time.process_time()
            made = make()
            times.append(1e3 * (time.process_time() - begin))
        size = f"{sum(map(len, made)) / 1e6:8.2f} MB" if isinstance(made, list) else " " * 11
        lines.append(f"  {what:32s}{np.median(times):7.0f} ms{size}")
        return made

    for student, frame in ((trained, found[0][0]), (untrained, street)):
        size = student.network.spec.input_size
        stride, range_m = student.network.bins.prob_stride, student.lineage.depth_range_m
        lines.append(f"{frame.id}, student {size[0]} x {size[1]}, {student.precision}")
        said = timed("images and student", lambda s=student, f=frame: s.look(f))
        maps = timed("stretched to the images", lambda said=said, f=frame: said.at_image_size(f))
        folder = tmp_path / frame.id

        def written(suffix: str, maps=maps, folder=folder) -> list[bytes]:
            paths = [folder / f"{i}{suffix}" for i in range(len(maps))]
            for path, depth_m in zip(paths, maps, strict=True):
                save_prediction(path, depth_m)
            return [path.read_bytes() for path in paths]

        timed("png16, six", lambda w=written: w(".png"))
        timed("npy, six", lambda w=written: w(".npy"))
        cloud = timed("point cloud", lambda f=frame, s=said, r=range_m, p=stride: frame_cloud(f, s, r, p))
        lines[-1] += f" {len(cloud.points_m):,} points"
        timed("ply", lambda c=cloud: [ply_bytes(c)])
        timed("glb", lambda c=cloud: [glb_bytes(c)])
        timed("html", lambda c=cloud, f=frame: [cloud_page(c.points_m, c.rgb, f.id).encode()])
    with capsys.disabled():
        print("", *lines, sep="\n")
