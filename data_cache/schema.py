"""The cache as data: its arrays, its identity, its files and its errors. FORMAT.md is the same in prose."""

import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from typing import Any, ClassVar, Generic, Literal, TypeVar, cast

import numpy as np
from jaxtyping import Bool, Float16, Float32, Float64, Integer, UInt8, UInt16

from data_cache.errors import SurroundError
from data_cache.sources import MECHANICAL
from data_cache.store import CacheStore

FORMAT_VERSION = 2
DEPTH_UNIT_PER_M = 256
"""Stored LiDAR depth is uint16 in 1/256 m, the unit of the KITTI depth PNGs; 0 is no return."""

A = TypeVar("A")
B = TypeVar("B")


@dataclass(frozen=True, eq=False)
class WindowBins(Generic[A]):
    """Probabilities of the S neighbouring bins that hold most of the mass.

    Attributes:
        bin_first: first bin of the window.
        bin_prob: weights inside the window, the largest 255; they sum to one after division by their sum.
    """

    settings: ClassVar = ("window_width", "bin_count", "bin_sigma")
    bin_first: UInt8[A, "*views h w"]
    bin_prob: UInt8[A, "*views h w S"]


@dataclass(frozen=True, eq=False)
class ClosedFormBins(Generic[A]):
    """The affine-invariant map u in units of 1/65535; the probabilities follow from it for any K and sigma.

    The map of a missing camera is 0 and decodes to something (the farthest bins): only `view_valid` tells.
    """

    settings: ClassVar = ()
    bin_map: Integer[A, "*views h w"]


@dataclass(frozen=True, eq=False)
class DenseBins(Generic[A]):
    """All K probabilities, the bin axis last, so that the arrays of every encoding begin with the same axes."""

    settings: ClassVar = ("bin_count", "bin_sigma")
    bin_dense: Float16[A, "*views h w K"]


StoredBins = WindowBins[A] | ClosedFormBins[A] | DenseBins[A]
"""What is kept of the teacher's bin probabilities; stages/bins.py encodes and decodes.

A is the type of array, numpy at rest and torch in training. `settings` names the fields of the cache identity that the
stored bytes depend on; the others are chosen when the bytes are read.
"""
ENCODINGS: dict[str, type[StoredBins[Any]]] = {
    "window": WindowBins,
    "closed_form": ClosedFormBins,
    "dense": DenseBins,
}


def map_arrays(function: Callable[..., B], *bins: StoredBins[Any]) -> StoredBins[B]:
    """Apply `function` to the arrays of one or several bins of one encoding, as `map` does to lists."""
    kind = type(bins[0])
    return cast("StoredBins[B]", kind(*(function(*(getattr(b, f.name) for b in bins)) for f in fields(kind))))


class CacheError(SurroundError):
    """A cache cannot be used as asked."""


EDITED = ", or rig.json or frames.jsonl was edited since"


