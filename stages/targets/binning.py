"""Binning strategies: how a teacher's disparity becomes the position u from which bins are cut."""

import math
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import interpolate

from data_cache.errors import SettingError
from stages.targets import bins
from stages.targets.local_fit import DEFINITION, LocalBinning
from stages.targets.space import METRIC_SPACES, Space
from stages.targets.spec import BinSpec


@runtime_checkable
class Binning(Protocol):
    """A strategy: gives u in [0, 1] for every pixel of the probability maps, 0 being farthest."""

    @property
    def definition(self) -> str:
        """A text that identifies the strategy and changes with it; part of the cache identity."""
        ...

    def __call__(self, disparity: Float[Tensor, "N H W"], size: tuple[int, int]) -> Float[Tensor, "N h w"]:
        """Map a teacher's disparity (see `stages.targets.space.to_disparity`) to u at (h, w) `size`."""
        ...

    def disparity(self, u: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """The teacher's disparity for a given u, up to a scale and shift per image."""
        ...


@dataclass(frozen=True)
class AffineBinning:
    """The closed form, invariant to scale and shift of the disparity of each image. For any teacher."""

    @property
    def definition(self) -> str:
        """See `Binning`."""
        return bins.DEFINITION

    def __call__(self, disparity: Float[Tensor, "N H W"], size: tuple[int, int]) -> Float[Tensor, "N h w"]:
        """See `stages.targets.bins.affine_invariant_map`."""
        return bins.affine_invariant_map(disparity, size)

    def disparity(self, u: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """See `stages.targets.bins.map_disparity`."""
        return bins.map_disparity(u)


@dataclass(frozen=True)
class FittedBinning:
    """The closed form, then one increasing map for all images, which makes u linear in log depth. For any teacher.

    Attributes:
        knots: values of the piecewise linear map at positions evenly spaced over [0, 1], fitted by
            `stages/caching/fit_bins.py`. The cache identity holds them as `bin_knots`.
    """

    knots: tuple[float, ...]

    @property
    def definition(self) -> str:
        """See `Binning`."""
        return f"{bins.DEFINITION}; then the piecewise linear map of bin_knots"

    def __call__(self, disparity: Float[Tensor, "N H W"], size: tuple[int, int]) -> Float[Tensor, "N h w"]:
        """See `Binning`."""
        return bend(bins.affine_invariant_map(disparity, size), self.knots)

    def disparity(self, u: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """See `Binning`: inverts the map, then the closed form."""
        return bins.map_disparity(_unbend(u, self.knots))


@dataclass(frozen=True)
class MetricBinning:
    """For metric teachers: u = log(far / D) / log(far / near), clipped, the same for all images.

    D is the predicted depth; 1 / D is area-reduced like the disparity of the closed form.

    Attributes:
        near_m, far_m: depths of u = 1 and u = 0.
    """

    near_m: float
    far_m: float

    @property
    def definition(self) -> str:
        """See `Binning`."""
        return f"metric log map: u = 1 at {self.near_m:g} m, 0 at {self.far_m:g} m"

    def __call__(self, disparity: Float[Tensor, "N H W"], size: tuple[int, int]) -> Float[Tensor, "N h w"]:
        """See `Binning`; the disparity must be in 1/m."""
        per_m = interpolate(disparity.float()[:, None], size=size, mode="area")[:, 0]
        u = torch.log(self.far_m * per_m.clamp(min=1 / self.far_m)) / math.log(self.far_m / self.near_m)
        return u.clamp(max=1)

    def disparity(self, u: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """See `Binning`: 1 / D in units of 1 / far_m, (far / near)^u."""
        return torch.exp(u * math.log(self.far_m / self.near_m))


def bend(u: Float[Tensor, "*shape"], knots: tuple[float, ...]) -> Float[Tensor, "*shape"]:
    """Apply the piecewise linear map through `knots` at even positions over [0, 1]."""
    value = torch.tensor(knots, device=u.device, dtype=u.dtype)
    position = u * (len(knots) - 1)
    # Values that are not finite stay so; `stages.caching.products.look` detects them.
    below = position.nan_to_num().floor().clamp(0, len(knots) - 2)
    return torch.lerp(value[below.long()], value[below.long() + 1], position - below)


def _unbend(u: Float[Tensor, "*shape"], knots: tuple[float, ...]) -> Float[Tensor, "*shape"]:
    """The inverse of `bend` for increasing knots; 0 or 1 beyond the outermost knots."""
    value = torch.tensor(knots, device=u.device, dtype=u.dtype)
    right = torch.searchsorted(value, u.contiguous()).clamp(1, len(knots) - 1)
    low, high = value[right - 1], value[right]
    return (right - 1 + ((u - low) / (high - low)).clamp(0, 1)) / (len(knots) - 1)


def binning_definition(spec: BinSpec) -> str:
    """The definition of a recipe's strategy, which does not depend on fitted knots or LiDAR."""
    if spec.strategy == "local":
        return DEFINITION
    return stored_binning(spec, (0.0, 1.0)).definition


def resolve_binning(
    spec: BinSpec, space: Space, knots: tuple[float, ...] | None, local: LocalBinning | None = None
) -> Binning:
    """The strategy of a recipe for a teacher.

    Args:
        spec: the bins section of the recipe.
        space: space of the teacher's predictions.
        knots: the knots of fit-bins, for the strategy `fitted`; else None.
        local: what the strategy `local` may use of LiDAR; else None.

    Raises:
        SettingError: if the strategy needs a metric teacher and this one is not, or needs knots and there are none.
    """
    if spec.strategy == "metric" and space not in METRIC_SPACES:
        raise SettingError(
            f'bins.strategy = "metric" needs a teacher that predicts metres; this one predicts {space}, which has no'
            ' scale: take a metric teacher (ZoeDepth, Depth Pro, Depth Anything "Metric"), or "affine" or "fitted"'
        )
    if spec.strategy == "fitted" and knots is None:
        raise SettingError('bins.strategy = "fitted" needs a fitted map; run `surround fit-bins RECIPE` first')
    if spec.strategy == "local":
        assert local is not None
        return local
    return stored_binning(spec, knots)


def stored_binning(spec: BinSpec, knots: tuple[float, ...] | None) -> Binning:
    """How the bins of a cache are read: by the strategy of its recipe, with its `bin_knots`.

    Maps that LiDAR has corrected (`local`) are relative disparity in the closed form, as those of `affine` are.
    """
    if spec.strategy == "metric":
        return MetricBinning(*spec.metric_range_m)
    if spec.strategy == "fitted":
        assert knots is not None
        return FittedBinning(knots)
    return AffineBinning()
