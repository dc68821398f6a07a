"""The teacher's metres in training frames without LiDAR, fitted once per cache and choice of LiDAR drives."""

import hashlib
import json
import secrets
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from data_cache.dataset import AT_MOST_APART, MAX_MOVED_M, MIN_MOVED_M, CachedFrames, collate
from data_cache.errors import SurroundWarning
from data_cache.files import write_error
from data_cache.shards.reader import CacheReader
from stages.compute.parallel import leads
from stages.compute.preemption import Preempted
from stages.compute.progress import progress_bar
from stages.targets import motion_fit
from stages.targets.binning import Binning, stored_binning
from stages.targets.bins import decode
from stages.targets.lidar_fit import LidarFit, fit_disparity
from stages.targets.lidar_frame import teacher_disparity
from stages.targets.motion_fit import fit_to_motion, usual_nearest
from stages.targets.spec import BinSpec

DEFINITION = f"{motion_fit.DEFINITION}; {MIN_MOVED_M:g} to {MAX_MOVED_M:g} m apart, within {AT_MOST_APART} frames"
"""Part of what tells fits apart."""
PRIOR_FRAMES = 48
"""At most so many frames with LiDAR say how near the nearest surface usually is."""
FEW_PLACED = 0.5
"""A camera of which a smaller share of images is placed is warned of."""


def motion_fits(
    reader: CacheReader,
    bins: BinSpec,
    depth_range_m: tuple[float, float],
    lidar_ids: frozenset[str],
    folder: Path,
    should_stop: Callable[[], bool],
    *,
    everywhere: bool = False,
) -> Mapping[str, Tensor]:
    """Scale and shift (V 2) of each training frame outside `lidar_ids`; `everywhere`, of those in it as well.

    Processes that ask for the same share the work: each begins at another frame and looks at the file before it takes
    one.

    Args:
        reader: the cache.
        bins: those of the student, which read the teacher's probabilities.
        depth_range_m: LiDAR depths outside are ignored.
        lidar_ids: frames with LiDAR; they say how near the nearest surface usually is.
        folder: on a disk that all processes share; holds a file for each cache and choice of frames. What is in it is
            not computed again.
        should_stop: asked before each frame.
        everywhere: whether frames with LiDAR are fitted, too: to learn how wrong the fits are.

    Returns:
        In 1 / m by frame, see `LidarFit`; scale 0 for a view that motion does not place. Empty if no frame with LiDAR
        can be read. A camera is warned of if less than half of its images without LiDAR are placed.

    Raises:
        Preempted: if `should_stop` returns True; the frames that are done are kept.
        WriteError: if the file cannot be written.
        DamagedCacheError: if the cache is damaged.
    """
    usable = reader.usable(tuple(reader.frames.train))
    key = json.dumps([DEFINITION, reader.identity.sha256, usable, sorted(lidar_ids), depth_range_m])
    path = folder / f"{hashlib.sha256(key.encode()).hexdigest()[:16]}.jsonl"
    asked = [frame_id for frame_id in usable if everywhere or frame_id not in lidar_ids]
    labelled = [i for i, frame_id in enumerate(usable) if frame_id in lidar_ids]
    found = _kept(path)
    if labelled and not found.keys() >= set(asked):
        frames, binning = CachedFrames(reader, usable), stored_binning(bins, reader.identity.bin_knots)
        chosen = labelled[:: -(-len(labelled) // PRIOR_FRAMES)]
        nearest = usual_nearest([fitted_to_lidar(frames, i, bins, binning, depth_range_m)[2] for i in chosen])
        positions = {frame_id: i for i, frame_id in enumerate(usable)}

        def fit(frame_id: str) -> Float[Tensor, "V 2"]:
            i = positions[frame_id]
            disparity, _, _ = fitted_to_lidar(frames, i, bins, binning, depth_range_m)
            return fit_to_motion(disparity[0], frames.moments(i), nearest)

        look = True
        while missing := [frame_id for frame_id in asked if frame_id not in found]:
            _add(path, missing, fit, should_stop, look=look)
            found, look = _kept(path), False  # what is still missing stands in lines that got mixed up
    fits = {frame_id: found[frame_id] for frame_id in asked if frame_id in found}
    if leads():
        _warn_of_few(reader, {frame_id: fit for frame_id, fit in fits.items() if frame_id not in lidar_ids})
    return fits


def _add(
    path: Path,
    missing: Sequence[str],
    fit: Callable[[str], Float[Tensor, "V 2"]],
    should_stop: Callable[[], bool],
    *,
    look: bool,
) -> None:
    """Fit frames, beginning anywhere among them, and add a line for each; if `look`, for each that has none by then."""
    first = secrets.randbelow(len(missing))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file, progress_bar(len(missing), 0, "motion", "frame") as bar:
            file.write("\n")  # ends a line that was cut off
            for frame_id in (*missing[first:], *missing[:first]):
                if should_stop():
                    raise Preempted(f"stopped while frames without LiDAR were fitted; {path} keeps those that are done")
                end_of_line = f'"frame": {json.dumps(frame_id)}}}\n'
                if not look or end_of_line not in path.read_text(encoding="utf-8"):
                    file.write(f'{{"fit": {json.dumps(fit(frame_id).tolist())}, {end_of_line}')
                    file.flush()  # a whole line at a time, so that lines of several processes do not mix
                bar.update()
    except OSError as error:
        raise write_error(error, path) from error


def _warn_of_few(reader: CacheReader, fits: Mapping[str, Tensor]) -> None:
    """Warn of cameras of which less than half of the images have metres."""
    if not fits:
        return
    placed = (torch.stack(list(fits.values()))[..., 0] > 0).numpy()
    if (placed.mean(0) >= FEW_PLACED).all():
        return
    valid = np.stack([reader.read_cameras(frame_id).view_valid for frame_id in fits])
    counts = zip(reader.identity.camera_names, placed.sum(0), valid.sum(0), strict=True)
    few = [f"{name} ({n} of {there} images)" for name, n, there in counts if n < FEW_PLACED * there]
    if few:
        warnings.warn(
            f"frames without LiDAR have metres in few images of {', '.join(few)}: motion places the teacher where a"
            " camera's frames before and after, or its ring neighbours, see the same, and where LiDAR of some other"
            " frame falls into that camera; are poses in metres, and frames at most 15 m apart?",
            SurroundWarning,
            stacklevel=3,
        )


def fitted_to_lidar(
    frames: CachedFrames, i: int, bins: BinSpec, binning: Binning, depth_range_m: tuple[float, float]
) -> tuple[Float[Tensor, "1 V H W"], Float[Tensor, "1 V H W"], LidarFit]:
    """The teacher's disparity of a frame at the size of its images, LiDAR in range (metres, 0 = none), and its fit."""
    rigs = collate([frames[i]])
    near_m, far_m = depth_range_m
    in_range = (rigs.lidar_depth_m > near_m) & (rigs.lidar_depth_m < far_m)
    lidar_depth_m = torch.where(in_range, rigs.lidar_depth_m, 0.0)
    disparity = teacher_disparity(decode(rigs.bins, bins), lidar_depth_m, binning)
    return disparity, lidar_depth_m, fit_disparity(disparity, lidar_depth_m)


def _kept(path: Path) -> dict[str, Tensor]:
    """The fits of a file; lines that were cut off or mixed up are left out."""
    found = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            entry = json.loads(line)
            found[str(entry["frame"])] = torch.tensor(entry["fit"])
        except (ValueError, KeyError, TypeError):
            continue
    return found
