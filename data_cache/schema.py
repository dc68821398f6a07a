"""The cache as data: its arrays, its identity, its files and its errors. FORMAT.md is the same in prose."""

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Bool, Float16, Float32, Float64, UInt8, UInt16

from data_cache.errors import SurroundError
from data_cache.store import CacheStore

FORMAT_VERSION = 1
DEPTH_UNIT_PER_M = 256
"""Stored LiDAR depth is uint16 in 1/256 m, the unit of the KITTI depth PNGs; 0 is no return."""


class CacheError(SurroundError):
    """A cache cannot be used as asked."""


class StaleCacheError(CacheError):
    """The cache was written under another recipe."""

    def __init__(self, where: str, differences: Mapping[str, tuple[object, object]]):
        self.where, self.differences = where, dict(differences)
        lines = [f"  {key}: cache has {old!r}, recipe says {new!r}" for key, (old, new) in differences.items()]
        super().__init__(
            "\n".join(
                [
                    f"{where} was written under another recipe:",
                    *lines,
                    "Point --run at another folder, restore these values in the recipe, or delete the cache folder.",
                ]
            )
        )

    def __reduce__(self) -> tuple[type["StaleCacheError"], tuple[str, dict[str, tuple[object, object]]]]:
        return StaleCacheError, (self.where, self.differences)  # it may come from another process


class IncompleteCacheError(CacheError):
    """Some shards have no receipt."""


class DamagedCacheError(CacheError):
    """Stored bytes are not what the receipt says."""


@dataclass(frozen=True, kw_only=True)
class CacheIdentity:
    """What a cache holds and how it was made. Sizes are (height, width) in pixels.

    All fields but the first three and the teacher's licence, hash and preprocessing are decided by the recipe alone, so
    stage two can insist on them without the data set or the teacher.

    Attributes:
        frames_sha256: over the ordered frame ids.
        train, selection: selectors of the two splits that the cache holds, as the recipe has them.
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
    window_width: int
    bin_count: int
    bin_sigma: float
    bin_definition: str
    relation_grid: tuple[int, int]
    relation_definition: str
    shard_frames: int
    teacher_name: str
    teacher_licence: str
    teacher_weights_sha256: str
    teacher_preprocessing: str
    teacher_input_size: tuple[int, int]

    @property
    def view_count(self) -> int:
        """V."""
        return len(self.camera_names)

    @property
    def shard_count(self) -> int:
        """Number of shards, the last one possibly short."""
        return -(-self.frame_count // self.shard_frames)

    def shard_range(self, shard: int) -> range:
        """Frame numbers of one shard."""
        return range(shard * self.shard_frames, min((shard + 1) * self.shard_frames, self.frame_count))

    @cached_property
    def sha256(self) -> str:
        """Short name of this identity in receipts and reports."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()

    def differences(self, expected: Mapping[str, object]) -> dict[str, tuple[object, object]]:
        """Fields named in `expected` that differ, as (ours, expected)."""
        pairs = {name: (getattr(self, name), value) for name, value in expected.items()}
        return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


@dataclass(frozen=True)
class Resolved:
    """What the machine decided where the recipe said `auto`; equal values promise equal bytes."""

    precision: str
    batch_images: int
    threads: int


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
        """Hash of the ordered ids and of where the splits part."""
        text = "\n".join(self.train) + "\n\n" + "\n".join(self.selection)
        return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True, eq=False)
class FrameRecord:
    """One frame as it is stored. Axes: V views in ring order, H W image, h w probabilities, S window, P tokens.

    Attributes:
        image: RGB at the student's input size.
        lidar_depth: z in 1/256 m, 0 = no return; `pack_depth` and `unpack_depth_m` convert.
        bin_first: first bin of the window of stored probabilities.
        bin_prob: probabilities inside the window, relative; they sum to one after division by their sum.
        relation: [i] relates tokens of view i (rows) to those of view i + 1 mod V (columns).
        view_valid: False where the frame lacks the camera; its other entries are then 0, its pose the identity.
        intrinsics: pixels of `image`, pixel centres at half-integers.
        world_from_cam: pose at the camera's own time stamp.
    """

    image: UInt8[np.ndarray, "V H W 3"]
    lidar_depth: UInt16[np.ndarray, "V H W"]
    bin_first: UInt8[np.ndarray, "V h w"]
    bin_prob: UInt8[np.ndarray, "V h w S"]
    relation: Float16[np.ndarray, "V P P"]
    view_valid: Bool[np.ndarray, " V"]
    intrinsics: Float32[np.ndarray, "V 3 3"]
    world_from_cam: Float64[np.ndarray, "V 4 4"]


@dataclass(frozen=True)
class ArraySpec:
    """Type and shape of one stored array, per frame."""

    dtype: str
    shape: tuple[int, ...]


