"""The interface of a data set: a rig, drives, splits, and frames that are read one by one."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

from data_cache.frames.rig import Frame, Rig


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
