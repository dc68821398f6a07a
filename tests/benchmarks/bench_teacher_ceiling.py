"""How good a teacher can be that LiDAR corrects: AbsRel at returns that the fit has not seen, for inputs and fits.

`SURROUND_RUN=runs/ceiling SURROUND_REAL_DATA=... make bench ARGS="-k teacher_ceiling"` writes
results/teacher_ceiling.json. RUN/maps keeps what the teacher saw; another run goes on from there. Returns are held out
in two ways: half of the pixels, and half of the blocks of 16 x 16 pixels, in which nothing near is left to interpolate.
"""

import json
import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from benchmarks.teacher_maps import SeenRig, seen_rigs
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import interpolate

from pipeline.recipe.config import load_recipe
from pipeline.recipe.provenance import surroundings
from pipeline.runs.splits import open_data
from stages.caching.fit_bins import isotonic
from stages.targets import bins
from stages.targets.lidar_fit import fit_disparity
from stages.targets.local_fit import correct_by_lidar, places, spread

pytestmark = pytest.mark.bench
RANGE_M = (0.1, 80.0)
BLOCK_PX = 16
QUERIES = 300
"""At most so many held-out returns of an image are compared: some fits cost by the return."""
PROB_SIZE = (48, 80)
RESULTS = Path(__file__).parent / "results/teacher_ceiling.json"
RECIPES = {"pandaset": "evidence_pandaset", "synthetic": "evidence"}
SMALL, LARGE = {"pandaset": (392, 700), "synthetic": (392, 644)}, {"pandaset": (518, 924), "synthetic": (518, 854)}
SELECTION = {
    "pandaset": ("002/02", "002/08", "002/14"),
    "synthetic": ("drive-40/0", "drive-41/3", "drive-42/1", "drive-43/4"),
}
"""Frames on which settings were chosen: of the training part of the street, and of selection drives."""
TEST = {
    "pandaset": ("002/17", "002/19", "002/21"),
    "synthetic": ("drive-48/0", "drive-49/1", "drive-50/2", "drive-51/3"),
}
INPUT_FRAMES = 2
"""So many selection frames compare the two inputs."""


@dataclass(frozen=True, eq=False)
class Returns:
    """LiDAR returns of one image, or places in it that want a depth.

    Attributes:
        at: row, column and the teacher's u, each in [0, 1].
        depth_m: of returns.
    """

    at: Float[Tensor, "N 3"]
    depth_m: Float[Tensor, " N"]

    @property
    def x(self) -> Float[Tensor, " N"]:
        """The teacher's relative disparity."""
        return bins.map_disparity(self.at[:, 2])


def affine_m(known: Returns, wanted: Returns) -> Tensor:
    """Scale and shift of disparity by least squares, as the bins of `affine` are read."""
    return fit_disparity(known.x[None], known.depth_m[None]).depth_m(wanted.x)


def tilted_m(known: Returns, wanted: Returns) -> Tensor:
    """Scale and shift that are linear in row and column, by least squares in inverse depth."""

    def terms(at: Returns) -> Tensor:
        one = torch.ones_like(at.x)
        plane = torch.stack([one, at.at[:, 0] - 0.5, at.at[:, 1] - 0.5], 1)
        return torch.cat([plane, plane * at.x[:, None]], 1)

    weights = torch.linalg.lstsq(terms(known), 1 / known.depth_m[:, None], driver="gelsd").solution
    return 1 / (terms(wanted) @ weights)[:, 0].clamp(min=1 / RANGE_M[1])


def windows_m(known: Returns, wanted: Returns) -> Tensor:
    """Scale and shift of their own for every place, by least squares in a Gaussian window (a tenth of the width).

    Both are held at the affine fit as if by ten returns.
    """
    fit = fit_disparity(known.x[None], known.depth_m[None])
    weight = torch.exp(-_squared_px(wanted, known) / (2 * 16**2))
    left = 1 / known.depth_m - (fit.shift + fit.scale * known.x)
    hold = 10.0
    mean_x = known.x.mean()
    dx = known.x - mean_x
    s0, s1, s2 = weight.sum(1) + hold, weight @ dx, weight @ dx**2 + hold * (dx**2).mean()
    t0, t1 = weight @ left, weight @ (dx * left)
    determinant = s0 * s2 - s1**2
    shift, scale = (s2 * t0 - s1 * t1) / determinant, (s0 * t1 - s1 * t0) / determinant
    inverse = fit.shift + fit.scale * wanted.x + shift + scale * (wanted.x - mean_x)
    return 1 / inverse.clamp(min=1 / RANGE_M[1])


def monotone_m(known: Returns, wanted: Returns) -> Tensor:
    """One increasing map from disparity to nearness, by isotonic regression of log depth."""
    order = known.x.argsort()
    nearness = isotonic(-known.depth_m[order].log().double().numpy(), np.ones(len(order)))
    return torch.from_numpy(np.exp(-np.interp(wanted.x.numpy(), known.x[order].numpy(), nearness))).float()


