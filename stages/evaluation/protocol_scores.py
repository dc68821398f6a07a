"""Scores under a protocol: which pixels count, how predictions are aligned, how errors are pooled."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from data_cache.frames.geometry import sparse_depth
from data_cache.frames.images import mask_at
from data_cache.frames.rig import Sweep, View
from stages.compute.resize import depth_at, resized
from stages.evaluation import metrics
from stages.evaluation.protocols import Protocol
from stages.evaluation.results import StudentScores, TeacherScores
from stages.evaluation.scores import ScoreTable


@dataclass(frozen=True, eq=False)
class ImagePixels:
    """The pixels of one image that count.

    Attributes:
        camera: name of the camera.
        truth_m: LiDAR depths in range, where the vehicle does not hide the scene.
        predicted_m: predicted depths there, not clipped.
        disparity: the teacher's disparity there, in its own unit; None if there is no teacher.
        masked: whether a self-occlusion mask was applied.
        sigma: the student's standard deviation of log depth there; None if it was not asked.
    """

    camera: str
    truth_m: Float[np.ndarray, " N"]
    predicted_m: Float[np.ndarray, " N"]
    disparity: Float[np.ndarray, " N"] | None
    masked: bool
    sigma: Float[np.ndarray, " N"] | None = None


def image_pixels(
    view: View,
    sweep: Sweep,
    predicted_m: Float[np.ndarray, "_ _"],
    disparity: Float[np.ndarray, "_ _"] | None,
    protocol: Protocol,
    range_m: tuple[float, float],
    network_size: tuple[int, int],
    sigma: Float[np.ndarray, "_ _"] | None = None,
) -> ImagePixels | None:
    """Collect the pixels of an image that count, at the resolution of the protocol; None if there are none.

    Args:
        view, sweep: a view and the LiDAR sweep of its frame.
        predicted_m: predicted depth at any size, 0 = none.
        disparity: the teacher's disparity at any size.
        protocol: the protocol.
        range_m: the protocol's depth range for this data set.
        network_size: (H, W) of the network that is evaluated.
        sigma: the student's standard deviation of log depth, at any size.

    Raises:
        FrameError: if the self-occlusion mask cannot be read.
    """
    native = (view.camera.height_px, view.camera.width_px)
    size = native if protocol.resolution == "native" else network_size
    truth_m = sparse_depth(view, sweep, size)
    valid = (truth_m > range_m[0]) & (truth_m < range_m[1])
    load_mask = view.load_unoccluded if protocol.masks != "ignored" else None
    if load_mask is not None:
        valid &= mask_at(load_mask(), size)
    if not valid.any():
        return None
    there = resized(disparity, size)[valid] if disparity is not None else None
    predicted = depth_at(predicted_m, size)[valid]
    sure = resized(sigma, size)[valid] if sigma is not None else None
    return ImagePixels(view.camera.name, truth_m[valid], predicted, there, load_mask is not None, sure)


def teacher_fitted_to(
    student_m: Float[np.ndarray, "H W"], disparity: Float[np.ndarray, "_ _"], range_m: tuple[float, float]
) -> Float[np.ndarray, "H W"]:
    """The teacher's depth in the student's metres: scale and shift of disparity by least squares over the whole image.

    Args:
        student_m: the student's depth, 0 = none; it is clipped to the range for the fit.
        disparity: the teacher's disparity at any size.
        range_m: the protocol's depth range.

    Returns:
        Depth in metres within the range, 0 where the student has none.
    """
    there = student_m > 0
    fitted_m = np.zeros_like(student_m)
    if there.any():
        values = resized(disparity, (student_m.shape[0], student_m.shape[1]))[there]
        fit = metrics.fit_affine_disparity(disparity=values, truth_m=student_m[there].clip(*range_m))
        fitted_m[there] = metrics.affine_depth_m(values, fit, range_m)
    return fitted_m


class ProtocolScores:
    """Errors of a split under a protocol. Frames are added one by one and pooled as the protocol says."""

    def __init__(self, protocol: Protocol, range_m: tuple[float, float]):
        self._protocol = protocol
        self._range_m = range_m
        self._metric, self._median, self._affine, self._teacher = (ScoreTable(range_m) for _ in range(4))
        self._pool: list[Sequence[ImagePixels]] = []
        self.masked_images = 0

    def add(self, images: Sequence[ImagePixels]) -> None:
        """Add the images of one frame; a frame without images also counts as one of a pool."""
        self._pool.append(images)
        self.masked_images += sum(image.masked for image in images)
        if len(self._pool) == self._protocol.pool_frames:
            self._flush()

    def student(self) -> StudentScores | None:
        """The student's scores so far; None if there is no image."""
        self._flush()
        if not self._metric.images:
            return None
        return StudentScores(self._metric.scores(), self._median.scores(), self._affine.scores())

    def teacher(self) -> TeacherScores | None:
        """The teacher's scores so far; None if it has no image."""
        self._flush()
        return TeacherScores(self._teacher.scores()) if self._teacher.images else None

    def _flush(self) -> None:
        cameras: dict[str, list[ImagePixels]] = defaultdict(list)
        for frame in self._pool:
            for image in frame:
                cameras[image.camera].append(image)
        self._pool = []
        rig_scale = self._scale([image for images in cameras.values() for image in images]) if cameras else 1.0
        for camera, images in cameras.items():
            truth_m = [image.truth_m for image in images]
            scale = rig_scale if self._protocol.median == "rig" else self._scale(images)
            self._metric.add(camera, [image.predicted_m.clip(*self._range_m) for image in images], truth_m)
            scaled = [(self._unscaled(image) * scale).clip(*self._range_m) for image in images]
            self._median.add(camera, scaled, truth_m)
            self._affine.add(
                camera, [self._fitted(1 / image.predicted_m.clip(*self._range_m), image) for image in images], truth_m
            )
            fitted = [self._fitted(image.disparity, image) for image in images if image.disparity is not None]
            if fitted:
                self._teacher.add(camera, fitted, truth_m)

    def _unscaled(self, image: ImagePixels) -> Float[np.ndarray, " N"]:
        return image.predicted_m.clip(*self._range_m) if self._protocol.clip_first else image.predicted_m

    def _scale(self, images: Sequence[ImagePixels]) -> float:
        return metrics.median_scale(
            predicted_m=np.concatenate([self._unscaled(image) for image in images]),
            truth_m=np.concatenate([image.truth_m for image in images]),
        )

    def _fitted(self, disparity: Float[np.ndarray, " N"], image: ImagePixels) -> Float[np.ndarray, " N"]:
        return metrics.aligned_m(disparity=disparity, truth_m=image.truth_m, range_m=self._range_m)
