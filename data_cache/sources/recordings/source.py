"""Recordings of one vehicle as a data set: each bag a drive, each LiDAR sweep a frame."""

import hashlib
import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8

from data_cache.errors import FrameError, SourceError
from data_cache.frames.images import decode_rgb, image_size
from data_cache.frames.rig import Frame, Rig, Sweep, View, make_sweep
from data_cache.frames.undistort import undistorted
from data_cache.sources.base import ImageFile, Photograph
from data_cache.sources.recordings.cameras import RecordedCamera
from data_cache.sources.recordings.choices import Choices, decide
from data_cache.sources.recordings.decoding.clouds import points
from data_cache.sources.recordings.decoding.messages import CloudMessage, ImageMessage, decode
from data_cache.sources.recordings.decoding.pixels import as_file
from data_cache.sources.recordings.indexing import Bag, Row, read_bag
from data_cache.sources.recordings.pairing import Pairs, pair
from data_cache.sources.recordings.settings import BagSettings
from data_cache.sources.recordings.transforms import Tree


@dataclass(frozen=True, eq=False)
class Drive:
    """A bag as a drive."""

    bag: Bag
    tree: Tree
    pairs: Pairs


class RecordingSource:
    """Bags of one vehicle as frames; ids are `bag/time stamp`. There are no splits.

    Each bag is read once when it is opened, for what is where; images and points are read when asked for.

    Args:
        bags: files (.mcap, .db3), or folders of ROS 2 bags.
        settings: what the user decides.
        on_bytes: called with the number of bytes that were passed while reading, now and then.
        name: name of the rig.

    Raises:
        SourceError: if a bag cannot be read, or no frames can be made of it; the message says what to do.
        SettingError: if the extra `bags` is missing.
    """

    name = "recording"

    def __init__(
        self,
        bags: Sequence[Path],
        settings: BagSettings | None = None,
        *,
        on_bytes: Callable[[int], object] = lambda _: None,
        name: str = "recording",
    ) -> None:
        if not bags:
            raise SourceError("recording: expected at least one bag, found none")
        settings = settings if settings is not None else BagSettings()
        read = [read_bag(bag, on_bytes) for bag in bags]
        self.choices, trees = decide(read, settings)
        self.rig = Rig(name, tuple(camera.name for camera in self.choices.cameras))
        self.mounts: Mapping[str, Float[np.ndarray, "4 4"]] = self.choices.mounts
        self.splits: Mapping[str, tuple[str, ...]] = {}
        self.parts: dict[str, Drive] = {}
        for bag, tree in zip(read, trees, strict=True):
            label = _label(bag.path, self.parts)
            self.parts[label] = Drive(bag, tree, pair(bag, self.choices, tree))
        self.drives: Mapping[str, tuple[str, ...]] = {
            label: tuple(f"{label}/{time_ns}" for time_ns in drive.pairs.times_ns.tolist())
            for label, drive in self.parts.items()
        }

    @property
    def identity(self) -> str:
        """See `data_cache.sources.base.RecordedSource`."""
        files = [(file.path.name, file.path.stat().st_size) for one in self.parts.values() for file in one.bag.files]
        cameras = [(one.name, one.topic, one.frame, one.camera.K_px.tolist()) for one in self.choices.cameras]
        choices = self.choices
        decided = (cameras, choices.lidar, choices.lidar_frame, choices.ego, choices.world, choices.settings)
        return hashlib.sha256(repr((files, decided, list(self.drives.items()))).encode()).hexdigest()

    @property
    def notes(self) -> tuple[str, ...]:
        """What was decided otherwise than one may expect, and what was left out."""
        per_drive = [note for one in self.parts.values() for note in (*one.bag.notes, *one.pairs.notes)]
        return (*self.choices.notes, *per_drive)

    @property
    def foxglove(self) -> bool:
        """Whether the images of all cameras are messages of Foxglove's own schemas."""
        topics = [one.bag.topics.get(camera.topic) for one in self.parts.values() for camera in self.choices.cameras]
        return all(topic.channel.type.startswith("foxglove.") for topic in topics if topic is not None)

    def frame(self, frame_id: str) -> Frame:
        """One frame; images and LiDAR are read when asked for. Raises FrameError if there is no such frame."""
        drive, number = self._find(frame_id)
        choices, time_ns = self.choices, int(drive.pairs.times_ns[number])
        views = tuple(self._view(drive, i, camera, number) for i, camera in enumerate(choices.cameras))
        row, load_sweep = drive.pairs.sweep(number), None
        if row is not None:
            pose = drive.tree.pose(choices.world, choices.lidar_frame, time_ns)
            load_sweep = partial(_load_sweep, drive.bag, choices, row, pose)
        world_from_ego = None
        if drive.tree.covers(choices.world, choices.ego, drive.pairs.times_ns[number : number + 1])[0]:
            world_from_ego = drive.tree.pose(choices.world, choices.ego, time_ns)
        return Frame(frame_id, views, load_sweep, world_from_ego=world_from_ego)

    def photographs(self, frame_id: str) -> Mapping[str, Photograph]:
        """See `data_cache.sources.base.RecordedSource`."""
        drive, number = self._find(frame_id)
        return {
            camera.name: Photograph(camera.photographed, camera.lens, partial(_read_image, drive.bag, camera, found[1]))
            for i, camera in enumerate(self.choices.cameras)
            if (found := drive.pairs.image(i, number)) is not None
        }

    def _find(self, frame_id: str) -> tuple[Drive, int]:
        label, _, text = frame_id.rpartition("/")
        drive = self.parts.get(label)
        if drive is None or not re.fullmatch(r"\d{1,19}", text):
            raise FrameError(f"recording: no frame {frame_id!r}; ids look like {next(iter(self.parts))}/1700000000000")
        number = int(np.searchsorted(drive.pairs.times_ns, int(text)))
        if number == len(drive.pairs.times_ns) or drive.pairs.times_ns[number] != int(text):
            raise FrameError(f"recording: no frame {frame_id!r}: no sweep or moment of this time in {drive.bag.path}")
        return drive, number

    def _view(self, drive: Drive, index: int, camera: RecordedCamera, number: int) -> View | None:
        found = drive.pairs.image(index, number)
        if found is None:
            return None
        time_ns, row = found
        pose = drive.tree.pose(self.choices.world, camera.frame, time_ns)
        load, mount = partial(_load_image, drive.bag, camera, row), self.mounts[camera.name]
        encoded = partial(_read_bytes, drive.bag, camera, row) if camera.lens is None else None
        return View(camera.camera, pose, time_ns, load, ego_from_cam=mount, load_encoded=encoded)


