"""Where a teacher's bins lie: strategies that turn its disparity into the position u that the bins are cut from."""

import math
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import interpolate

from data_cache.errors import SettingError
from stages.targets import bins
from stages.targets.bins import BinSpec
from stages.targets.space import METRIC_SPACES, Space


@runtime_checkable
class Binning(Protocol):
    """A strategy: u in [0, 1] for every pixel where probabilities live, 0 farthest."""

    @property
    def definition(self) -> str:
        """The strategy in words that change when it changes; part of the cache identity."""
        ...

    def __call__(self, disparity: Float[Tensor, "N H W"], size: tuple[int, int]) -> Float[Tensor, "N h w"]:
        """Map a teacher's disparity, see `stages.targets.space.to_disparity`, to u at `size`."""
        ...

    def disparity(self, u: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """The teacher's disparity behind u, up to a scale and a shift that belong to the image."""
        ...


@dataclass(frozen=True)
class AffineBinning:
    """The closed form: unchanged by scale and shift of the disparity, image by image. Any teacher."""

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
    """The closed form, bent by one increasing map for all images, so that u is linear in log depth. Any teacher.

    Attributes:
        knots: values of the map at positions evenly spaced over [0, 1], straight lines between;
            `stages/caching/fit_bins.py` fits them. They stand in the cache identity themselves, its `bin_knots`.
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
        """See `Binning`: the map undone, then the closed form."""
        return bins.map_disparity(_unbend(u, self.knots))


@dataclass(frozen=True)
class MetricBinning:
    """A metric teacher's own prediction: u = log(far / D) / log(far / near), clipped; the same in every image.

    1 / D is area-reduced like the closed form's disparity.

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
    # What is not finite stays so; look() sees it.
    below = position.nan_to_num().floor().clamp(0, len(knots) - 2)
    return torch.lerp(value[below.long()], value[below.long() + 1], position - below)


def _unbend(u: Float[Tensor, "*shape"], knots: tuple[float, ...]) -> Float[Tensor, "*shape"]:
    """The inverse of `bend` for increasing knots; beyond the outermost ones it stays at 0 or 1."""
    value = torch.tensor(knots, device=u.device, dtype=u.dtype)
    right = torch.searchsorted(value, u.contiguous()).clamp(1, len(knots) - 1)
    low, high = value[right - 1], value[right]
    return (right - 1 + ((u - low) / (high - low)).clamp(0, 1)) / (len(knots) - 1)


def binning_definition(spec: BinSpec) -> str:
    """The definition of a recipe's strategy, which does not depend on what was fitted."""
    return stored_binning(spec, (0.0, 1.0)).definition


def resolve_binning(spec: BinSpec, space: Space, knots: tuple[float, ...] | None) -> Binning:
    """The strategy of a recipe for a teacher.

    Args:
        spec: bins of the recipe.
        space: of the teacher.
        knots: what fit-bins has fitted, where the strategy is fitted.

    Raises:
        SettingError: if the strategy needs metres that the teacher does not predict, or knots that are not there.
    """
    if spec.strategy == "metric" and space not in METRIC_SPACES:
        raise SettingError(
            f'bins.strategy = "metric" needs a teacher that predicts metres; this one predicts {space}, which has no'
            ' scale: take a metric teacher (ZoeDepth, Depth Pro, Depth Anything "Metric"), or "affine" or "fitted"'
        )
    if spec.strategy == "fitted" and knots is None:
        raise SettingError('bins.strategy = "fitted" needs a fitted map; run `surround fit-bins RECIPE` first')
    return stored_binning(spec, knots)


def stored_binning(spec: BinSpec, knots: tuple[float, ...] | None) -> Binning:
    """The strategy that a cache was written with: that of its recipe, with its `bin_knots`."""
    if spec.strategy == "metric":
        return MetricBinning(*spec.metric_range_m)
    if spec.strategy == "fitted":
        assert knots is not None
        return FittedBinning(knots)
    return AffineBinning()