def array_table(identity: CacheIdentity) -> dict[str, ArraySpec]:
    """The arrays of a cache: one entry per field of FrameRecord, same names."""
    V, (H, W), (h, w) = identity.view_count, identity.image_size, identity.prob_size
    P = identity.relation_grid[0] * identity.relation_grid[1]
    return {
        "image": ArraySpec("uint8", (V, H, W, 3)),
        "lidar_depth": ArraySpec("uint16", (V, H, W)),
        "bin_first": ArraySpec("uint8", (V, h, w)),
        "bin_prob": ArraySpec("uint8", (V, h, w, identity.window_width)),
        "relation": ArraySpec("float16", (V, P, P)),
        "view_valid": ArraySpec("bool", (V,)),
        "intrinsics": ArraySpec("float32", (V, 3, 3)),
        "world_from_cam": ArraySpec("float64", (V, 4, 4)),
    }


def frame_bytes(identity: CacheIdentity) -> int:
    """Bytes of one frame before compression."""
    return sum(math.prod(spec.shape) * np.dtype(spec.dtype).itemsize for spec in array_table(identity).values())


def pack_depth(depth_m: Float32[np.ndarray, "*shape"]) -> UInt16[np.ndarray, "*shape"]:
    """Metres to stored units, rounded; depths beyond 255.99 m become 0, no return."""
    units = np.rint(depth_m * DEPTH_UNIT_PER_M)
    return np.where(units <= np.iinfo(np.uint16).max, units, 0).astype(np.uint16)


def unpack_depth_m(stored: UInt16[np.ndarray, "*shape"]) -> Float32[np.ndarray, "*shape"]:
    """Stored units to metres, 0 = no return."""
    return stored.astype(np.float32) / np.float32(DEPTH_UNIT_PER_M)


@dataclass(frozen=True)
class StoredFile:
    """A shard file: its size and hash when it was written."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class Receipt:
    """Proof that a shard is done; it exists only after everything it lists is on disk.

    Attributes:
        shard: number of the shard.
        identity_sha256: the cache it belongs to.
        files: by path relative to the cache folder.
        quarantined: reason by frame id; these frames hold zeros.
        notes: by frame id, what a usable frame lacks (a camera, a sweep, LiDAR points that are not finite).
    """

    shard: int
    identity_sha256: str
    files: Mapping[str, StoredFile]
    quarantined: Mapping[str, str]
    notes: Mapping[str, str]

    def to_json(self) -> str:
        """Canonical text: equal receipts are equal bytes."""
        return json.dumps(asdict(self), indent=1, sort_keys=True) + "\n"

    @staticmethod
    def from_json(text: bytes, where: str) -> "Receipt":
        """Parse a receipt.

        Raises:
            DamagedCacheError: if it is not one.
        """
        try:
            table = json.loads(text)
            return Receipt(
                shard=int(table["shard"]),
                identity_sha256=str(table["identity_sha256"]),
                files={str(k): StoredFile(int(v["bytes"]), str(v["sha256"])) for k, v in table["files"].items()},
                quarantined={str(k): str(v) for k, v in table["quarantined"].items()},
                notes={str(k): str(v) for k, v in table["notes"].items()},
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DamagedCacheError(
                f"{where} is not a receipt ({error}); delete it and run teacher-cache again: its shard is redone"
            ) from error


DESCRIPTION = "cache.json"
"""Identity and resolved settings; written last when a cache is created."""
FRAME_LIST = "frames.json"
ARRAYS = "arrays.zarr"
RECEIPTS = "receipts"
CHUNK_KEY_SEPARATOR = "."
"""One folder per array and one file per shard: with "/" zarr makes up to four folders around every file."""


def receipt_name(shard: int) -> str:
    """Receipt of one shard."""
    return f"{RECEIPTS}/{shard:06d}.json"


def shard_name(array: str, spec: ArraySpec, shard: int) -> str:
    """File that holds one shard of one array (Zarr v3 default chunk keys)."""
    return f"{ARRAYS}/{array}/" + CHUNK_KEY_SEPARATOR.join(["c", str(shard), *("0" for _ in spec.shape)])


def shard_of(name: str) -> int | None:
    """Shard to which a receipt, a shard file or a partial file of either belongs; None for other files."""
    match = re.match(rf"{RECEIPTS}/(\d+)\.json|{re.escape(ARRAYS)}/\w+/c\.(\d+)\.", name)
    return int(match[1] or match[2]) if match else None


def load_description(store: CacheStore) -> tuple[CacheIdentity, Resolved]:
    """Identity and resolved settings of a cache.

    Raises:
        IncompleteCacheError: if there is no cache.
        DamagedCacheError: if its description cannot be read or is of another format version.
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
    except (FileNotFoundError, NotADirectoryError) as error:
        raise IncompleteCacheError(
            f"no cache at {store.location} (looked for {DESCRIPTION}); run teacher-cache first"
        ) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DamagedCacheError(f"{where} cannot be read ({error!r}); restore it or delete the cache folder") from error
