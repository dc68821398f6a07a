"""The identity of a cache: the fields of cache.json that decide whether it is the cache that a recipe asks for."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any

from data_cache.shards.encodings import ENCODINGS, WindowBins
from data_cache.shards.errors import DamagedCacheError, IncompleteCacheError
from data_cache.sources.base import MECHANICAL
from data_cache.storage.store import CacheStore

FORMAT_VERSION = 2


OPTIONAL = "optional"
"""Marks identity fields added later: they are omitted at their default, so older caches keep their identity."""


@dataclass(frozen=True, kw_only=True)
class CacheIdentity:
    """What a cache holds and how it was made. Sizes are (height, width) in pixels.

    The recipe alone decides all fields except the first three, the teacher's licence, hash and preprocessing, and the
    fitted knots. So stage two can check them without the data set or the teacher.

    Attributes:
        frames_sha256: hash of the ordered frame ids.
        train, selection: selectors of the two splits that the cache holds, as in the recipe.
        encoding: key of ENCODINGS.
        window_width, bin_count, bin_sigma: None if not among the encoding's `settings`.
        bin_lidar: which LiDAR has corrected the bins of the binning strategy `local`: depths and frames; else empty.
        bin_knots: the fitted map of the binning strategy `fitted` (stages/targets/binning.py), None for the others.
        token_channels: C of the stored teacher tokens, 0 if they are not stored.
        limit_scenes, limit_frames, lidar, nearby_sweep_s: how the data set was read (see DataSpec).
        metadata_sha256: hash of calibration and poses if the user edits them (rig_folder), empty for other data sets.
    """

    camera_names: tuple[str, ...]
    frame_count: int
    frames_sha256: str
    format_version: int = FORMAT_VERSION
    source: str
    train: tuple[str, ...]
    selection: tuple[str, ...]
    image_size: tuple[int, int]
    image_definition: str
    prob_size: tuple[int, int]
    encoding: str
    window_width: int | None
    bin_count: int | None
    bin_sigma: float | None
    bin_definition: str
    relation_grid: tuple[int, int]
    relation_definition: str
    shard_frames: int
    teacher_name: str
    teacher_licence: str
    teacher_weights_sha256: str
    teacher_preprocessing: str
    teacher_input_size: tuple[int, int]
    bin_lidar: str = field(default="", metadata={OPTIONAL: True})
    bin_knots: tuple[float, ...] | None = field(default=None, metadata={OPTIONAL: True})
    token_channels: int = field(default=0, metadata={OPTIONAL: True})
    limit_scenes: int = field(default=0, metadata={OPTIONAL: True})
    limit_frames: int = field(default=0, metadata={OPTIONAL: True})
    lidar: str = field(default=MECHANICAL, metadata={OPTIONAL: True})
    nearby_sweep_s: float = field(default=0.0, metadata={OPTIONAL: True})
    metadata_sha256: str = field(default="", metadata={OPTIONAL: True})

    def __post_init__(self) -> None:
        if self.encoding not in ENCODINGS:
            raise ValueError(f"encoding: expected one of {', '.join(ENCODINGS)}, got {self.encoding!r}")
        settings = ENCODINGS[self.encoding].settings
        for name in WindowBins.settings:
            if (getattr(self, name) is not None) != (name in settings):
                raise ValueError(f"{name}: {self.encoding} takes {', '.join(settings) or 'no settings'}")

    @property
    def view_count(self) -> int:
        """V, the number of cameras."""
        return len(self.camera_names)

    @property
    def shard_count(self) -> int:
        """Number of shards; the last one may hold fewer frames."""
        return -(-self.frame_count // self.shard_frames)

    def shard_range(self, shard: int) -> range:
        """Frame numbers of one shard."""
        return range(shard * self.shard_frames, min((shard + 1) * self.shard_frames, self.frame_count))

    def stored(self) -> dict[str, object]:
        """The fields as cache.json holds them: all except optional ones at their default."""
        return {
            f.name: value
            for f in fields(self)
            if (value := getattr(self, f.name)) != f.default or OPTIONAL not in f.metadata
        }

    @cached_property
    def sha256(self) -> str:
        """Hash that names this identity in receipts and reports."""
        return hashlib.sha256(json.dumps(self.stored(), sort_keys=True).encode()).hexdigest()

    def differences(self, expected: Mapping[str, object]) -> dict[str, tuple[object, object]]:
        """Fields named in `expected` that differ, as (ours, expected)."""
        pairs = {name: (getattr(self, name), value) for name, value in expected.items()}
        return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


@dataclass(frozen=True)
class Resolved:
    """Settings that the machine chose where the recipe says `auto`; equal values give equal bytes."""

    precision: str
    batch_images: int
    threads: int
    attention: str = "sdpa"
    runtime: str = "torch"


@dataclass(frozen=True)
class SplitFrames:
    """Frame ids of the splits that a cache holds; the cache stores their union, training frames first."""

    train: tuple[str, ...]
    selection: tuple[str, ...]

    @property
    def ordered(self) -> tuple[str, ...]:
        """Every frame once, in the order of storage."""
        return tuple(dict.fromkeys(self.train + self.selection))

    def sha256(self) -> str:
        """Hash of the ordered ids and of the boundary between the splits."""
        text = "\n".join(self.train) + "\n\n" + "\n".join(self.selection)
        return hashlib.sha256(text.encode()).hexdigest()


DESCRIPTION = "cache.json"
"""Identity and resolved settings; written last when a cache is created."""
FRAME_LIST = "frames.json"


def load_description(store: CacheStore) -> tuple[CacheIdentity, Resolved]:
    """Read the identity and resolved settings of a cache.

    Raises:
        IncompleteCacheError: if there is no cache.
        DamagedCacheError: if its description cannot be read or has another format version.
    """
    where = f"{store.location}/{DESCRIPTION}"
    try:
        table = json.loads(store.read(DESCRIPTION))
        version = table["identity"]["format_version"]
        if version != FORMAT_VERSION:
            raise DamagedCacheError(
                f"{where}: format version {version}, this program reads {FORMAT_VERSION};"
                " use the version that wrote it, or write the cache again"
            )
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in table["identity"].items()}
        return CacheIdentity(**values), Resolved(**table["resolved"])
    except FileNotFoundError as error:
        raise IncompleteCacheError(
            f"no cache at {store.location} (looked for {DESCRIPTION}); run teacher-cache first"
        ) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DamagedCacheError(f"{where} cannot be read ({error!r}); restore it or delete the cache folder") from error
