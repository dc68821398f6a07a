"""Data sets as frames. One file per data set; `open_source` is the only door."""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

from data_cache.errors import SourceError
from data_cache.rig import Frame, Rig
from data_cache.sources.metadata import read_text


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


SOURCES = ("synthetic", "ddad", "nuscenes", "pandaset", "rig_folder")
LIST = "list:"
"""Begins a selector that names a file of frame ids."""
_LIST_LIMIT = 256 * 2**20
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


def open_source(
    kind: str,
    root: Path | None,
    version: str = "",
    *,
    masks: Path | None = None,
    lidar: str = MECHANICAL,
    nearby_sweep_s: float = 0.0,
) -> Source:
    """Open a data set.

    Args:
        kind: one of SOURCES.
        root: data set folder; None for sources that live in memory.
        version: which of several releases under one root (nuScenes), empty where there is one.
        masks: folder of self-occlusion masks (DDAD); None to look beside the data set.
        lidar: of LIDARS, the sensors whose points are taken (PandaSet, the one that has two).
        nearby_sweep_s: how far from a keyframe without LiDAR a sweep may be that stands in (nuScenes), 0 for none.

    Raises:
        SourceError: if the kind is unknown, has no such option, or the folder is not such a data set (with what was
            looked for).
    """
    if kind not in SOURCES:
        raise SourceError(f"unknown source {kind!r}; it is one of {', '.join(SOURCES)}")
    for name, changed, only in (
        ("masks", masks is not None, "ddad"),
        ("lidar", lidar != MECHANICAL, "pandaset"),
        ("nearby_sweep_s", nearby_sweep_s > 0, "nuscenes"),
    ):
        if changed and kind != only:
            raise SourceError(f"{kind}: data.{name} is for {only} alone; leave it out")
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

        return DdadSource(root, masks)
    if kind == "nuscenes":
        from data_cache.sources.nuscenes import NuscenesSource

        return NuscenesSource(root, version, nearby_sweep_s)
    if kind == "pandaset":
        from data_cache.sources.pandaset import PandasetSource

        return PandasetSource(root, lidar)
    from data_cache.sources.rig_folder import RigFolderSource

    return RigFolderSource(root)


_SLICE = r"\[(?P<slice>-?\d*:-?\d*(:([1-9]\d*)?)?)\]"
_SELECTOR = re.compile(rf"(?P<name>[^\[\]]+)({_SLICE})?")
_SLICED = re.compile(rf"(?P<name>.+){_SLICE}")


def select(source: Source, selectors: Iterable[str]) -> tuple[str, ...]:
    """Frame ids named by selectors, in order, each once.

    A selector is a drive or a split of the data set, with an optional Python slice over its frames: `002[:17]`,
    `train`, `train[::3]`. Or it is `list:PATH`, a text file whose lines begin with a frame id; it may be sliced, too.

    Raises:
        SourceError: if a selector is malformed, names nothing, or selects no frame.
    """
    chosen: dict[str, None] = {}
    for selector in selectors:
        if selector.startswith(LIST):
            chosen.update(dict.fromkeys(_listed(source, selector)))
            continue
        match = _SELECTOR.fullmatch(selector)
        if match is None:
            raise SourceError(f"selector {selector!r}: expected NAME or NAME[start:stop:step]")
        name = match["name"]
        drives = source.splits.get(name, (name,))
        unknown = [drive for drive in drives if drive not in source.drives]
        if unknown:
            remedy = "" if source.splits else "; set data.train, data.selection and data.test to drives"
            if not source.splits and source.name == "rig_folder":
                remedy += ", or write splits.json"
            raise SourceError(
                f"{source.name}: no drive or split {unknown[0]!r}; splits: {_some(source.splits)};"
                f" drives: {_some(source.drives)}{remedy}"
            )
        ids = _sliced([frame_id for drive in drives for frame_id in source.drives[drive]], match["slice"])
        if not ids:
            raise SourceError(f"{source.name}: selector {selector!r} selects no frame")
        chosen.update(dict.fromkeys(ids))
    return tuple(chosen)


