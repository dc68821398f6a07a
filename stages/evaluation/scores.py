"""Pooling of errors: per image (or per pool of images), then a mean per camera, then a mean of cameras."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from jaxtyping import Float

from stages.evaluation.metrics import DepthErrors, depth_errors, mean_errors

BAND_EDGES_M = (0, 20, 40, 80, 200)


@dataclass(frozen=True)
class Scores:
    """One table of the report: the mean over cameras, each camera, and each band of true distance."""

    mean: DepthErrors
    per_camera: dict[str, DepthErrors]
    by_distance_m: dict[str, DepthErrors]


class ScoreTable:
    """Errors of one alignment per image or pool of images, by camera and by band of true distance."""

    def __init__(self, range_m: tuple[float, float]):
        self._per_camera: dict[str, list[DepthErrors]] = defaultdict(list)
        edges = [edge for edge in BAND_EDGES_M if edge <= range_m[1]]
        self._bands: Mapping[tuple[int, int], dict[str, list[DepthErrors]]] = {
            band: defaultdict(list) for band in pairwise(edges)
        }

    @property
    def images(self) -> int:
        """Images added so far."""
        return sum(errors.images for entries in self._per_camera.values() for errors in entries)

    def add(
        self, camera: str, predicted_m: Sequence[Float[np.ndarray, " _"]], truth_m: Sequence[Float[np.ndarray, " _"]]
    ) -> None:
        """Add a pool of images of one camera: one entry of pixels per image. A single image is a pool, too."""
        predicted, truth = np.concatenate(predicted_m), np.concatenate(truth_m)
        self._per_camera[camera].append(depth_errors(predicted_m=predicted, truth_m=truth, images=len(truth_m)))
        for (near, far), per_camera in self._bands.items():
            inside = (truth >= near) & (truth < far)
            if inside.any():
                images = sum(bool(((image >= near) & (image < far)).any()) for image in truth_m)
                per_camera[camera].append(
                    depth_errors(predicted_m=predicted[inside], truth_m=truth[inside], images=images)
                )

    def scores(self) -> Scores:
        """The pooled table; bands without a pixel are left out."""
        per_camera = {name: mean_errors(entries) for name, entries in self._per_camera.items()}
        bands = {
            f"{near}-{far}": mean_errors(mean_errors(entries) for entries in cameras.values())
            for (near, far), cameras in self._bands.items()
            if cameras
        }
        return Scores(mean_errors(per_camera.values()), per_camera, bands)
