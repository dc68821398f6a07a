"""Consistency of neighbouring cameras: do they give the same depth to a surface that both see?"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass

import numpy as np
from jaxtyping import Float

from data_cache.frames.geometry import OCCLUSION_RATIO, project, unproject
from data_cache.frames.rig import Frame
from data_cache.frames.views import RigViews
from stages.evaluation.results import Consistency


@dataclass(frozen=True)
class Overlap:
    """Points of a view that land in another one: their numbers, and sums of relative differences |z - D| / D.

    z is the depth of the point in the other view, D what that view says at the pixel it falls on.

    Attributes:
        landed: points inside the image, ahead, where D > 0.
        not_hidden: those with z / D < OCCLUSION_RATIO; before the others the other view may see something nearer.
        compared: those with 1 / OCCLUSION_RATIO < z / D < OCCLUSION_RATIO: both views see one surface.
        not_hidden_sum, compared_sum: sums of |z - D| / D over these two.
    """

    landed: int
    not_hidden: int
    compared: int
    not_hidden_sum: float
    compared_sum: float

    @property
    def abs_rel(self) -> float | None:
        """Mean of |z - D| / D over the compared points: how far depths of one surface differ. None if there are none.

        It leaves out gross disagreement, see `abs_rel_with_gross` and `share`.
        """
        return self.compared_sum / self.compared if self.compared else None

    @property
    def abs_rel_with_gross(self) -> float | None:
        """Mean of |z - D| / D over all landed points that the other view does not hide. None if there are none.

        A point with z / D >= OCCLUSION_RATIO may truly be hidden, so it says nothing. One with z / D below
        1 / OCCLUSION_RATIO is an error of less than 1: the other view sees through the surface that this one claims,
        and both cannot be right. So a gross disagreement counts in one of the two directions: a surface that A puts
        too far is hidden from A to B, and seen through from B to A.
        """
        return self.not_hidden_sum / self.not_hidden if self.not_hidden else None

    @property
    def share(self) -> float | None:
        """Compared points as a share of the landed ones. None if no point lands."""
        return self.compared / self.landed if self.landed else None


def overlap_consistency(
    depth_m: Float[np.ndarray, "2 H W"],
    K_px: Float[np.ndarray, "2 3 3"],
    world_from_cam: Float[np.ndarray, "2 4 4"],
) -> Overlap:
    """Project the depth of the first view into the second and compare the two. A depth of 0 means no depth."""
    size = (int(depth_m.shape[1]), int(depth_m.shape[2]))
    points = unproject(depth_m[0].astype(np.float64), K_px[0])[depth_m[0] > 0]
    second_from_first = np.linalg.inv(world_from_cam[1]) @ world_from_cam[0]
    seen = project(points, second_from_first, K_px[1], size)
    there = depth_m[1][seen.v_px.astype(int), seen.u_px.astype(int)].astype(np.float64)
    ratio = seen.depth_m[there > 0] / there[there > 0]
    not_hidden = ratio[ratio < OCCLUSION_RATIO]
    compared = not_hidden[not_hidden > 1 / OCCLUSION_RATIO]
    sums = (float(np.abs(ratios - 1).sum()) for ratios in (not_hidden, compared))
    return Overlap(ratio.size, not_hidden.size, compared.size, *sums)


def ring_overlaps(frame: Frame, rig: RigViews, depth_m: Float[np.ndarray, "V H W"]) -> dict[str, Overlap]:
    """Overlap of each pair of ring neighbours of a frame, pooled over both directions, by both camera names.

    Pairs of which no point lands in the other view are left out.
    """
    V = len(frame.views)
    found: dict[str, Overlap] = {}
    for i in range(V):
        j = (i + 1) % V
        first, second = frame.views[i], frame.views[j]
        if first is None or second is None or i == j:
            continue
        both = pooled_overlap(
            overlap_consistency(depth_m[[a, b]], rig.intrinsics[[a, b]], rig.world_from_cam[[a, b]])
            for a, b in ((i, j), (j, i))
        )
        if both.landed:
            found[f"{first.camera.name}-{second.camera.name}"] = both
    return found


def pooled_overlap(overlaps: Iterable[Overlap]) -> Overlap:
    """Pool one overlap or more: every point weighs the same, so numbers and sums add up."""
    return Overlap(*map(sum, zip(*map(astuple, overlaps), strict=True)))


def ring_consistency(overlaps: Mapping[str, Sequence[Overlap]]) -> Consistency:
    """Pool the overlaps of each pair over its frames; the number of the ring is the plain mean of its pairs."""
    pooled = {name: pooled_overlap(found) for name, found in overlaps.items()}
    abs_rel = _known({name: pair.abs_rel for name, pair in pooled.items()})
    with_gross = _known({name: pair.abs_rel_with_gross for name, pair in pooled.items()})
    share = _known({name: pair.share for name, pair in pooled.items()})
    return Consistency(_mean(abs_rel), abs_rel, _mean(with_gross), with_gross, _mean(share), share)


def _known(values: Mapping[str, float | None]) -> dict[str, float]:
    return {name: value for name, value in values.items() if value is not None}


def _mean(values: Mapping[str, float]) -> float | None:
    return float(np.mean(list(values.values()))) if values else None
