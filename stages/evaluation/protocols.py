"""Evaluation protocols of the field. Numbers are comparable within one protocol, and no table mixes two."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

from data_cache.errors import SurroundError
from data_cache.sources.base import Source
from data_cache.sources.selectors import LIST

Range = tuple[float, float]


class ProtocolError(SurroundError):
    """The frames are not those that the protocol measures."""


@dataclass(frozen=True)
class FullSplit:
    """A complete published split: its number of drives and frames."""

    drives: int
    frames: int


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """How depth is compared with LiDAR.

    Attributes:
        name: its name in recipes and reports.
        range_m: by data set; truth counts strictly between these depths, and predictions are clipped to them.
        other_range_m: the same for all other data sets.
        resolution: native: predictions are resized (bilinear) to the size of the camera image. network: truth is
            projected at the size of the prediction.
        masks: self-occlusion masks. ignored; optional: applied if the data set has them; expected: the same, and the
            report warns if there are none.
        pool_frames: number of consecutive frames whose pixels are pooled per camera before any mean; 1 for a mean per
            image.
        median: median scaling uses the medians of each camera, or of the whole rig.
        clip_first: predictions are clipped to the range before median scaling, too.
        headline: rows of a report that this protocol is about, shown in tables of several reports.
        inner_only: data sets where the first and last frame of each drive, which have one neighbour only, are left out.
        full: complete sizes of published splits, by data set and split, without those frames.
        list_hint: where to find the frame lists that are part of the protocol, by data set.
    """

    name: str
    range_m: Mapping[str, Range]
    other_range_m: Range
    resolution: Literal["native", "network"] = "native"
    masks: Literal["ignored", "optional", "expected"] = "ignored"
    pool_frames: int = 1
    median: Literal["camera", "rig"] = "camera"
    clip_first: bool = False
    headline: tuple[str, ...] = ("metric", "median_scaled")
    inner_only: tuple[str, ...] = ()
    full: Mapping[tuple[str, str], FullSplit] = field(default_factory=dict)
    list_hint: Mapping[str, str] = field(default_factory=dict)

    def range_of(self, dataset: str) -> Range:
        """The depth range for a data set, in metres."""
        return self.range_m.get(dataset, self.other_range_m)


_EVERY_FRAME = MappingProxyType({("ddad", "val"): FullSplit(50, 3950), ("nuscenes", "val"): FullSplit(150, 6019)})

SURROUNDDEPTH = Protocol(
    name="surrounddepth", range_m={"ddad": (0.1, 200.0)}, other_range_m=(0.1, 80.0), full=_EVERY_FRAME
)
"""SurroundDepth and S3Depth: errors per image, a mean per camera, a mean of the cameras."""

VFDEPTH = Protocol(
    name="vfdepth",
    range_m={"ddad": (0.0, 200.0)},
    other_range_m=(0.0, 80.0),
    resolution="network",
    masks="expected",
    pool_frames=4,
    clip_first=True,
    inner_only=("ddad",),
    full={("ddad", "val"): FullSplit(50, 3850), ("nuscenes", "val"): FullSplit(150, 5417)},
    list_hint={"nuscenes": "dataset/nuscenes/val.txt of VFDepth's repository"},
)
"""VFDepth and CVCDepth (`utils/logger.py` there): pixels of four consecutive frames are pooled, per camera.

Their nuScenes list has 5,417 frames (its last line has no newline, so line counters say 5,416). Their loader drops the
last frames that do not fill a pool, two of 3,850 in DDAD and one in nuScenes; here the last pool may be smaller, so
that every frame counts.
"""

FSM = Protocol(
    name="fsm",
    range_m={},
    other_range_m=(0.0, 200.0),
    masks="optional",
    median="rig",
    full=_EVERY_FRAME,
)
"""Full Surround Monodepth and R3D3: one scale for all cameras of a frame."""

ZERO_SHOT = Protocol(
    name="zero-shot",
    range_m=SURROUNDDEPTH.range_m,
    other_range_m=SURROUNDDEPTH.other_range_m,
    headline=("metric", "affine_invariant"),
    full=_EVERY_FRAME,
)
"""As surrounddepth, plus a least-squares scale and shift of disparity per image; for data sets not trained on."""

PROTOCOLS = {protocol.name: protocol for protocol in (SURROUNDDEPTH, VFDEPTH, FSM, ZERO_SHOT)}


def measured_frames(protocol: Protocol, source: Source, frame_ids: Sequence[str]) -> tuple[str, ...]:
    """The `frame_ids` that the protocol measures."""
    if source.name not in protocol.inner_only:
        return tuple(frame_ids)
    outer = {frame_id for frames in source.drives.values() for frame_id in (*frames[:1], *frames[-1:])}
    return tuple(frame_id for frame_id in frame_ids if frame_id not in outer)


def require_full_count(protocol: Protocol, source: Source, selectors: Sequence[str], frame_ids: Sequence[str]) -> None:
    """Check that a published split of which all drives are present is measured on all its frames.

    Args:
        protocol: the protocol.
        source: the data set.
        selectors: the recipe's test selectors; several selectors, a slice, or single drives are no published split.
        frame_ids: the frames that the selectors and the protocol give.

    Raises:
        ProtocolError: if the number of frames differs, so that scores would not be comparable.
    """
    if len(selectors) != 1:
        return
    for (dataset, split), full in protocol.full.items():
        drives = source.splits.get(split, ())
        if dataset != source.name or len(drives) != full.drives or len(frame_ids) == full.frames:
            continue
        # If the protocol has a frame list of its own, any list is taken to be that one.
        listed = dataset in protocol.list_hint and selectors[0].startswith(LIST) and not selectors[0].endswith("]")
        if listed and not {id for drive in drives for id in source.drives[drive]}.issuperset(frame_ids):
            continue
        if listed or selectors[0] == split:
            hint = protocol.list_hint.get(dataset)
            remedy = f'set data.test = ["{LIST}PATH"] to {hint}' if hint else "complete the data set"
            raise ProtocolError(
                f"{dataset} {split}, protocol {protocol.name}: all {full.drives} drives are there, expected"
                f" {full.frames} frames, found {len(frame_ids)}; {remedy}, or name the drives you want in data.test"
            )
