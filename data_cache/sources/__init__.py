"""Data sets as frames. One file per data set; `open_source` is the only door."""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

from data_cache.errors import SourceError
from data_cache.rig import Frame, Rig


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


@runtime_checkable
class StoredSource(Source, Protocol):
    """A data set whose frames lie in files."""

    def files(self, frame_id: str) -> Mapping[str, Path]:
        """The files of a frame by sensor, as the metadata name them, whether or not they are there."""
        ...


SOURCES = ("synthetic", "ddad", "nuscenes", "pandaset")


def open_source(kind: str, root: Path | None, version: str = "") -> Source:
    """Open a data set.

    Args:
        kind: one of SOURCES.
        root: data set folder; None for sources that live in memory.
        version: which of several releases under one root (nuScenes), empty where there is one.

    Raises:
        SourceError: if the kind is unknown or the folder is not such a data set (with what was looked for).
    """
    if kind not in SOURCES:
        raise SourceError(f"unknown source {kind!r}; it is one of {', '.join(SOURCES)}")
    # Each source is imported only when it is asked for: the synthetic one needs a ray caster, the others do not.
    if kind == "synthetic":
        from data_cache.sources.synthetic import SyntheticSource

        return SyntheticSource()
    if root is None:
        raise SourceError(f"{kind}: no data folder given; pass --data DIR (make: DATA=DIR) or set data.root")
    if not root.is_dir():
        found = "a file" if root.exists() else "nothing"
        raise SourceError(f"{kind}: expected a data folder, found {found} at {root}; pass --data DIR (make: DATA=DIR)")
    if kind == "ddad":
        from data_cache.sources.ddad import DdadSource

        return DdadSource(root)
    if kind == "nuscenes":
        from data_cache.sources.nuscenes import NuscenesSource

        return NuscenesSource(root, version)
    from data_cache.sources.pandaset import PandasetSource

    return PandasetSource(root)


_SELECTOR = re.compile(r"(?P<name>[^\[\]]+)(\[(?P<slice>-?\d*:-?\d*(:([1-9]\d*)?)?)\])?")


def select(source: Source, selectors: Iterable[str]) -> tuple[str, ...]:
    """Frame ids named by selectors, in order, each once.

    A selector is a drive or a split of the data set, with an optional Python slice over its frames: `002[:17]`,
    `train`, `train[::3]`.

    Raises:
        SourceError: if a selector is malformed, names nothing, or selects no frame.
    """
    chosen: dict[str, None] = {}
    for selector in selectors:
        match = _SELECTOR.fullmatch(selector)
        if match is None:
            raise SourceError(f"selector {selector!r}: expected NAME or NAME[start:stop:step]")
        name = match["name"]
        drives = source.splits.get(name, (name,))
        unknown = [drive for drive in drives if drive not in source.drives]
        if unknown:
            raise SourceError(
                f"{source.name}: no drive or split {unknown[0]!r}; splits: {_some(source.splits)};"
                f" drives: {_some(source.drives)}"
            )
        ids = [frame_id for drive in drives for frame_id in source.drives[drive]]
        if match["slice"]:
            ids = ids[slice(*(int(part) if part else None for part in match["slice"].split(":")))]
        if not ids:
            raise SourceError(f"{source.name}: selector {selector!r} selects no frame")
        chosen.update(dict.fromkeys(ids))
    return tuple(chosen)


def spread(frame_ids: Sequence[str], count: int) -> tuple[str, ...]:
    """At most `count` of some frames, spread evenly over them."""
    step = len(frame_ids) / min(count, len(frame_ids))
    return tuple(frame_ids[int((i + 0.5) * step)] for i in range(min(count, len(frame_ids))))


def _some(names: Iterable[str]) -> str:
    listed = list(names)
    return ", ".join(listed[:8]) + (f", ... ({len(listed)})" if len(listed) > 8 else "") or "none"
