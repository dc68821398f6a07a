"""The Python API: a student that predicts depth from images, and a cache to iterate over.

README, "From Python", shows all of it in ten lines. Its types belong to the layers below: `Frame` in
`data_cache.frames.rig`, `RigDescription` in `data_cache.sources.rig_folder.rig_json`, `FrameRecord` in
`data_cache.shards.records`.
"""

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float32

from data_cache.errors import SettingError, SurroundWarning
from data_cache.frames.rig import Frame
from data_cache.shards.reader import CacheReader
from data_cache.shards.records import FrameRecord
from data_cache.sources.rig_folder.loose_images import frame_of
from data_cache.sources.rig_folder.rig_json import RigDescription, read_rig
from stages.compute.devices import place, resolve_device, resolve_precision
from stages.inference.predict import Prediction, predict_frame
from stages.student.checkpoint import Calibration, Lineage, find_checkpoint
from stages.student.checkpoint import load_student as load_checkpoint
from stages.student.fold import folded
from stages.student.model import Student

Image = np.ndarray | str | Path
DepthMap = Float32[np.ndarray, "H W"]
SigmaMap = Float32[np.ndarray, "H W"]
UNCALIBRATED = (
    "this student has no calibration: its sigma is the spread of its bins as it is, several times too large or too"
    " small; run `surround calibrate` on its run, and name a new folder in --out: it is another checkpoint then"
)


@dataclass(frozen=True, eq=False)
class SurroundStudent:
    """A trained student, ready to look at rigs.

    Attributes:
        network: on its device, batch norms folded; `network.spec.input_size` is the size that images are stretched to.
        lineage: its origin: teacher and licence, data set, the range of depth in metres that it was trained on.
        device, precision: what it computes on and in.
        calibration: what makes its sigma right; None for a student that `surround calibrate` has not seen.
    """

    network: Student
    lineage: Lineage
    device: torch.device
    precision: str
    calibration: Calibration | None = None

    def predict(self, images: Sequence[Image | None], rig: RigDescription) -> list[DepthMap | None]:
        """Predict metric depth for the images of one moment.

        Args:
            images: one per camera, in the rig's order: RGB (H, W, 3) uint8, or a file; as the camera took it, before
                undistortion. None where there is no image.
            rig: from `load_rig`.

        Returns:
            A depth map per image: z in the camera frame, float32 (H, W), metres, for every pixel of the image; for a
            distorted camera, of the undistorted image, which `rig.cameras[name].calibration.camera` describes. None for
            None.

        Raises:
            FrameError: if an image cannot be read, is not of the rig's size, or one is missing or too many.
        """
        return self.predict_frame(_frame_of(images, rig))

    def predict_with_sigma(
        self, images: Sequence[Image | None], rig: RigDescription
    ) -> list[tuple[DepthMap, SigmaMap] | None]:
        """Do the same, and say how sure each depth is.

        Returns:
            For each image its depth map and sigma, the standard deviation of log depth, float32 (H, W): 68 % of depths
            are right up to a factor exp(sigma), if the student is calibrated. None for None.

        Warns:
            SurroundWarning: if it is not calibrated.
        """
        if self.calibration is None:
            warnings.warn(UNCALIBRATED, SurroundWarning, stacklevel=2)
        frame = _frame_of(images, rig)
        said = self.look(frame, uncalibrated=True)
        return [
            (depth_m, sigma) if depth_m is not None and sigma is not None else None
            for depth_m, sigma in zip(said.at_image_size(frame), said.sigma_at_image_size(frame), strict=True)
        ]

    def predict_frame(self, frame: Frame) -> list[DepthMap | None]:
        """Do the same for a frame of a data set (`data_cache.sources.registry.open_source`). Raises FrameError."""
        return list(self.look(frame).at_image_size(frame))

    def look(self, frame: Frame, *, uncalibrated: bool = False) -> Prediction:
        """Predict at the network's own input size, with sigma if it is calibrated or `uncalibrated`.

        Raises FrameError.
        """
        how = (self.network, frame, self.device, self.precision, self.calibration)
        return predict_frame(*how, uncalibrated=uncalibrated)


def load_student(checkpoint: str | Path, device: str = "auto", precision: str = "auto") -> SurroundStudent:
    """Load a student from its checkpoint alone.

    Args:
        checkpoint: such as RUN/student/last.safetensors, or a folder that holds one, as a repository of a model hub.
        device: auto (the GPU where there is one), cpu or cuda.
        precision: auto (bf16 where the hardware has it), fp32, bf16 or fp16.

    Raises:
        CheckpointError: if it is missing, damaged or not a student, or the folder holds none or several.
        SettingError: if the device is not there, or `device` or `precision` is unknown.
    """
    where = resolve_device(device)
    how = resolve_precision(precision, where)
    loaded = load_checkpoint(find_checkpoint(Path(checkpoint)))
    network = folded(loaded.student)
    place(network, where)
    return SurroundStudent(network, loaded.lineage, where, how, loaded.calibration)


def _frame_of(images: Sequence[Image | None], rig: RigDescription) -> Frame:
    return frame_of([Path(image) if isinstance(image, str) else image for image in images], rig)


def load_rig(path: str | Path) -> RigDescription:
    """Read the `rig.json` of a vehicle (data_cache/RIG_FOLDER.md); its `cameras` are keyed by name, in ring order.

    Raises:
        SourceError: naming the file and the key, if anything in it is missing, unknown or impossible.
    """
    return read_rig(Path(path))


def load_cache(location: str | Path, split: str = "train") -> Iterator[tuple[str, FrameRecord]]:
    """Iterate over the frames of a complete cache with their ids, in its order; quarantined ones are left out.

    Args:
        location: a cache folder such as RUN/cache, or s3://bucket/prefix, gs://bucket/prefix.
        split: train or selection.

    Raises:
        CacheError: if there is no cache, it is not complete, or its bytes are not what was written.
        SettingError: if there is no such split.
    """
    reader = CacheReader(location)
    splits = {"train": reader.frames.train, "selection": reader.frames.selection}
    if split not in splits:
        raise SettingError(f"split: expected one of {', '.join(splits)}, got {split!r}")
    return ((frame_id, reader.read(frame_id)) for frame_id in reader.usable(splits[split]))