def _read_image(bag: Bag, camera: RecordedCamera, row: Row) -> ImageFile:
    """The image file of a message; its size is checked by its header."""
    where = f"{bag.path}: {camera.topic}"
    message = decode(bag.topics[camera.topic].channel, bag.fetch(row))
    assert isinstance(message, ImageMessage)
    where = f"{where} at {message.stamp_ns} ns"
    data, suffix = as_file(message, where)
    size = (camera.photographed.height_px, camera.photographed.width_px)
    found = image_size(io.BytesIO(data), where)
    if found != size:
        raise FrameError(
            f"{where}: expected {size[1]} x {size[0]} px (w x h), as {camera.calibration_topic} says, found"
            f" {found[1]} x {found[0]}; record the calibration of the images as they are"
        )
    return ImageFile(data, suffix, not message.encoding)


def _read_bytes(bag: Bag, camera: RecordedCamera, row: Row) -> bytes:
    return _read_image(bag, camera, row).data


def _load_image(
    bag: Bag, camera: RecordedCamera, row: Row, at_least: tuple[int, int] | None = None
) -> UInt8[np.ndarray, "H W 3"]:
    file = _read_image(bag, camera, row)
    rgb = decode_rgb(io.BytesIO(file.data), f"{bag.path}: {camera.topic}", at_least=at_least)
    return rgb if camera.lens is None else undistorted(rgb, camera.lens)


def _load_sweep(bag: Bag, choices: Choices, row: Row, world_from_lidar: Float[np.ndarray, "4 4"]) -> Sweep:
    assert choices.lidar is not None
    cloud = decode(bag.topics[choices.lidar].channel, bag.fetch(row))
    assert isinstance(cloud, CloudMessage)
    where = f"{bag.path}: {choices.lidar} at {cloud.stamp_ns} ns"
    return make_sweep(points(cloud, where), world_from_lidar, where)


def _label(bag: Path, taken: Mapping[str, object]) -> str:
    """Name of a drive: that of the bag without suffix, in letters that a selector can hold."""
    path = bag.resolve()
    stem = path.name if path.is_dir() else path.name.split(".")[0] or path.name
    label = re.sub(r"[^A-Za-z0-9_.-]", "_", stem)[:200]
    return next(found for found in (label, *(f"{label}-{i}" for i in range(2, len(taken) + 3))) if found not in taken)
