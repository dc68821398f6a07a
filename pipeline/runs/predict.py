"""`surround predict`: writes a student's depth as maps, pictures and point clouds."""

import io
import json
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from data_cache.errors import FrameError, SourceError, SurroundWarning
from data_cache.files import file_sha256, replace_atomically, write_atomically
from data_cache.frames.rig import Frame
from data_cache.sources.base import Source, StoredSource
from data_cache.sources.recordings.containers.opening import bag_files
from data_cache.sources.recordings.source import RecordingSource
from data_cache.sources.rig_folder.loose_images import LooseImages
from pipeline.api import UNCALIBRATED, SurroundStudent, load_student
from pipeline.errors import RecipeError
from pipeline.recipe.config import SUFFIX as RECIPE_SUFFIX
from pipeline.recipe.config import built_in_recipes, load_recipe
from pipeline.recipe.run_folder import RunFolder
from pipeline.runs.splits import open_data, select_frames
from pipeline.viewers.cloud_page import cloud_page
from pipeline.viewers.drive_mcap import DriveFile, messages_for, require_mcap
from pipeline.viewers.recording import Recording, require_rerun
from stages.compute.preemption import Preempted, preemption
from stages.compute.progress import progress_bar
from stages.evaluation.predictions import SUFFIXES, frame_file, prediction_file, save_prediction, save_sigma
from stages.inference.cloud_files import glb_bytes, ply_bytes
from stages.inference.colours import colour_depth, depth_scale
from stages.inference.point_cloud import PointCloud, frame_cloud
from stages.inference.predict import Prediction
from stages.student.checkpoint import CheckpointError, find_checkpoint

CONFIDENCE = "confidence"
IMAGE_KINDS = {**SUFFIXES, "colour": ".png", CONFIDENCE: ".png"}
"""Kinds of files per image, below OUT/KIND/CAMERA, with their suffixes."""
CLOUD_KINDS = {"ply": ".ply", "glb": ".glb", "html": ".html"}
"""Kinds of files per frame, below OUT/KIND, with their suffixes."""
RECORDING = "rrd"
RECORDING_FILE = "drive.rrd"
DRIVE_FILE = "mcap"
"""A file per drive, OUT/mcap/DRIVE.mcap."""
WHOLE_DRIVES = (RECORDING, DRIVE_FILE)
DESCRIPTION = "predict.json"
GROWING = ("recording", DRIVE_FILE)
"""What a description says beside the student and the data set: the frames of the files of whole drives."""


@dataclass(frozen=True)
class PredictRun:
    """How many frames were written or already done, and why others were left out, by id.

    `points` is the number of points in the last cloud; None if none was made.
    """

    out: Path
    written: int
    already_done: int
    left_out: dict[str, str]
    points: int | None


@dataclass(frozen=True, eq=False)
class _Target:
    """Frames to predict; `described` tells them from frames of another data set with the same ids."""

    source: Source
    frame_ids: tuple[str, ...]
    described: Mapping[str, object]
    device: str = "auto"
    precision: str = "auto"


