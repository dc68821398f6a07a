"""The three encodings of bin probabilities: which arrays a cache stores for each."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Generic, TypeVar, cast

from jaxtyping import Float16, Integer, UInt8

A = TypeVar("A")
B = TypeVar("B")


@dataclass(frozen=True, eq=False)
class WindowBins(Generic[A]):
    """Probabilities of the S consecutive bins that hold most of the mass.

    Attributes:
        bin_first: first bin of the window.
        bin_prob: weights inside the window, the largest being 255; divide by their sum to get probabilities.
    """

    settings: ClassVar = ("window_width", "bin_count", "bin_sigma")
    bin_first: UInt8[A, "*views h w"]
    bin_prob: UInt8[A, "*views h w S"]


@dataclass(frozen=True, eq=False)
class ClosedFormBins(Generic[A]):
    """The affine-invariant map u in units of 1/65535; the probabilities follow from it for any K and sigma.

    The map of a missing camera is 0, which decodes to the farthest bins: only `view_valid` marks it as missing.
    """

    settings: ClassVar = ()
    bin_map: Integer[A, "*views h w"]


@dataclass(frozen=True, eq=False)
class DenseBins(Generic[A]):
    """All K probabilities, bin axis last, so that the arrays of every encoding begin with the same axes."""

    settings: ClassVar = ("bin_count", "bin_sigma")
    bin_dense: Float16[A, "*views h w K"]


StoredBins = WindowBins[A] | ClosedFormBins[A] | DenseBins[A]
"""The teacher's bin probabilities as stored; stages/targets/bins.py encodes and decodes them.

A is the type of array, numpy at rest and torch in training. `settings` names the fields of the cache identity that the
stored bytes depend on; the other fields are chosen when the bytes are read.
"""
ENCODINGS: dict[str, type[StoredBins[Any]]] = {
    "window": WindowBins,
    "closed_form": ClosedFormBins,
    "dense": DenseBins,
}


def map_arrays(function: Callable[..., B], *bins: StoredBins[Any]) -> StoredBins[B]:
    """Apply `function` to corresponding arrays of one or several bins of the same encoding."""
    kind = type(bins[0])
    return cast("StoredBins[B]", kind(*(function(*(getattr(b, f.name) for b in bins)) for f in fields(kind))))