class StaleCacheError(CacheError):
    """The cache was written under another recipe, or its data set was edited since."""

    def __init__(self, where: str, differences: Mapping[str, tuple[object, object]]):
        # What is written about other frames differs, too, and says nothing more.
        implied = {"metadata_sha256"} if "frames_sha256" in differences else set()
        self.where, self.differences = where, {k: v for k, v in differences.items() if k not in implied}
        edited = EDITED if "metadata_sha256" in self.differences else ""
        lines = [f"  {key}: cache has {old!r}, recipe says {new!r}" for key, (old, new) in self.differences.items()]
        super().__init__(
            "\n".join(
                [
                    f"{where} was written under another recipe{edited}:",
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


OPTIONAL = "optional"
"""Mark of identity fields that came later: at their default they are left out, and older caches keep their identity."""


@dataclass(frozen=True, kw_only=True)
class CacheIdentity:
    """What a cache holds and how it was made. Sizes are (height, width) in pixels.

    All fields but the first three, the teacher's licence, hash and preprocessing, and the fitted knots are decided by
    the recipe alone, so stage two can insist on them without the data set or the teacher.

    Attributes:
        frames_sha256: over the ordered frame ids.
        train, selection: selectors of the two splits that the cache holds, as the recipe has them.
        encoding: key of ENCODINGS.
        window_width, bin_count, bin_sigma: None where they are not among the encoding's `settings`.
        bin_knots: the fitted map of the binning strategy `fitted` (stages/binning.py), None for the others.
        token_channels: C of the stored teacher tokens, 0 where they are not stored.
        limit_scenes, limit_frames, lidar, nearby_sweep_s: how the data set was read (see DataSpec).
        metadata_sha256: over calibration and poses of a data set that its user edits, empty for the others.
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
        """V."""
        return len(self.camera_names)

    @property
    def shard_count(self) -> int:
        """Number of shards, the last one possibly short."""
        return -(-self.frame_count // self.shard_frames)

    def shard_range(self, shard: int) -> range:
        """Frame numbers of one shard."""
        return range(shard * self.shard_frames, min((shard + 1) * self.shard_frames, self.frame_count))

    def stored(self) -> dict[str, object]:
        """What cache.json holds: every field but the optional ones that have their default."""
        return {
            f.name: value
            for f in fields(self)
            if (value := getattr(self, f.name)) != f.default or OPTIONAL not in f.metadata
        }

    @cached_property
    def sha256(self) -> str:
        """Short name of this identity in receipts and reports."""
        return hashlib.sha256(json.dumps(self.stored(), sort_keys=True).encode()).hexdigest()

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
    attention: str = "sdpa"


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
class FrameCameras:
    """Where the cameras of one frame stood. Axes: V views in ring order.

    Attributes:
        view_valid: False where the frame lacks the camera; its other entries are then 0, its pose the identity.
        intrinsics: pixels of the stored image, pixel centres at half-integers.
        world_from_cam: pose at the camera's own time stamp, metres.
    """

    view_valid: Bool[np.ndarray, " V"]
    intrinsics: Float32[np.ndarray, "V 3 3"]
    world_from_cam: Float64[np.ndarray, "V 4 4"]


@dataclass(frozen=True, eq=False)
class FrameRecord(FrameCameras):
    """One frame as it is stored. Axes: V views in ring order, H W image, h w probabilities, P tokens.

    Attributes:
        image: RGB at the student's input size.
        lidar_depth: z in 1/256 m, 0 = no return; `pack_depth` and `unpack_depth_m` convert.
        bins: what the teacher said about order, at (V, h, w), in the encoding of the cache.
        relation: [i] relates tokens of view i (rows) to those of view i + 1 mod V (columns).
        tokens: the teacher's pooled features, None in a cache that does not store them.
    """

    image: UInt8[np.ndarray, "V H W 3"]
    lidar_depth: UInt16[np.ndarray, "V H W"]
    bins: StoredBins[np.ndarray]
    relation: Float16[np.ndarray, "V P P"]
    tokens: Float16[np.ndarray, "V P C"] | None = None

    @property
    def lidar_depth_m(self) -> Float32[np.ndarray, "V H W"]:
        """Depth (z) in metres, 0 = no return."""
        return unpack_depth_m(self.lidar_depth)


def record_arrays(record: FrameRecord) -> dict[str, np.ndarray]:
    """The arrays of a record by the names they are stored under."""
    return {k: v for k, v in vars(record).items() if k != "bins" and v is not None} | vars(record.bins)


def record_from_arrays(encoding: str, arrays: Mapping[str, np.ndarray]) -> FrameRecord:
    """Undo `record_arrays`."""
    kind = ENCODINGS[encoding]
    names = [f.name for f in fields(kind)]
    others = {k: v for k, v in arrays.items() if k not in names}
    return FrameRecord(bins=kind(*(arrays[name] for name in names)), **others)


@dataclass(frozen=True)
class ArraySpec:
    """One stored array: type, shape per frame, and how its chunks are compressed (blosc zstd)."""

    dtype: str
    shape: tuple[int, ...]
    shuffle: Literal["noshuffle", "shuffle", "bitshuffle"] = "noshuffle"
    level: int = 2


def array_table(identity: CacheIdentity) -> dict[str, ArraySpec]:
    """The arrays of a cache: one entry per array of its FrameRecords, same names.

    Shuffle and level were measured on real frames. A level has to save 2 % of a frame per 20 ms, because compression
    takes its time from the teacher; level 2 does, level 3 does for nothing but the bins.
    """
    V, (H, W) = identity.view_count, identity.image_size
    P = identity.relation_grid[0] * identity.relation_grid[1]
    tokens = {"tokens": ArraySpec("float16", (V, P, identity.token_channels), "shuffle")}
    return {
        # Photographs repeat few bytes, but their high bits are smooth: 2 % less and a quarter faster than whole bytes.
        "image": ArraySpec("uint8", (V, H, W, 3), "bitshuffle"),
        # Mostly zeros between points: bytes keep them in runs, bit planes cut them up (a quarter more).
        "lidar_depth": ArraySpec("uint16", (V, H, W), "shuffle"),
        **bin_table(identity),
        "relation": ArraySpec("float16", (V, P, P), "shuffle"),
        "view_valid": ArraySpec("bool", (V,)),
        "intrinsics": ArraySpec("float32", (V, 3, 3)),
        "world_from_cam": ArraySpec("float64", (V, 4, 4)),
        **(tokens if identity.token_channels else {}),
    }


def bin_table(identity: CacheIdentity) -> dict[str, ArraySpec]:
    """The arrays of a cache's encoding: the fields of its class in ENCODINGS."""
    shape = (identity.view_count, *identity.prob_size)
    if identity.encoding == "closed_form":
        return {"bin_map": ArraySpec("uint16", shape, "shuffle", 3)}
    if identity.encoding == "dense":
        assert identity.bin_count is not None
        return {"bin_dense": ArraySpec("float16", (*shape, identity.bin_count), "shuffle")}
    assert identity.window_width is not None
    # No shuffle: the weights of neighbouring pixels repeat byte for byte, and bit planes hide it (twice the bytes).
    return {
        "bin_first": ArraySpec("uint8", shape, level=3),
        "bin_prob": ArraySpec("uint8", (*shape, identity.window_width), level=3),
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

    def proves(self, shard: int, identity: CacheIdentity) -> bool:
        """Whether this is the receipt of that shard of that cache, listing every array of it and nothing else."""
        names = {shard_name(name, spec, shard) for name, spec in array_table(identity).items()}
        ours = self.shard == shard and self.identity_sha256 == identity.sha256
        return ours and self.files.keys() == names

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
    except FileNotFoundError as error:
        raise IncompleteCacheError(
            f"no cache at {store.location} (looked for {DESCRIPTION}); run teacher-cache first"
        ) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DamagedCacheError(f"{where} cannot be read ({error!r}); restore it or delete the cache folder") from error