def run_predict(
    checkpoint: Path,
    out: Path,
    kinds: Sequence[str],
    *,
    on: str = "",
    overrides: Sequence[str] = (),
    images: Sequence[Path] = (),
    rig: Path | None = None,
    frames: Sequence[int] = (),
) -> PredictRun:
    """Write a student's depth of frames to files; files that are up to date are not written again.

    Args:
        checkpoint: file of a student, or a folder with one, see `find_checkpoint`.
        out: folder to write to; it belongs to one student and one data set.
        kinds: of IMAGE_KINDS, CLOUD_KINDS and WHOLE_DRIVES.
        on: RECIPE or RECIPE=DATA, whose test frames to use, or a recording, all of whose frames are used; empty for the
            recipe of the student's own run.
        overrides: section.key=value for that recipe.
        images, rig: use these instead, see `LooseImages`.
        frames: numbers of the frames, from 0; none for all.

    Raises:
        CheckpointError: if there is no usable student.
        RecipeError: if there are no frames, or `out` holds predictions of another student or data set.
        SourceError: if the data is not there, or none of the frames can be used.
        SettingError: if a package is missing for a recording or an MCAP file.
        WriteError: if the folder cannot be written.
        Preempted: if a signal asks to stop, between two frames.
    """
    checkpoint = find_checkpoint(checkpoint)
    if not checkpoint.is_file():
        raise CheckpointError(f"no checkpoint at {checkpoint}; it is RUN/student/last.safetensors of a training")
    if RECORDING in kinds:
        require_rerun()
    if DRIVE_FILE in kinds:
        require_mcap()
    if rig is not None:
        target = _of_images(images, rig)
    elif is_recording(on):
        target = _of_recording(Path(on), overrides)
    else:
        target = _of_recipe(checkpoint, on, overrides)
    frame_ids = _numbered(target.frame_ids, frames)
    student = load_student(checkpoint, target.device, target.precision)
    if CONFIDENCE in kinds and student.calibration is None:
        warnings.warn(UNCALIBRATED, SurroundWarning, stacklevel=2)
    description = _claim(
        out, {"checkpoint_sha256": file_sha256(checkpoint), "precision": student.precision, **target.described}
    )
    file_kinds = tuple(kind for kind in kinds if kind not in WHOLE_DRIVES)
    with preemption() as should_stop, progress_bar(len(frame_ids), 0, "predict", "frame") as bar:
        job = _Job(out, student, target.source, file_kinds, description, should_stop, bar.update)
        drives = _by_drive(target.source, frame_ids)

        def run(recording: Sequence[_Viewer] = ()) -> None:
            for drive, ids in drives.items():
                if DRIVE_FILE in kinds:
                    job.write_drive(drive, ids, recording)
                else:
                    job.look(ids, recording)

        file = out / RECORDING_FILE
        if RECORDING not in kinds or (file.is_file() and description.get("recording") == list(frame_ids)):
            run()
        else:

            def record(partial: Path) -> None:
                with Recording(partial) as recording:
                    run([recording])
                    job.require_frames()

            replace_atomically(file, record)
            job.describe(recording=list(frame_ids))
        return job.require_frames()


class _Viewer(Protocol):
    """A file that holds the frames of a drive; see `Recording` and `DriveFile`."""

    def add(self, frame: Frame, prediction: Prediction, cloud: PointCloud) -> None: ...


class _NoFrameError(Exception):
    """No frame of a drive can be used, so there is no file of it."""


