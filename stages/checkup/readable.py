"""Do the files exist, and can frames be read?"""

from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from data_cache.errors import FrameError
from data_cache.sources.base import Source, StoredSource
from stages.caching.teacher_input import PreparedFrame, prepare_frame


@dataclass(frozen=True)
class MissingFiles:
    """Files that the metadata names but that do not exist.

    Attributes:
        by_sensor: (missing, named) file counts by sensor, for sensors with missing files.
        frames, complete: frames checked, and frames without missing files.
        empty_drives: drives without a single file, in order.
        example: one missing file.
    """

    by_sensor: Mapping[str, tuple[int, int]]
    frames: int
    complete: int
    empty_drives: tuple[str, ...] = ()
    example: Path | None = None


def missing_files(source: StoredSource, frame_ids: Iterable[str]) -> MissingFiles:
    """Find missing files of frames; folders are listed once, no file is opened."""

    @cache
    def names_in(folder: Path) -> frozenset[str]:
        return frozenset(path.name for path in folder.iterdir()) if folder.is_dir() else frozenset()

    drive_of = {frame_id: drive for drive, frame_ids in source.drives.items() for frame_id in frame_ids}
    named: dict[str, int] = {}
    missing: dict[str, int] = {}
    there: dict[str, int] = {}
    frames = complete = 0
    example = None
    for frame_id in frame_ids:
        files = source.files(frame_id)
        lost = {sensor for sensor, path in files.items() if path.name not in names_in(path.parent)}
        for sensor in files:
            named[sensor] = named.get(sensor, 0) + 1
        for sensor in lost:
            missing[sensor] = missing.get(sensor, 0) + 1
            example = example or files[sensor]
        frames, complete = frames + 1, complete + (not lost)
        drive = drive_of[frame_id]
        there[drive] = there.get(drive, 0) + len(files) - len(lost)
    return MissingFiles(
        {sensor: (count, named[sensor]) for sensor, count in sorted(missing.items())},
        frames,
        complete,
        tuple(drive for drive, count in there.items() if not count),
        example,
    )


def has_sweep(source: Source, frame_ids: Iterable[str]) -> bool:
    """Whether any of these frames has a LiDAR sweep, according to the metadata alone."""
    for frame_id in frame_ids:
        with suppress(FrameError):
            if source.frame(frame_id).load_sweep is not None:
                return True
    return False


@dataclass(frozen=True, eq=False)
class ReadSample:
    """Sample frames as stage one reads them, at the size of calibration checks; `refused` has errors by frame id."""

    frames: tuple[PreparedFrame, ...]
    refused: Mapping[str, str]

    def points(self, view: int) -> int | None:
        """Median number of pixels of a view with a LiDAR return; None if no frame has both the view and a sweep."""
        counts = [
            int((f.lidar_depth[view] > 0).sum()) for f in self.frames if f.view_valid[view] and f.lidar_depth.any()
        ]
        return int(np.median(counts)) if counts else None


def read_sample(source: Source, frame_ids: Iterable[str], teacher_size: tuple[int, int]) -> ReadSample:
    """Read frames, with LiDAR at half the teacher's input size."""
    frames, refused = [], {}
    for frame_id in frame_ids:
        try:
            frames.append(prepare_frame(source, frame_id, teacher_size, (teacher_size[0] // 2, teacher_size[1] // 2)))
        except FrameError as error:
            refused[frame_id] = str(error)
    return ReadSample(tuple(frames), refused)
