"""Evaluation protocols: what the numbers of a report are comparable with. Numbers of two of them share no table."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

from data_cache.errors import SurroundError
from data_cache.sources.base import Source
from data_cache.sources.selectors import LIST

Range = tuple[float, float]


class ProtocolError(SurroundError):
    """These frames are not what the protocol measures."""


@dataclass(frozen=True)
class FullSplit:
    """A published split: how many drives and frames it has when all of it is there."""

    drives: int
    frames: int


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """How depth is compared with LiDAR.

    Attributes:
        name: as recipes and reports call it.
        range_m: nearest and farthest truth that counts, both left out, by data set; predictions are clipped to it.
        other_range_m: of all other data sets.
        resolution: native: predictions are resized (bilinear) to the size of the camera image. network: truth is
            projected at the size of the prediction.
        masks: of the vehicle itself. ignored; optional: used where the data set has them; expected: the same, and the
            report warns where there are none.
        pool_frames: frames in a row whose pixels are pooled, per camera, before any mean; 1 is a mean per image.
        median: whose medians make the scale of the median-scaled row: those of each camera, or of all of the rig.
        clip_first: predictions are clipped to the range before that scale is applied, too.
        headline: rows of a report that this protocol is about; they stand in tables of several reports.
        inner_only: data sets where the first and the last frame of each drive, with one neighbour only, are left out.
        full: frames of published splits, by data set and split, after that.
        list_hint: where lists of frames come from that are part of the protocol, by data set.
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
        """Nearest and farthest truth that counts in a data set, metres."""
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
"""VFDepth and CVCDepth (`utils/logger.py` there): pixels of four frames in a row are pooled, per camera.

Their list of nuScenes has 5,417 frames (no newline ends its last line, so that line counters say 5,416). Their loader
drops the frames at the end that fill no pool, two of the 3,850 of DDAD and one of those of nuScenes; here the last pool
may be smaller, so that every frame of a split counts.
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
"""As surrounddepth, with a least-squares scale and shift of disparity per image; for data sets not learnt from."""

PROTOCOLS = {protocol.name: protocol for protocol in (SURROUNDDEPTH, VFDEPTH, FSM, ZERO_SHOT)}


def measured_frames(protocol: Protocol, source: Source, frame_ids: Sequence[str]) -> tuple[str, ...]:
    """Those of some frames that the protocol measures."""
    if source.name not in protocol.inner_only:
        return tuple(frame_ids)
    outer = {frame_id for frames in source.drives.values() for frame_id in (*frames[:1], *frames[-1:])}
    return tuple(frame_id for frame_id in frame_ids if frame_id not in outer)


def require_full_count(protocol: Protocol, source: Source, selectors: Sequence[str], frame_ids: Sequence[str]) -> None:
    """Check that a published split that is there with all its drives is measured with all its frames.

    Args:
        protocol: of the report.
        source: the data set.
        selectors: what the recipe tests on; more than one, a slice, or single drives are no published split.
        frame_ids: the frames that they and the protocol leave.

    Raises:
        ProtocolError: if frames are missing or too many; a number measured on them would compare with nothing.
    """
    if len(selectors) != 1:
        return
    for (dataset, split), full in protocol.full.items():
        drives = source.splits.get(split, ())
        if dataset != source.name or len(drives) != full.drives or len(frame_ids) == full.frames:
            continue
        # Under a protocol that has a list of its own, any list of frames is taken for that one.
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