@dataclass(eq=False)
class _Job:
    """The student that predicts depth, the kinds of files to write for each frame, and what was done so far.

    `description` is what is written down about the folder; `advance` is called after each frame.
    """

    out: Path
    student: SurroundStudent
    source: Source
    kinds: tuple[str, ...]
    description: dict[str, Any]
    should_stop: Callable[[], bool]
    advance: Callable[[], object]
    written: int = 0
    already_done: int = 0
    points: int | None = None
    left_out: dict[str, str] = field(default_factory=dict)

    def look(self, frame_ids: Sequence[str], viewers: Sequence[_Viewer]) -> None:
        """Write what is missing of these frames, and add each of them to `viewers`."""
        for frame_id in frame_ids:
            if self.should_stop():
                raise Preempted("stopped between two frames; files that are there are finished")
            try:
                frame = self.source.frame(frame_id)
                missing = [kind for kind in self.kinds if not self._is_done(kind, frame)]
                if missing or viewers:
                    cloud = self._write(frame, missing, viewers)
                    self.points = len(cloud.points_m) if cloud is not None else self.points
                    self.written += 1
                else:
                    self.already_done += 1
            except FrameError as error:
                self.left_out[frame_id] = str(error)
            self.advance()

    def write_drive(self, drive: str, frame_ids: Sequence[str], viewers: Sequence[_Viewer]) -> None:
        """Do the same, with the file of the drive, if it is missing or older than an image."""
        file = frame_file(self.out / DRIVE_FILE, drive, ".mcap")
        done = self.description.get(DRIVE_FILE, {})
        if done.get(drive) == list(frame_ids) and self._is_newer([file], frame_ids):
            self.look(frame_ids, viewers)
            return

        def record(partial: Path) -> None:
            before = self.written
            with DriveFile(partial, drive, self.source.rig.camera_names, messages_for(self.source)) as drive_file:
                self.look(frame_ids, [*viewers, drive_file])
                if self.written == before:
                    raise _NoFrameError

        try:
            replace_atomically(file, record)
        except _NoFrameError:
            return
        self.describe(**{DRIVE_FILE: {**done, drive: list(frame_ids)}})

    def describe(self, **changes: object) -> None:
        """Write down more about the folder."""
        self.description |= changes
        write_atomically(self.out / DESCRIPTION, _json(self.description))

    def require_frames(self) -> PredictRun:
        """What was done; raises SourceError if no frame could be used."""
        if not self.written and not self.already_done:
            count, first = len(self.left_out), next(iter(self.left_out.values()))
            raise SourceError(first if count == 1 else f"none of {count} frames can be used: {first}")
        return PredictRun(self.out, self.written, self.already_done, self.left_out, self.points)

    def _write(self, frame: Frame, missing: Sequence[str], viewers: Sequence[_Viewer]) -> PointCloud | None:
        prediction = self.student.look(frame, uncalibrated=CONFIDENCE in missing)
        for kind in (kind for kind in missing if kind in SUFFIXES):
            maps = [depth_m for depth_m in prediction.at_image_size(frame) if depth_m is not None]
            for path, depth_m in zip(self._files(kind, frame), maps, strict=True):
                save_prediction(path, depth_m)
        if CONFIDENCE in missing:
            found = self.student.calibration
            calibrated = f"{found.dataset} {found.split}" if found is not None else "none"
            maps = [sigma for sigma in prediction.sigma_at_image_size(frame) if sigma is not None]
            for path, sigma in zip(self._files(CONFIDENCE, frame), maps, strict=True):
                save_sigma(path, sigma, calibrated)
        if "colour" in missing:
            for path, picture in zip(self._files("colour", frame), self._pictures(frame, prediction), strict=True):
                _save(path, picture)
        cloud_kinds = [kind for kind in missing if kind in CLOUD_KINDS]
        if not viewers and not cloud_kinds:
            return None
        # Last: a frame may have depth but no cloud.
        stride = self.student.network.bins.prob_stride
        cloud = frame_cloud(frame, prediction, self.student.lineage.depth_range_m, stride)
        for kind in cloud_kinds:
            (path,) = self._files(kind, frame)
            _save(path, _cloud_file(kind, cloud, frame.id))
        for viewer in viewers:
            viewer.add(frame, prediction, cloud)
        return cloud

    def _pictures(self, frame: Frame, prediction: Prediction) -> Iterator[bytes]:
        scale = depth_scale(self.student.lineage.depth_range_m)
        for view, depth_m in zip(frame.views, prediction.depth_m, strict=True):
            if view is not None:
                with io.BytesIO() as file:
                    Image.fromarray(colour_depth(depth_m, scale)).save(file, "PNG")
                    yield file.getvalue()

    def _is_done(self, kind: str, frame: Frame) -> bool:
        """Whether all files exist and none is older than the images: loose images are often overwritten."""
        return self._is_newer(self._files(kind, frame), [frame.id])

    def _is_newer(self, files: Sequence[Path], frame_ids: Sequence[str]) -> bool:
        if not all(path.is_file() for path in files):
            return False
        stored = self.source if isinstance(self.source, StoredSource) else None
        sources = [path for frame_id in frame_ids for path in stored.files(frame_id).values()] if stored else []
        newest_s = max((path.stat().st_mtime for path in sources if path.is_file()), default=0.0)
        return all(path.stat().st_mtime >= newest_s for path in files)

    def _files(self, kind: str, frame: Frame) -> list[Path]:
        """The files of one kind that a finished frame has."""
        if kind in CLOUD_KINDS:
            return [frame_file(self.out / kind, frame.id, CLOUD_KINDS[kind])]
        return [
            prediction_file(self.out / kind, view.camera.name, frame.id, IMAGE_KINDS[kind])
            for view in frame.views
            if view is not None
        ]


def _save(path: Path, data: bytes) -> None:
    replace_atomically(path, lambda partial: partial.write_bytes(data))


