"""`surround rig export` and `surround rig import`: frames of a recipe, or recordings, written as a rig folder."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from data_cache.sources.recordings.containers.opening import bag_files
from data_cache.sources.recordings.decisions import decisions_text
from data_cache.sources.recordings.settings import BagSettings, read_settings
from data_cache.sources.recordings.source import RecordingSource
from data_cache.sources.rig_folder.writing import RigExport, export_rig
from pipeline.recipe.config import Recipe
from pipeline.runs.splits import open_data, select_frames
from stages.compute.progress import progress_bar


def run_rig_export(recipe: Recipe, out: Path) -> RigExport:
    """Write every frame of data.train, data.selection and data.test, within the limits, to a new rig folder.

    Raises:
        SourceError: if the data set or a selector of the recipe cannot be used, or `out` holds a rig already.
        WriteError: if the folder cannot be written.
    """
    source = open_data(recipe.data)
    data = recipe.data
    splits = [select_frames(data, source, selectors) for selectors in (data.train, data.selection, data.test)]
    frame_ids = tuple(dict.fromkeys(frame_id for split in splits for frame_id in split))
    with progress_bar(len(frame_ids), 0, "rig export", "frame") as bar:
        return export_rig(source, frame_ids, out, bar.update)


@dataclass(frozen=True)
class RigImport:
    """What was decided, as a bag.toml, with notes; and what was written, None after a dry run."""

    decisions: str
    notes: tuple[str, ...]
    done: RigExport | None


def run_rig_import(
    bags: Sequence[Path],
    out: Path | None,
    bag_toml: Path | None = None,
    rate_hz: float | None = None,
    slack_ms: float | None = None,
) -> RigImport:
    """Read each bag once, decide what it holds, and write its frames to a new or unfinished rig folder.

    Args:
        bags: recordings of one vehicle: files, or folders of ROS 2 bags.
        out: the folder to write; None for a dry run: decide, and write nothing.
        bag_toml: what the user decides; None to leave everything to the recording.
        rate_hz, slack_ms: in place of those of `bag_toml`, if not None.

    Raises:
        SourceError: if a recording or a setting cannot be used, or `out` holds a rig already.
        SettingError: if the extra `bags` is missing.
        WriteError: if the folder cannot be written.
    """
    settings = read_settings(bag_toml) if bag_toml is not None else BagSettings()
    if rate_hz is not None:
        settings = replace(settings, rate_hz=rate_hz)
    if slack_ms is not None:
        settings = replace(settings, slack_ms=slack_ms)
    size = sum(file.stat().st_size for bag in bags for file in bag_files(bag))
    with progress_bar(size, 0, "reading", "B", unit_scale=True) as bar:
        source = RecordingSource(bags, settings, on_bytes=bar.update, name=_rig_name(out))
    decisions = decisions_text(source)
    if out is None:
        return RigImport(decisions, source.notes, None)
    frame_ids = [one for ids in source.drives.values() for one in ids]
    with progress_bar(len(frame_ids), 0, "rig import", "frame") as bar:
        done = export_rig(source, frame_ids, out, bar.update)
    return RigImport(decisions, source.notes, done)


def _rig_name(out: Path | None) -> str:
    name = out.resolve().name if out is not None else ""
    return re.sub(r"[^A-Za-z0-9_.-]", "_", name).lstrip(".-")[:64] or "recording"