def located(selector: str, folder: Path) -> str:
    """The selector with the path of a list taken from `folder`, absolute; any other selector as it is."""
    path = selector.removeprefix(LIST)
    return f"{LIST}{(folder / path).resolve()}" if selector.startswith(LIST) and path else selector


def shown(selector: str) -> str:
    """A selector as reports and caches name it: of a list the file's name, so that a run can move with its lists."""
    return f"{LIST}{Path(selector).name.removeprefix(LIST)}" if selector.startswith(LIST) else selector


def _sliced(ids: Sequence[str], text: str | None) -> Sequence[str]:
    return ids[slice(*(int(part) if part else None for part in text.split(":")))] if text else ids


def _listed(source: Source, selector: str) -> Sequence[str]:
    path, part = Path(selector.removeprefix(LIST)), None
    if not selector.removeprefix(LIST):
        raise SourceError(f"selector {LIST!r}: expected {LIST}PATH, a text file of frame ids, found no path")
    match = _SLICED.fullmatch(selector.removeprefix(LIST))
    if match is not None and not path.exists():
        path, part = Path(match["name"]), match["slice"]
    try:
        lines = [line.strip() for line in read_text(path, _LIST_LIMIT).splitlines() if line.strip()]
    except SourceError as error:
        raise SourceError(f"selector {selector!r}: expected a text file of frame ids: {error}") from error
    known = {frame_id: frame_id for frames in source.drives.values() for frame_id in frames}
    if isinstance(source, PublishedSource):
        known |= source.published_ids
    ids = [_leading_id(line, known) for line in lines]
    unknown = [line for line, frame_id in zip(lines, ids, strict=True) if frame_id is None]
    if unknown:
        hint = "" if len(unknown) < len(ids) else "; is the list of another data set, or of another release of it?"
        raise SourceError(
            f"selector {selector!r}: {len(unknown)} of {len(ids)} frames are not in this {source.name}:"
            f" {unknown[0][:80]}, ...; its ids look like {next(iter(known), 'nothing')}{hint}"
        )
    chosen = _sliced([frame_id for frame_id in ids if frame_id is not None], part)
    if not chosen:
        raise SourceError(f"{source.name}: selector {selector!r} selects no frame")
    return chosen


def _leading_id(line: str, known: Mapping[str, str]) -> str | None:
    """The frame that the longest beginning of a line, up to a space, names: other columns may follow it."""
    while line not in known:
        parts = line.rsplit(maxsplit=1)
        if len(parts) < 2:
            return None
        line = parts[0]
    return known[line]


def first(source: Source, frame_ids: Sequence[str], *, drives: int, frames: int) -> tuple[str, ...]:
    """Of some frames those of the first `drives` drives that they come from, and of these the first `frames`; 0 is all.

    Always a part of what was given, so splits that share no frame share none afterwards.
    """
    drive_of = {frame_id: drive for drive, ids in source.drives.items() for frame_id in ids}
    ordered = tuple(dict.fromkeys(drive_of[frame_id] for frame_id in frame_ids))
    kept = set(ordered[: drives or None])
    return tuple(frame_id for frame_id in frame_ids if drive_of[frame_id] in kept)[: frames or None]


def spread(frame_ids: Sequence[str], count: int) -> tuple[str, ...]:
    """At most `count` of some frames, spread evenly over them."""
    step = len(frame_ids) / min(count, len(frame_ids))
    return tuple(frame_ids[int((i + 0.5) * step)] for i in range(min(count, len(frame_ids))))


def _some(names: Iterable[str]) -> str:
    listed = list(names)
    return ", ".join(listed[:8]) + (f", ... ({len(listed)})" if len(listed) > 8 else "") or "none"