def _cloud_file(kind: str, cloud: PointCloud, frame_id: str) -> bytes:
    if kind == "html":
        return cloud_page(cloud.points_m, cloud.rgb, frame_id).encode()
    return ply_bytes(cloud) if kind == "ply" else glb_bytes(cloud)


def _of_recipe(checkpoint: Path, on: str, overrides: Sequence[str]) -> _Target:
    name, _, data = on.partition("=")
    if not name:
        own = RunFolder.of_checkpoint(checkpoint).recipe
        if not own.is_file():
            raise RecipeError(
                f"{checkpoint} lies in no run, so there is no recipe of its own: pass --on RECIPE[=DATA], or images and"
                " --rig rig.json"
            )
        name = str(own)
    recipe = load_recipe(name, overrides, Path(data) if data else None)
    source = open_data(recipe.data)
    described = {key: getattr(recipe.data, key) for key in ("source", "root", "version", "masks")}
    return _Target(
        source,
        select_frames(recipe.data, source, recipe.data.test),
        described,
        recipe.eval.device,
        recipe.eval.precision,
    )


def _of_images(images: Sequence[Path], rig: Path) -> _Target:
    source = LooseImages(images, rig)
    described = {"images": [str(path.resolve()) for path in images], "rig_sha256": file_sha256(rig)}
    return _Target(source, source.drives[source.name], described)


def is_recording(on: str) -> bool:
    """Whether `on` is a file or folder that is no recipe; the name of a recipe stands for it, whatever lies beside."""
    path = Path(on)
    return bool(on) and on not in built_in_recipes() and path.suffix != RECIPE_SUFFIX and path.exists()


def _of_recording(bag: Path, overrides: Sequence[str]) -> _Target:
    if overrides:
        raise RecipeError(f"--set {overrides[0]}: a recording has no recipe; write one after `surround rig import`")
    size = sum(file.stat().st_size for file in bag_files(bag))
    with progress_bar(size, 0, "reading", "B", unit_scale=True) as bar:
        source = RecordingSource([bag], on_bytes=bar.update)
    for note in source.notes:
        warnings.warn(note, SurroundWarning, stacklevel=2)
    frame_ids = tuple(frame_id for ids in source.drives.values() for frame_id in ids)
    return _Target(source, frame_ids, {"recording_of": source.identity})


def _by_drive(source: Source, frame_ids: Sequence[str]) -> dict[str, list[str]]:
    """The frames of each drive, in the order in which they were chosen."""
    drive_of = {frame_id: drive for drive, ids in source.drives.items() for frame_id in ids}
    drives: dict[str, list[str]] = {}
    for frame_id in frame_ids:
        drives.setdefault(drive_of[frame_id], []).append(frame_id)
    return drives


def _numbered(frame_ids: tuple[str, ...], numbers: Sequence[int]) -> tuple[str, ...]:
    wrong = [number for number in numbers if not 0 <= number < len(frame_ids)]
    if wrong:
        raise RecipeError(f"frame {wrong[0]}: expected a number from 0 to {len(frame_ids) - 1}; see --set data.test")
    return tuple(frame_ids[number] for number in dict.fromkeys(numbers)) if numbers else frame_ids


def _claim(out: Path, wanted: dict[str, object]) -> dict[str, Any]:
    """Return the description of a folder; write it if there is none. Raises RecipeError if the folder is taken."""
    path = out / DESCRIPTION
    wanted = json.loads(_json(wanted))
    if not path.is_file():
        write_atomically(path, _json(wanted))
        return wanted
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        differing = [key for key in {**wanted, **found} if key not in GROWING and found.get(key) != wanted.get(key)]
    except (OSError, TypeError, ValueError, AttributeError) as error:
        raise RecipeError(f"{path} cannot be read ({error}); name another folder") from error
    if differing:
        key = differing[0]
        raise RecipeError(
            f"{out} holds predictions of another student or data set ({key} was {found.get(key)!r}, is"
            f" {wanted.get(key)!r}); name another folder"
        )
    return found


def _json(table: dict[str, Any]) -> str:
    return json.dumps(table, indent=1) + "\n"
