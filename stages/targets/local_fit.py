"""The binning strategy `local`: the teacher's map is corrected by LiDAR, place by place, before its bins are cut."""

import math
from collections.abc import Collection
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import interpolate

from stages.targets import bins
from stages.targets.lidar_fit import fit_disparity

GRID_COLUMNS = (1, 2, 4, 8, 16, 32, 64)
"""Cells across the image, from the coarsest grid to the finest; rows are as high as columns are wide."""
GRID_POSITIONS = 16
"""Cells from u = 0 to u = 1: what the teacher puts that far apart is corrected apart."""
SUPPORT = 0.3
"""Returns that speak for no correction, in each cell: a single return beside a pixel moves it by three quarters."""
MAX_LOG_STEP = 1.0
"""A return farther than this from the fit, in log depth, counts as this far: it may lie on what the teacher missed."""
DEFINITION = (
    f"{bins.DEFINITION}; depth fitted to LiDAR by scale and shift, corrected in grids of"
    f" {GRID_COLUMNS[0]}..{GRID_COLUMNS[-1]} columns and {GRID_POSITIONS} positions (support {SUPPORT:g}, at most"
    f" e^{MAX_LOG_STEP:g}); the same map again"
)
"""Part of the cache identity: a change to the definitions below must change this text."""


@dataclass(frozen=True, eq=False)
class Corrected:
    """Maps after the correction.

    Attributes:
        u: positions among the bins, larger is nearer.
        corrected: True for views with a fit to LiDAR; the others keep their map.
    """

    u: Float[Tensor, "V h w"]
    corrected: Bool[Tensor, " V"]


@dataclass(frozen=True)
class LocalBinning:
    """The closed form, of disparity that LiDAR has corrected; without LiDAR the closed form as it is. For any teacher.

    Either is a relative disparity up to scale and shift, so what reads a cache need not tell them apart.

    Attributes:
        range_m: returns outside are ignored.
        frame_ids: frames whose LiDAR may be used; None for all.
    """

    range_m: tuple[float, float]
    frame_ids: Collection[str] | None = None

    @property
    def definition(self) -> str:
        """See `stages.targets.binning.Binning`."""
        return DEFINITION

    def __call__(self, disparity: Float[Tensor, "N H W"], size: tuple[int, int]) -> Float[Tensor, "N h w"]:
        """The closed form; `correct` does the rest when the frame's LiDAR is at hand."""
        return bins.affine_invariant_map(disparity, size)

    def disparity(self, u: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """See `stages.targets.bins.map_disparity`."""
        return bins.map_disparity(u)

    def correct(self, frame_id: str, u: Float[Tensor, "V h w"], lidar_depth_m: Float[Tensor, "V H W"]) -> Corrected:
        """Correct the views of a frame; all keep their map if its LiDAR may not be used."""
        if self.frame_ids is not None and frame_id not in self.frame_ids:
            return Corrected(u, torch.zeros(len(u), dtype=torch.bool))
        in_range = (lidar_depth_m > self.range_m[0]) & (lidar_depth_m < self.range_m[1])
        return correct_by_lidar(u, torch.where(in_range, lidar_depth_m, 0.0))


def correct_by_lidar(u: Float[Tensor, "V h w"], lidar_depth_m: Float[Tensor, "V H W"]) -> Corrected:
    """Correct closed-form maps so that their disparity, by one scale and shift per image, gives the LiDAR's depth.

    Scale and shift of disparity are fitted first (`stages.targets.lidar_fit.fit_disparity`). What is left at the
    returns, in log depth, is averaged over the cells of a grid in rows, columns and u (the bilateral grid of Chen et
    al. 2007), what that leaves over the cells of a finer one, and so on (METHOD: ours, in the spirit of LiDAR-prompted
    depth). So a pixel follows returns that are near it AND that the teacher puts at a similar depth: the correction
    keeps the teacher's edges, and fades to that of a larger neighbourhood where no return is near.

    Args:
        u: closed-form maps.
        lidar_depth_m: metres at any size, 0 = no return to use.
    """
    h, w = u.shape[-2:]
    height, width = lidar_depth_m.shape[-2:]
    at_returns = interpolate(u[:, None], size=(height, width), mode="bilinear", align_corners=False)[:, 0]
    fit = fit_disparity(bins.map_disparity(at_returns), lidar_depth_m)
    fitted_m = fit.depth_m(bins.map_disparity(at_returns))
    found = u.clone()
    for view in fit.fitted.nonzero()[:, 0].tolist():
        there = lidar_depth_m[view] > 0
        left = (lidar_depth_m[view][there] / fitted_m[view][there]).log().clamp(-MAX_LOG_STEP, MAX_LOG_STEP)
        step = spread(places(at_returns[view])[there], left, places(u[view]).flatten(0, 1), height / width)
        inverse = fit.shift[view] + fit.scale[view] * bins.map_disparity(u[view])
        found[view] = bins.affine_invariant_map(inverse * torch.exp(-step.view(h, w)), (h, w))
    return Corrected(found, fit.fitted)


def spread(
    at: Float[Tensor, "N 3"], value: Float[Tensor, " N"], where: Float[Tensor, "M 3"], aspect: float
) -> Float[Tensor, " M"]:
    """Spread values to other places, from the coarsest grid to the finest.

    Args:
        at, where: row, column and u, each in [0, 1].
        value: at `at`.
        aspect: height of the image divided by its width.
    """
    left, total = value, torch.zeros(len(where))
    for columns in GRID_COLUMNS:
        cells = (max(1, round(aspect * columns)), columns, GRID_POSITIONS)
        known, wanted = _corners(at, cells), _corners(where, cells)
        size = math.prod(count + 1 for count in cells)
        weight = torch.zeros(size).index_add_(0, known.index.flatten(), known.share.flatten())
        summed = torch.zeros(size).index_add_(0, known.index.flatten(), (known.share * left).flatten())
        left = left - known.read(summed) / (known.read(weight) + SUPPORT)
        total = total + wanted.read(summed) / (wanted.read(weight) + SUPPORT)
    return total


@dataclass(frozen=True, eq=False)
class _Corners:
    """The eight nodes of a grid around each of N places, and their trilinear shares."""

    index: Tensor
    share: Tensor

    def read(self, node: Float[Tensor, " G"]) -> Float[Tensor, " N"]:
        return (self.share * node.take(self.index)).sum(0)


def _corners(at: Float[Tensor, "N 3"], cells: tuple[int, int, int]) -> _Corners:
    position = at * torch.tensor(cells)
    low = torch.minimum(position.floor(), torch.tensor(cells) - 1.0)
    rows, columns, positions = torch.stack([1 - position + low, position - low]).unbind(-1)  # each (2, N)
    share = rows[:, None, None] * columns[:, None] * positions
    row, column, depth = low.long().unbind(-1)
    _, across, deep = (count + 1 for count in cells)
    first = (row * across + column) * deep + depth
    corner = torch.tensor([(i * across + j) * deep + k for i in (0, 1) for j in (0, 1) for k in (0, 1)])
    return _Corners(corner[:, None] + first, share.flatten(0, 2))


def places(u: Float[Tensor, "H W"]) -> Float[Tensor, "H W 3"]:
    """Row, column and u of every pixel of a map, each in [0, 1], for `spread`."""
    height, width = u.shape
    row, column = torch.meshgrid(
        (torch.arange(height) + 0.5) / height, (torch.arange(width) + 0.5) / width, indexing="ij"
    )
    return torch.stack([row, column, u], -1)