def local_m(known: Returns, wanted: Returns) -> Tensor:
    """The fit of the binning strategy `local`, at the size of the LiDAR."""
    left = (known.depth_m / affine_m(known, known)).log().clamp(-1, 1)
    return affine_m(known, wanted) * spread(known.at, left, wanted.at, 0.6).exp()


def process_m(known: Returns, wanted: Returns) -> Tensor:
    """A Gaussian process of the residual in log depth, of 16 neighbours in place and u (0.2 of the width, 0.1)."""
    left = (known.depth_m / affine_m(known, known)).log().clamp(-1, 1)
    return affine_m(known, wanted) * _process(known, left, wanted, 0.1).exp()


def nearest_m(known: Returns, wanted: Returns) -> Tensor:
    """The residual of the six nearest returns in the image, by inverse squared distance."""
    left = (known.depth_m / affine_m(known, known)).log().clamp(-1, 1)
    return affine_m(known, wanted) * _six_nearest(known, left, wanted).exp()


def lidar_process_m(known: Returns, wanted: Returns) -> Tensor:
    """Control, LiDAR without a teacher: a Gaussian process of log depth around its mean."""
    mean = known.depth_m.log().mean()
    return (mean + _process(known, known.depth_m.log() - mean, wanted, None)).exp()


def lidar_nearest_m(known: Returns, wanted: Returns) -> Tensor:
    """Control, LiDAR without a teacher: log depth of the six nearest returns."""
    return _six_nearest(known, known.depth_m.log(), wanted).exp()


def lidar_grids_m(known: Returns, wanted: Returns) -> Tensor:
    """Control, LiDAR without a teacher: the grids of `local` with one and the same u everywhere."""
    mean = known.depth_m.log().mean()
    flat = [torch.cat([points.at[:, :2], torch.full_like(points.at[:, :1], 0.5)], 1) for points in (known, wanted)]
    return (mean + spread(flat[0], known.depth_m.log() - mean, flat[1], 0.6)).exp()


FITS: dict[str, Callable[[Returns, Returns], Tensor]] = {
    "affine": affine_m,
    "monotone": monotone_m,
    "tilted": tilted_m,
    "windows": windows_m,
    "six nearest": nearest_m,
    "Gaussian process": process_m,
    "local": local_m,
    "LiDAR alone, six nearest": lidar_nearest_m,
    "LiDAR alone, Gaussian process": lidar_process_m,
    "LiDAR alone, grids": lidar_grids_m,
}
CACHED = "local, as cached"


def _squared_px(a: Returns, b: Returns) -> Tensor:
    size = torch.tensor([96.0, 160.0])
    return torch.cdist(a.at[:, :2] * size, b.at[:, :2] * size) ** 2


def _six_nearest(known: Returns, value: Tensor, wanted: Returns) -> Tensor:
    near, index = _squared_px(wanted, known).topk(6, largest=False)
    weight = 1 / (near + 0.25)
    return (weight * value[index]).sum(1) / weight.sum(1)


def _process(known: Returns, value: Tensor, wanted: Returns, guide: float | None) -> Tensor:
    """Exponential kernel with a deviation of 0.3 and noise of 0.1, in log depth."""
    width = torch.tensor([32 / 96, 32 / 160, guide or torch.inf])
    places, asked = known.at / width, wanted.at / width
    near, index = torch.cdist(asked, places).topk(16, largest=False)
    among = torch.exp(-torch.cdist(places[index], places[index])) + (0.1 / 0.3) ** 2 * torch.eye(16)
    weight = torch.linalg.solve(among, torch.exp(-near)[..., None])[..., 0]
    return (weight * value[index]).sum(1)


def both_flips(rig: SeenRig) -> Tensor:
    """Mean (and median) of both flips, the mirrored one first fitted to the other by scale and shift."""
    straight, mirrored = torch.from_numpy(rig.straight), torch.from_numpy(rig.mirrored)
    s, m = (maps - maps.mean((1, 2), keepdim=True) for maps in (straight, mirrored))
    scale = (s * m).sum((1, 2), keepdim=True) / (m * m).sum((1, 2), keepdim=True)
    return (straight + straight.mean((1, 2), keepdim=True) + scale * m) / 2


