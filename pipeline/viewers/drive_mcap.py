"""Writes a drive as an MCAP file, which Foxglove, Lichtblick and, in ROS 2 messages, rviz2 open. An optional extra."""

import io
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING

import numpy as np
from jaxtyping import Float
from PIL import Image

from data_cache.errors import SettingError, SurroundWarning
from data_cache.files import open_regular
from data_cache.frames.geometry import resized_intrinsics
from data_cache.frames.images import BYTE_LIMIT, opened
from data_cache.frames.rig import Camera, Frame, View
from data_cache.sources.base import Source
from data_cache.sources.recordings.source import RecordingSource
from pipeline.viewers.drive_messages import Message, Messages, Stamp, Transform
from pipeline.viewers.ros2_messages import Ros2Messages
from stages.inference.point_cloud import PointCloud, unoccluded_depth
from stages.inference.predict import Prediction

if TYPE_CHECKING:
    from mcap.writer import Writer

TOPICS = "/surround"
WORLD, VEHICLE = "map", "base_link"
"""Coordinate frames of the world and the vehicle (REP 105); a camera's is its name, x right, y down, z forward."""
TF, TF_STATIC = "/tf", "/tf_static"
JPEG_QUALITY = 95
COPIED = {"JPEG": "jpeg", "PNG": "png"}
"""Formats whose files are copied; all viewers decode them."""
ORIENTATION_TAG = 0x0112  # of Exif; viewers turn such an image, the student saw it as it is stored
STEP_NS = 100_000_000
"""Time between frames that have no time stamps."""

_Mounts = dict[str, Float[np.ndarray, "4 4"]]


def require_mcap() -> "type[Writer]":
    """The class that writes MCAP; raises SettingError if a package of the extra is missing."""
    try:
        import foxglove_schemas_protobuf  # noqa: F401
        import mcap_protobuf  # noqa: F401
        import rosbags.typesys  # noqa: F401
        import zstandard  # noqa: F401  what compresses chunks
        from mcap.writer import Writer
    except ImportError as error:
        raise SettingError(f"an MCAP file needs pip install 'surround-distill[bags]' ({error})") from error
    return Writer


def messages_for(source: Source) -> Messages:
    """The family of messages that a data set's depth is written in: that of its recording, else ROS 2's."""
    if isinstance(source, RecordingSource) and source.foxglove:
        from pipeline.viewers.foxglove_messages import FoxgloveMessages

        return FoxgloveMessages()
    return Ros2Messages()


