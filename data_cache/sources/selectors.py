"""Selectors: the strings of a recipe that name frames of a data set."""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from data_cache.errors import SourceError
from data_cache.sources.base import PublishedSource, Source
from data_cache.sources.parsing.metadata import read_text

LIST = "list:"
"""Prefix of a selector that names a file of frame ids."""
_LIST_LIMIT = 256 * 2**20


_SLICE = r"\[(?P<slice>-?\d*:-?\d*(:([1-9]\d*)?)?)\]"
_SELECTOR = re.compile(rf"(?P<name>[^\[\]]+)({_SLICE})?")
_SLICED = re.compile(rf"(?P<name>.+){_SLICE}")


def select(source: Source, selectors: Iterable[str]) -> tuple[str, ...]:
    """Frame ids named by selectors, in order, each once.

    A selector is a drive or a split of the data set, with an optional Python slice over its frames: `002[:17]`,
    `train`, `train[::3]`. Or it is `list:PATH`, a text file with a frame id at the start of each line; it can be
    sliced, too.

    Raises:
        SourceError: if a selector is malformed, names nothing known, or selects no frame.
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
                f"{source.name}: no drive or split {unknown[0]!r}; splits: {_shortened(source.splits)};"
                f" drives: {_shortened(source.drives)}{remedy}"
            )
        ids = _sliced([frame_id for drive in drives for frame_id in source.drives[drive]], match["slice"])
        if not ids:
            raise SourceError(f"{source.name}: selector {selector!r} selects no frame")
        chosen.update(dict.fromkeys(ids))
    return tuple(chosen)


def located(selector: str, folder: Path) -> str:
    """A `list:` selector with its path made absolute, relative to `folder`; any other selector unchanged."""
    path = selector.removeprefix(LIST)
    return f"{LIST}{(folder / path).resolve()}" if selector.startswith(LIST) and path else selector


def shown(selector: str) -> str:
    """A selector as reports and caches name it: a list by its file name alone, so that a run folder can be moved."""
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
    """The frame named at the start of a line, the longest name that is known; other columns may follow it."""
    while line not in known:
        parts = line.rsplit(maxsplit=1)
        if len(parts) < 2:
            return None
        line = parts[0]
    return known[line]


def first(source: Source, frame_ids: Sequence[str], *, drives: int, frames: int) -> tuple[str, ...]:
    """The frames of the first `drives` drives among `frame_ids`, then the first `frames` of these; 0 means all.

    The result is a subset of `frame_ids`, so disjoint splits stay disjoint.
    """
    drive_of = {frame_id: drive for drive, ids in source.drives.items() for frame_id in ids}
    ordered = tuple(dict.fromkeys(drive_of[frame_id] for frame_id in frame_ids))
    kept = set(ordered[: drives or None])
    return tuple(frame_id for frame_id in frame_ids if drive_of[frame_id] in kept)[: frames or None]


def spread(frame_ids: Sequence[str], count: int) -> tuple[str, ...]:
    """At most `count` of the frames, evenly spaced."""
    step = len(frame_ids) / min(count, len(frame_ids))
    return tuple(frame_ids[int((i + 0.5) * step)] for i in range(min(count, len(frame_ids))))


def _shortened(names: Iterable[str]) -> str:
    listed = list(names)
    return ", ".join(listed[:8]) + (f", ... ({len(listed)})" if len(listed) > 8 else "") or "none"
