"""`bag.toml`: what a user decides in place of the recording."""

import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_cache.errors import SourceError
from data_cache.sources.parsing import strict_json
from data_cache.sources.parsing.metadata import read_text

SLACK_MS = 50.0
_BYTE_LIMIT = 2**20
_CLOCKS = ("header", "log")


@dataclass(frozen=True)
class CameraSetting:
    """A camera that the user names; what is None is decided from the recording."""

    topic: str
    name: str | None = None
    calibration: str | None = None
    frame: str | None = None


@dataclass(frozen=True)
class BagSettings:
    """What a user decides; the defaults leave everything to the recording.

    Attributes:
        cameras: the cameras in ring order; empty to find them.
        lidar: topic of the LiDAR; empty for none, None to find it.
        ego, world: coordinate frames of the vehicle and of the world; None to find them.
        rate_hz: at most so many frames a second; None for one per LiDAR sweep.
        slack_ms: an image belongs to a frame if it was taken within this many milliseconds of it.
        clock: `header` for the stamps of the sensors, `log` for the times of recording.
        clock_offset_s: seconds to add to the stamps, by topic.
        ignore_transforms: edges of the tree to leave out, each as `parent > child`.
    """

    cameras: tuple[CameraSetting, ...] = ()
    lidar: str | None = None
    ego: str | None = None
    world: str | None = None
    rate_hz: float | None = None
    slack_ms: float = SLACK_MS
    clock: str = "header"
    clock_offset_s: Mapping[str, float] = field(default_factory=dict)
    ignore_transforms: tuple[str, ...] = ()


def read_settings(path: Path) -> BagSettings:
    """Read and check a `bag.toml`.

    Raises:
        SourceError: naming the key, if anything in it is unknown or impossible.
    """
    where = str(path)
    try:
        table = tomllib.loads(read_text(path, _BYTE_LIMIT))
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise SourceError(f"{where}: expected TOML, found {error}") from error
    known = ("camera", "lidar", "ego", "world", "rate_hz", "slack_ms", "clock", "clock_offset_s", "ignore_transforms")
    table = strict_json.fields(table, where, (), known)
    offsets = strict_json.entries(table.get("clock_offset_s", {}), f"{where}: clock_offset_s")
    clock = table.get("clock", "header")
    if clock not in _CLOCKS:
        raise SourceError(f"{where}: clock: expected one of {', '.join(_CLOCKS)}, found {strict_json.shown(clock)}")
    cameras: tuple[CameraSetting, ...] = ()
    if "camera" in table:
        listed = strict_json.items(table["camera"], f"{where}: camera", 64)
        cameras = tuple(_camera(one, f"{where}: camera[{i}]") for i, one in enumerate(listed))
    ignored: tuple[str, ...] = ()
    if table.get("ignore_transforms"):
        listed = strict_json.items(table["ignore_transforms"], f"{where}: ignore_transforms", 1024)
        ignored = tuple(_edge(one, f"{where}: ignore_transforms[{i}]") for i, one in enumerate(listed))
    return BagSettings(
        cameras,
        _text(table, "lidar", where, or_empty=True),
        _text(table, "ego", where),
        _text(table, "world", where),
        _positive(table["rate_hz"], f"{where}: rate_hz") if "rate_hz" in table else None,
        _positive(table["slack_ms"], f"{where}: slack_ms") if "slack_ms" in table else SLACK_MS,
        clock,
        {topic: _seconds(value, f"{where}: clock_offset_s.{topic}") for topic, value in offsets.items()},
        ignored,
    )


def _camera(value: Any, where: str) -> CameraSetting:
    table = strict_json.fields(value, where, ("topic",), ("name", "calibration", "frame"))
    name = strict_json.name(table["name"], f"{where}.name") if "name" in table else None
    topic = strict_json.string(table["topic"], f"{where}.topic")
    return CameraSetting(topic, name, _text(table, "calibration", where), _text(table, "frame", where))


def _edge(value: Any, where: str) -> str:
    text = strict_json.string(value, where)
    if text.count(">") != 1:
        raise SourceError(f'{where}: expected "parent > child", found {strict_json.shown(text)}')
    return text


def _text(table: Mapping[str, Any], key: str, where: str, *, or_empty: bool = False) -> str | None:
    if key not in table or (or_empty and table[key] == ""):
        return table.get(key)
    return strict_json.string(table[key], f"{where}: {key}")


def _positive(value: Any, where: str) -> float:
    if not _seconds(value, where) > 0:
        raise SourceError(f"{where}: expected a number above 0, found {strict_json.shown(value)}")
    return float(value)


def _seconds(value: Any, where: str) -> float:
    if type(value) not in (int, float) or not math.isfinite(value) or abs(value) > 1e10:
        raise SourceError(f"{where}: expected a finite number, found {strict_json.shown(value)}")
    return float(value)
