"""Which topics are cameras, what they are called, and how they are calibrated."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from data_cache.errors import FrameError, SourceError
from data_cache.frames.rig import Camera
from data_cache.frames.undistort import ALIASES, COEFFICIENT_COUNTS, Lens, pinhole_rows
from data_cache.sources.recordings.decoding.messages import CALIBRATION, IMAGE, CalibrationMessage, ImageMessage
from data_cache.sources.recordings.decoding.pixels import is_depth, require_read
from data_cache.sources.recordings.indexing import Topic
from data_cache.sources.recordings.settings import CameraSetting

_TRANSPORTS = ("compressed", "compressedDepth", "theora", "ffmpeg", "zstd")
_GENERIC = re.compile(
    r"image(_.*)?|compressed|camera|cameras|sensors?|sensing|color|colour|rgb|raw|rect", re.IGNORECASE
)
_RECTIFIED = re.compile(r"(^|[/_])rect(ified)?([/_]|$)", re.IGNORECASE)


@dataclass(frozen=True, eq=False)
class RecordedCamera:
    """A camera of a recording.

    Attributes:
        name: its name in the rig.
        topic, calibration_topic: where its images and its calibration come from.
        frame: its coordinate frame (x right, y down, z forward).
        photographed: calibration of the images as recorded; pixel centres at half-integers.
        camera: the pinhole camera of the images as read, undistorted.
        lens: None if the images are not distorted.
        is_rectified: whether the images were rectified before they were recorded.
        frame_is_set: whether the user chose the frame.
    """

    name: str
    topic: str
    calibration_topic: str
    frame: str
    photographed: Camera
    camera: Camera
    lens: Lens | None
    is_rectified: bool
    frame_is_set: bool


def find_cameras(
    topics: Mapping[str, Topic], settings: Sequence[CameraSetting]
) -> tuple[tuple[RecordedCamera, ...], tuple[str, ...]]:
    """The cameras of a recording, and notes on image topics that are none.

    Without settings, each calibration topic stands for one camera, whose images come from the topic beside it.

    Raises:
        SourceError: if there is no camera, one has no calibration or an impossible one, two share a coordinate frame,
            or a setting names a topic that is missing or of another type.
    """
    notes: list[str] = []
    if not settings:
        settings, notes = _found(topics)
    names = _names([one.topic for one in settings])
    cameras = [
        _camera(topics, one, one.name or name) for one, name in zip(settings, names, strict=True)
    ]  # fmt: skip
    by_name: dict[str, RecordedCamera] = {}
    by_frame: dict[str, RecordedCamera] = {}
    for camera in cameras:
        if camera.name in by_name:
            raise SourceError(
                f"cameras: expected each name once, found {camera.name} for {by_name[camera.name].topic} and"
                f" {camera.topic}; name them by [[camera]] in a bag.toml"
            )
        if camera.frame in by_frame:
            raise SourceError(
                f"cameras: expected a coordinate frame for each camera, found that {by_frame[camera.frame].topic} and"
                f' {camera.topic} both name {camera.frame!r}; give each its own by frame = "..." under [[camera]] in a'
                " bag.toml, or list only one of them there"
            )
        by_name[camera.name], by_frame[camera.frame] = camera, camera
    return tuple(cameras), tuple(notes)


def _found(topics: Mapping[str, Topic]) -> tuple[list[CameraSetting], list[str]]:
    """Cameras by calibration topic: of several image topics of one camera the best, and notes on the others."""
    candidates: dict[str, list[Topic]] = {}
    lonely: list[Topic] = []
    notes: list[str] = []
    for topic in topics.values():
        if topic.kind != IMAGE or not isinstance(topic.first, ImageMessage):
            continue
        if is_depth(topic.first):
            notes.append(f"{topic.name} is not used: it holds depth, not pictures")
        elif calibration := _calibration_of(topic.name, topic.first.frame_id, topics):
            candidates.setdefault(calibration, []).append(topic)
        else:
            lonely.append(topic)
    if not candidates:
        for topic in topics.values():
            if topic.kind in (IMAGE, CALIBRATION) and not topic.count:
                raise topic.unread("calibrated images" if topic.kind == IMAGE else "the calibration of a camera")
        images = ", ".join(sorted(topic.name for topic in lonely))
        kinds = sorted({topic.channel.type for topic in topics.values() if topic.kind is None})
        unread = f"; not read: {', '.join(kinds[:6])}" if kinds and not lonely else ""
        raise SourceError(
            "cameras: expected image topics with a calibration (sensor_msgs/CameraInfo or foxglove.CameraCalibration)"
            " beside them, found "
            + (
                f"images on {images}, none of them calibrated; record camera_info, or name it by calibration under"
                " [[camera]] in a bag.toml"
                if lonely
                else f"no image topic{' but those of depth' if notes else ''}{unread}; record the images of the cameras"
            )
        )
    chosen: list[CameraSetting] = []
    for calibration, images_of in sorted(candidates.items()):
        # A file is copied as it is, a raw image must be packed; an image before rectification has lost nothing.
        best = min(images_of, key=lambda topic: (not _is_file(topic), _is_rectified(topic), -topic.count, topic.name))
        chosen.append(CameraSetting(best.name, None, calibration))
        notes += [
            f"{topic.name} is not used: {best.name} is of the same camera" for topic in images_of if topic is not best
        ]
    notes += [f"{topic.name} is not used: no calibration beside it" for topic in lonely]
    return chosen, notes


def _calibration_of(image: str, frame_id: str, topics: Mapping[str, Topic]) -> str | None:
    """The calibration topic in the namespace of an image topic, or the only one with its coordinate frame."""
    parts = image.split("/")
    while parts and parts[-1] in _TRANSPORTS:
        parts.pop()
    for length in (len(parts), len(parts) - 1):  # the nearest one first
        beside = "/".join([*parts[:length], "camera_info"])
        if (found := topics.get(beside)) is not None and found.kind == CALIBRATION and found.calibration:
            return beside
    same = [
        topic.name
        for topic in topics.values()
        if topic.calibration is not None and topic.calibration.frame_id == frame_id != ""
    ]
    return same[0] if len(same) == 1 else None


def _is_file(topic: Topic) -> bool:
    return isinstance(topic.first, ImageMessage) and not topic.first.encoding


def _is_rectified(topic: Topic) -> bool:
    return _RECTIFIED.search(topic.name) is not None


def _names(topics: Sequence[str]) -> list[str]:
    """Short names of topics: their parts that tell them apart, without words that every camera topic has."""
    parts = [[part for part in topic.split("/") if part] for topic in topics]
    common = set.intersection(*map(set, parts)) if len(parts) > 1 else set()
    names = []
    for topic, of in zip(topics, parts, strict=True):
        kept = [part for part in of if part not in common and not _GENERIC.fullmatch(part)]
        text = "_".join(kept or [part for part in of if part not in common] or of) or topic
        names.append(re.sub(r"[^A-Za-z0-9_.-]", "_", text).lstrip(".-")[:64] or "camera")
    return names


def _camera(topics: Mapping[str, Topic], setting: CameraSetting, name: str) -> RecordedCamera:
    topic = _require(topics, setting.topic, IMAGE, "an image topic")
    first = topic.first
    if not isinstance(first, ImageMessage):
        raise topic.unread("images")
    try:
        require_read(first, topic.name)
    except FrameError as error:
        raise SourceError(f"{error}; or list the topics to use by [[camera]] in a bag.toml") from error
    beside = setting.calibration or _calibration_of(topic.name, first.frame_id, topics)
    if beside is None:
        raise SourceError(
            f"{topic.name}: expected a calibration beside it, found none; record camera_info, or name its topic by"
            ' calibration = "..." under [[camera]] in a bag.toml'
        )
    calibration_topic = _require(topics, beside, CALIBRATION, "a calibration topic")
    calibration = calibration_topic.calibration
    if calibration is None:
        raise calibration_topic.unread("a calibration")
    if calibration_topic.changed:
        raise SourceError(
            f"{beside}: expected one calibration throughout, found that it changes; cut the recording where it does,"
            " and import the parts into folders of their own"
        )
    frame = setting.frame or first.frame_id.lstrip("/") or calibration.frame_id.lstrip("/")
    if not frame:
        raise SourceError(
            f"{topic.name}: expected the coordinate frame of the camera in the header, found none; name it by"
            ' frame = "..." under [[camera]] in a bag.toml'
        )
    photographed, lens = calibrated(name, calibration, beside, is_rectified=_is_rectified(topic))
    try:
        camera = photographed
        if lens is not None:
            camera = Camera(name, np.array(pinhole_rows(lens)), photographed.width_px, photographed.height_px)
    except FrameError as error:
        raise SourceError(f"{beside}: {error}") from error
    is_set = setting.frame is not None
    return RecordedCamera(name, topic.name, beside, frame, photographed, camera, lens, _is_rectified(topic), is_set)


def calibrated(
    name: str, calibration: CalibrationMessage, where: str, *, is_rectified: bool
) -> tuple[Camera, Lens | None]:
    """The camera of recorded images and its lens; of rectified images, the projection P without a lens.

    Raises:
        SourceError: if the numbers are impossible or the distortion model is not known; it names `where`.
    """
    if calibration.is_cropped:
        raise SourceError(
            f"{where}: expected whole images, found binning or a region of interest; record without them, or with the"
            " calibration of the images as they are"
        )
    numbers = np.array(calibration.K, dtype=np.float64)
    if is_rectified and len(calibration.P) == 12 and calibration.P[0] > 0:
        numbers = np.array(calibration.P, dtype=np.float64).reshape(3, 4)[:, :3].ravel()
    if numbers.size != 9 or numbers[0] == 0:
        raise SourceError(f"{where}: expected intrinsics K, found {numbers.tolist()}; calibrate the camera")
    # ROS and OpenCV put the centre of the top left pixel at (0, 0), we at (0.5, 0.5).
    K_px = numbers.reshape(3, 3) + np.array([[0, 0, 0.5], [0, 0, 0.5], [0, 0, 0]])
    try:
        camera = Camera(name, K_px, calibration.width, calibration.height)
        model, coefficients = _lens(calibration)
        if is_rectified or model is None:
            return camera, None
        a, b, c = (tuple(row) for row in K_px.tolist())
        return camera, Lens(model, coefficients, (a, b, c), camera.width_px, camera.height_px)
    except FrameError as error:
        raise SourceError(f"{where}: {error}") from error


def _lens(calibration: CalibrationMessage) -> tuple[str | None, tuple[float, ...]]:
    """Model and coefficients as `frames.undistort` has them; None if nothing is distorted. Raises FrameError."""
    D = calibration.D
    model = ALIASES.get(calibration.model.lower(), calibration.model)
    if not any(D) and (model != "fisheye" or not D):  # a fisheye lens of four zeros bends all the same
        return None, ()
    counts = COEFFICIENT_COUNTS.get(model)
    # OpenCV writes 5, 8, 12 or 14 coefficients of one family; those of prisms and tilts must be 0 here.
    if counts is not None and len(D) > max(counts) and not any(D[max(counts) :]):
        D = D[: max(counts)]
    if model == "plumb_bob" and len(D) > 5:
        raise FrameError(
            f"distortion plumb_bob: expected 4 or 5 coefficients, found {len(D)}: it is rational_polynomial; or a model"
            " that is not known here"
        )
    return model, D


def _require(topics: Mapping[str, Topic], name: str, kind: str, what: str) -> Topic:
    """A topic that was asked for; its messages may be damaged. Raises SourceError if it is missing or another kind."""
    topic = topics.get(name)
    if topic is None:
        of_kind = sorted(one.name for one in topics.values() if one.kind == kind)
        raise SourceError(f"{name}: expected {what}, found no such topic; there are {', '.join(of_kind) or 'none'}")
    if topic.kind != kind:
        raise SourceError(
            f"{name}: expected {what}, found messages of {topic.channel.type} ({topic.channel.encoding}), which are not"
            " read as one"
        )
    return topic