class DriveFile:
    """The file of a drive, written frame by frame; `with` finishes it.

    Topics of each camera, with the time stamps of its images: `/surround/CAMERA/depth` (32FC1, at the student's input
    size) with `/surround/CAMERA/camera_info`, and `/surround/CAMERA/image/compressed` (at the size of the image) with
    `/surround/CAMERA/image/camera_info`. Topics of the rig: `/surround/points` in the vehicle's frame, `/tf`,
    `/tf_static`.

    A camera whose place on the vehicle is known hangs on the vehicle in `/tf_static`, and `/tf` says where the vehicle
    is at the time of that camera. Another camera hangs on the world in `/tf`. Both ways a camera is, at its own time,
    where the data set says.

    Chunks are written as they fill up: only their index, some hundred bytes each, stays in memory.

    Args:
        path: of the file; it grows with every frame.
        drive: its name, for notices.
        cameras: names of the cameras of the rig.
        messages: of the family of schemas that the file has, see `messages_for`.

    Raises:
        SettingError: if a package of the extra is missing.
        OSError: if the file cannot be written.
    """

    def __init__(self, path: Path, drive: str, cameras: Sequence[str], messages: Messages) -> None:
        writer = require_mcap()
        self._drive = drive
        self._bases = _topics(cameras)
        self._messages = messages
        self._stream: IO[bytes] = path.open("wb")
        self._writer = writer(self._stream)
        self._writer.start(self._messages.profile, "surround-distill")
        self._schemas: dict[str, int] = {}
        self._channels: dict[str, _Channel] = {}
        self._mounts: _Mounts = {}
        self._count = 0
        self._unstamped = False
        self._moved = False

    def __enter__(self) -> "DriveFile":
        return self

    def __exit__(self, failed: object, *_: object) -> None:
        with self._stream:
            if failed is None:
                self._writer.finish()  # type: ignore[no-untyped-call]
                self._notify()

    def add(self, frame: Frame, prediction: Prediction, cloud: PointCloud) -> None:
        """Add a frame whose vehicle pose is known; nothing of it is written if an image or mask cannot be read.

        Raises FrameError and OSError.
        """
        assert frame.world_from_ego is not None
        views = [view for view in frame.views if view is not None]
        unstamped = all(view.time_ns == 0 for view in views)
        if unstamped:
            views = [replace(view, time_ns=(self._count + 1) * STEP_NS) for view in views]
        depth_m = unoccluded_depth(frame, prediction)
        present = [depth_m[i] for i, view in enumerate(frame.views) if view is not None]
        mounts = {view.camera.name: view.ego_from_cam for view in views if view.ego_from_cam is not None}
        entries = list(self._transforms(frame.world_from_ego, views, mounts))
        for view, one in zip(views, present, strict=True):
            entries += self._of_camera(view, one.astype(np.float32))
        entries.append(self._cloud(frame.world_from_ego, views, cloud))
        # Nothing fails from here on but the disk.
        self._mounts |= mounts
        self._moved |= not np.array_equal(frame.world_from_ego, np.eye(4))
        self._unstamped |= unstamped
        self._count += 1
        for entry in entries:
            self._write(entry)

    def _of_camera(self, view: View, depth_m: Float[np.ndarray, "H W"]) -> "Iterator[_Entry]":
        camera, stamp = view.camera, Stamp(view.time_ns, view.camera.name)
        base = self._bases[camera.name]
        native, size = (camera.height_px, camera.width_px), (depth_m.shape[0], depth_m.shape[1])
        seen = Camera(camera.name, resized_intrinsics(camera.K_px, native, size), size[1], size[0])
        yield _Entry(f"{base}/camera_info", view.time_ns, self._messages.camera_info(stamp, seen))
        yield _Entry(f"{base}/depth", view.time_ns, self._messages.depth(stamp, depth_m))
        yield _Entry(f"{base}/image/camera_info", view.time_ns, self._messages.camera_info(stamp, camera))
        picture = _encoded(view)
        message = self._messages.image(stamp, picture.format_name, picture.data)
        yield _Entry(f"{base}/image/compressed", view.time_ns, message)

    def _cloud(self, world_from_ego: Float[np.ndarray, "4 4"], views: list[View], cloud: PointCloud) -> "_Entry":
        """The points in the vehicle's frame at the time of the reference camera; they were made for the LiDAR's."""
        reference = _reference(views)
        vehicle_from_ego = np.linalg.inv(_world_from_vehicle(reference, world_from_ego)) @ world_from_ego
        points_m = cloud.points_m @ vehicle_from_ego[:3, :3].T + vehicle_from_ego[:3, 3]
        moved = PointCloud(points_m.astype(np.float32), cloud.rgb)
        message = self._messages.points(Stamp(reference.time_ns, VEHICLE), moved)
        return _Entry(f"{TOPICS}/points", reference.time_ns, message)

    def _transforms(
        self, world_from_ego: Float[np.ndarray, "4 4"], views: list[View], mounts: _Mounts
    ) -> "Iterator[_Entry]":
        first_ns = min(view.time_ns for view in views)
        known = self._mounts
        if any(name not in known or not np.array_equal(known[name], pose) for name, pose in mounts.items()):
            # All of them again: a late subscriber gets the last message alone.
            static = [Transform(Stamp(first_ns, VEHICLE), name, pose) for name, pose in (known | mounts).items()]
            yield _Entry(TF_STATIC, first_ns, self._messages.transforms(static))
        reference = _reference(views)
        vehicle = {
            view.time_ns: _world_from_vehicle(view, world_from_ego)
            for view in (*views, reference)  # last, so that nothing replaces the pose that the cloud was made with
            if view.ego_from_cam is not None or view is reference
        }
        moving = [Transform(Stamp(time_ns, WORLD), VEHICLE, pose) for time_ns, pose in sorted(vehicle.items())]
        for view in views:
            if view.ego_from_cam is None:
                moving.append(Transform(Stamp(view.time_ns, WORLD), view.camera.name, view.world_from_cam))
        yield _Entry(TF, first_ns, self._messages.transforms(moving))

    def _write(self, entry: "_Entry") -> None:
        channel = self._channels.get(entry.topic)
        if channel is None:
            channel = _Channel(self._register(entry.topic, entry.message.type_name))
            self._channels[entry.topic] = channel
        self._writer.add_message(
            channel.id, entry.time_ns, entry.message.data, publish_time=entry.time_ns, sequence=channel.count
        )
        channel.count += 1

    def _register(self, topic: str, type_name: str) -> int:
        messages = self._messages
        if type_name not in self._schemas:
            definition = messages.schema(type_name)
            self._schemas[type_name] = self._writer.register_schema(type_name, messages.schema_encoding, definition)
        metadata = messages.channel_metadata(latched=topic == TF_STATIC)
        return self._writer.register_channel(topic, messages.message_encoding, self._schemas[type_name], metadata)

    def _notify(self) -> None:
        notices = []
        if self._count > 1 and not self._moved:
            notices.append(f"the vehicle stands at the origin of {WORLD} in each frame, as data without poses has it")
        if self._unstamped:
            notices.append(f"frames without time stamps are {STEP_NS / 1e9:g} s apart")
        if notices:
            warnings.warn(f"{self._drive} as MCAP: {'; '.join(notices)}", SurroundWarning, stacklevel=2)