def held_out(kind: str, seed: Sequence[int], size: tuple[int, int]) -> Tensor:
    """True for half of the pixels, or of the blocks, drawn by a seed."""
    draw = np.random.default_rng([*seed, kind == "regions"])
    if kind == "points":
        return torch.from_numpy(draw.random(size) < 0.5)
    blocks = draw.random((size[0] // BLOCK_PX, size[1] // BLOCK_PX)) < 0.5
    return torch.from_numpy(blocks.repeat(BLOCK_PX, 0).repeat(BLOCK_PX, 1))


def image_errors(d: Tensor, lidar_m: Tensor, seed: Sequence[int], fits: Sequence[str]) -> dict[tuple[str, str], float]:
    """AbsRel at held-out returns of one image by fit and by kind of split."""
    size = (int(lidar_m.shape[0]), int(lidar_m.shape[1]))
    at = places(bins.affine_invariant_map(d[None], size)[0])
    there = (lidar_m > RANGE_M[0]) & (lidar_m < RANGE_M[1])
    found = {}
    for kind in ("points", "regions"):
        held = held_out(kind, seed, size)
        order = torch.from_numpy(np.random.default_rng(seed).permutation(int((there & held).sum()))[:QUERIES].copy())
        known = Returns(at[there & ~held], lidar_m[there & ~held])
        wanted = Returns(at[there & held][order], lidar_m[there & held][order])
        for fit in fits:
            if fit == CACHED:
                said = torch.where(there & ~held, lidar_m, 0.0)
                u = correct_by_lidar(bins.affine_invariant_map(d[None], PROB_SIZE), said[None]).u
                x = interpolate(bins.map_disparity(u)[None], size=size, mode="bilinear", align_corners=False)[0]
                depth_m = fit_disparity(x, said[None]).depth_m(x)[0][there & held][order]
            else:
                depth_m = FITS[fit](known, wanted)
            error = (depth_m.clamp(*RANGE_M) - wanted.depth_m).abs() / wanted.depth_m
            found[fit, kind] = float(error.mean())
    return found


def ceiling(rigs: Sequence[SeenRig], fits: Sequence[str], flips: bool) -> dict[str, dict[str, float]]:
    """Mean AbsRel over images by fit; images with fewer than 100 returns are left out."""
    errors: dict[tuple[str, str], list[float]] = {}
    for n, rig in enumerate(rigs):
        maps = both_flips(rig) if flips else torch.from_numpy(rig.straight)
        for view, (d, lidar_m) in enumerate(zip(maps, torch.from_numpy(rig.lidar_m).float(), strict=True)):
            if (lidar_m > 0).sum() >= 100:
                for key, error in image_errors(d, lidar_m, (n, view), fits).items():
                    errors.setdefault(key, []).append(error)
    return {
        fit: {f"{kind}_abs_rel": round(statistics.mean(errors[fit, kind]), 4) for kind in ("points", "regions")}
        for fit in fits
    }


def fit_ms(rig: SeenRig, fit: str) -> float:
    """Processor time of a fit for a rig: all returns, depth at every pixel of the probability maps."""
    maps, lidar_m = torch.from_numpy(rig.straight), torch.from_numpy(rig.lidar_m).float()
    begin = time.process_time()
    if fit == CACHED:
        correct_by_lidar(bins.affine_invariant_map(maps, PROB_SIZE), lidar_m)
    else:
        for d, there_m in zip(maps, lidar_m, strict=True):
            at = places(bins.affine_invariant_map(d[None], (96, 160))[0])[there_m > 0]
            pixels = places(bins.affine_invariant_map(d[None], PROB_SIZE)[0]).flatten(0, 1)
            FITS[fit](Returns(at, there_m[there_m > 0]), Returns(pixels, torch.empty(0)))
    return round(1e3 * (time.process_time() - begin), 1)


@pytest.mark.parametrize("name", RECIPES)
def test_bench_teacher_ceiling(name, capsys):
    folder, data = os.environ.get("SURROUND_RUN"), os.environ.get("SURROUND_REAL_DATA")
    if not folder or (name == "pandaset" and not data):
        pytest.skip("set SURROUND_RUN to a folder for the teacher's maps, and SURROUND_REAL_DATA for PandaSet")
    recipe = load_recipe(RECIPES[name], [], Path(str(data)) / "pandaset" if name == "pandaset" else None)
    source = open_data(recipe.data)
    rows = []
    for part, frame_ids, input_size, fits in (
        ("selection", SELECTION[name], SMALL[name], [*FITS, CACHED]),
        ("test", TEST[name], SMALL[name], [*FITS, CACHED]),
        ("inputs", SELECTION[name][:INPUT_FRAMES], SMALL[name], ["affine", CACHED]),
        ("inputs", SELECTION[name][:INPUT_FRAMES], LARGE[name], ["affine", CACHED]),
    ):
        rigs = seen_rigs(recipe, source, frame_ids, input_size, Path(folder) / "maps")
        teacher_ms = round(statistics.median(rig.teacher_ms for rig in rigs))
        for flips in (False, True):
            for fit, errors in ceiling(rigs, fits, flips).items():
                row = {"data": name, "part": part, "frames": list(frame_ids), "input": list(input_size)}
                row |= {"flips": flips, "fit": fit, **errors, "teacher_ms": teacher_ms * (1 + flips)}
                rows.append(row if flips else row | {"fit_ms": fit_ms(rigs[0], fit)})
    before = json.loads(RESULTS.read_text())["rows"] if RESULTS.is_file() else []
    where = surroundings() | {"command": 'make bench ARGS="-k teacher_ceiling"'}
    kept = [row for row in before if row["data"] != name]
    RESULTS.write_text(
        json.dumps({"rows": sorted([*kept, *rows], key=lambda row: row["data"]), **where}, indent=1) + "\n"
    )
    with capsys.disabled():
        print(f"\n{name}: AbsRel at held-out returns, points / regions")
        for row in rows:
            size, flips = "x".join(map(str, row["input"])), "both flips" if row["flips"] else "straight"
            print(
                f"{row['part']:10} {size} {flips:10} {row['fit']:30} {row['points_abs_rel']} {row['regions_abs_rel']}"
            )
