"""The interface of a data set: a rig, drives, splits, and frames that are read one by one."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from data_cache.frames.rig import Camera, Frame, Rig
from data_cache.frames.undistort import Lens


@runtime_checkable
class Source(Protocol):
    """A data set: its drives and frame ids are known when it is opened; frames are read one by one."""

    @property
    def name(self) -> str:
        """Name of the data set; part of the cache identity."""
        ...

    @property
    def rig(self) -> Rig:
        """The cameras in ring order."""
        ...

    @property
    def drives(self) -> Mapping[str, tuple[str, ...]]:
        """Frame ids of each drive (scene, sequence), in time order."""
        ...

    @property
    def splits(self) -> Mapping[str, tuple[str, ...]]:
        """Drive names of each split that the data set itself defines."""
        ...

    def frame(self, frame_id: str) -> Frame:
        """One frame; its images and LiDAR are not read yet. Raises FrameError if its metadata cannot be used."""
        ...


MECHANICAL = "mechanical"
LIDARS = (MECHANICAL, "forward", "both")


@runtime_checkable
class StoredSource(Source, Protocol):
    """A data set whose frames are stored in files."""

    def files(self, frame_id: str) -> Mapping[str, Path]:
        """The files of a frame by sensor, as the metadata names them, whether or not they exist."""
        ...


@runtime_checkable
class PublishedSource(Source, Protocol):
    """A data set for which published frame lists use other names than our frame ids."""

    @property
    def published_ids(self) -> Mapping[str, str]:
        """Frame ids by published name."""
        ...


@runtime_checkable
class EditableSource(Source, Protocol):
    """A data set whose calibration and poses are written and edited by its user."""

    def metadata_sha256(self, frame_ids: Sequence[str]) -> str:
        """Hash of the metadata of the rig and these frames; images and points are not included."""
        ...


@dataclass(frozen=True)
class ImageFile:
    """An image file in memory: its bytes, its suffix, and whether they are those that the camera's driver wrote."""

    data: bytes
    suffix: str
    is_copy: bool


@dataclass(frozen=True, eq=False)
class Photograph:
    """An image as it was recorded, before it is undistorted.

    Attributes:
        camera: the calibration of the photograph; with a lens, another one than that of the view.
        lens: None if the image is not distorted.
        read: reads the file. Raises FrameError if it is damaged, or not of the camera's image size.
    """

    camera: Camera
    lens: Lens | None
    read: Callable[[], ImageFile]


@runtime_checkable
class RecordedSource(Source, Protocol):
    """A data set of photographs, each with the lens that took it, as a vehicle recorded them."""

    @property
    def identity(self) -> str:
        """Hash of what the frames are made of: an export of equal identity can be continued."""
        ...

    @property
    def mounts(self) -> Mapping[str, Float[np.ndarray, "4 4"]]:
        """ego_from_sensor of each camera by name, and of the LiDAR as `lidar`."""
        ...

    def photographs(self, frame_id: str) -> Mapping[str, Photograph]:
        """The photographs of a frame by camera. Raises FrameError if its metadata cannot be used."""
        ...
