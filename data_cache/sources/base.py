"""What a data set is: a rig, drives, splits, and frames that are read one by one."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

from data_cache.frames.rig import Frame, Rig


@runtime_checkable
class Source(Protocol):
    """A data set: what it holds is known when it is opened, frames are read one by one."""

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
        """One frame; nothing heavy is read yet. Raises FrameError if its metadata cannot be used."""
        ...


MECHANICAL = "mechanical"
LIDARS = (MECHANICAL, "forward", "both")


@runtime_checkable
class StoredSource(Source, Protocol):
    """A data set whose frames lie in files."""

    def files(self, frame_id: str) -> Mapping[str, Path]:
        """The files of a frame by sensor, as the metadata name them, whether or not they are there."""
        ...


@runtime_checkable
class PublishedSource(Source, Protocol):
    """A data set of which lists are published that call its frames by other names."""

    @property
    def published_ids(self) -> Mapping[str, str]:
        """Frame ids by these names."""
        ...


@runtime_checkable
class EditableSource(Source, Protocol):
    """A data set whose calibration and poses its user writes and corrects."""

    def metadata_sha256(self, frame_ids: Sequence[str]) -> str:
        """Over all that is written about the rig and these frames; images and points are not looked at."""
        ...