@dataclass(frozen=True, eq=False)
class _Entry:
    """A message, its topic, and when it was logged: at its own time."""

    topic: str
    time_ns: int
    message: Message


@dataclass(eq=False)
class _Channel:
    """A topic of the file, and how many messages it has."""

    id: int
    count: int = 0


@dataclass(frozen=True, eq=False)
class _Encoded:
    """An encoded image and its format, jpeg or png."""

    format_name: str
    data: bytes


def _reference(views: list[View]) -> View:
    """The camera at whose time the cloud is: the first one whose place on the vehicle is known, else the first."""
    return next((view for view in views if view.ego_from_cam is not None), views[0])


def _world_from_vehicle(view: View, world_from_ego: Float[np.ndarray, "4 4"]) -> Float[np.ndarray, "4 4"]:
    """Pose of the vehicle at the time of a camera; where its place on the vehicle is unknown, that of the frame."""
    if view.ego_from_cam is None:
        return world_from_ego
    pose: np.ndarray = view.world_from_cam @ np.linalg.inv(view.ego_from_cam)
    return pose


def _encoded(view: View) -> _Encoded:
    """The bytes of the image file, where it is JPEG or PNG and holds what the student saw; else encoded as JPEG."""
    data = _stored(view)
    if data is not None:
        with opened(io.BytesIO(data)) as image:
            format_name = COPIED.get(image.format or "")
            turned = format_name == "jpeg" and image.getexif().get(ORIENTATION_TAG, 1) != 1
        if format_name is not None and not turned:
            return _Encoded(format_name, data)
    with io.BytesIO() as buffer:
        Image.fromarray(view.load_image()).save(buffer, "JPEG", quality=JPEG_QUALITY)
        return _Encoded("jpeg", buffer.getvalue())


def _stored(view: View) -> bytes | None:
    """The file that holds exactly this image; None if there is none."""
    if view.image_file is None:
        return view.load_encoded() if view.load_encoded is not None else None
    with open_regular(view.image_file, BYTE_LIMIT, "image") as stream:
        return stream.read()


def _topics(cameras: Sequence[str]) -> dict[str, str]:
    """Where the topics of each camera begin: in names of ROS are letters, digits and _, and no digit comes first."""
    topics: dict[str, str] = {}
    for camera in cameras:
        name = "".join(character if character.isascii() and character.isalnum() else "_" for character in camera)
        name = f"_{name}" if name[:1].isdigit() else name
        while f"{TOPICS}/{name}" in topics.values():
            name += "_"
        topics[camera] = f"{TOPICS}/{name}"
    return topics
