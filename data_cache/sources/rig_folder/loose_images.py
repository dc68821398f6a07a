"""Loose images without a data set: one per camera of a `rig.json`, from files or in memory."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from data_cache.errors import FrameError, SourceError
from data_cache.frames.rig import Frame, Rig, View
from data_cache.frames.undistort import undistorted
from data_cache.sources.rig_folder.rig_json import Calibration, RigDescription, load_image, read_rig

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".ppm", ".tif", ".tiff", ".webp")
SINGLE = "images"
"""Name of the only drive, and id of the frame if there is only one."""

Photograph = Path | np.ndarray
"""An image as taken, before undistortion: a file, or decoded RGB, (H, W, 3) uint8."""


class LooseImages:
    """Images named after their cameras, as frames; see `data_cache.sources.base.Source`.

    Args:
        paths: for each camera a file `CAMERA.jpg` (or .png, ...), or a folder `CAMERA` of images, equally many in each
            and sorted by name, one per frame; or a single folder that holds these files or folders.
        rig_file: the `rig.json` of a rig folder. A camera that it gives only a name has no images.

    Raises:
        SourceError: if the rig cannot be used, an image is missing, or the cameras have different numbers of images.
    """

    name = SINGLE
    splits: Mapping[str, tuple[str, ...]] = {}

    def __init__(self, paths: Sequence[Path], rig_file: Path) -> None:
        self._described = read_rig(rig_file)
        self.rig = Rig(self._described.name, tuple(self._described.cameras))
        wanted = [name for name, camera in self._described.cameras.items() if camera.calibration is not None]
        found = _by_camera(paths, wanted, rig_file)
        counts = {name: len(files) for name, files in found.items()}
        if len(set(counts.values())) != 1:
            listed = ", ".join(f"{name} {count}" for name, count in counts.items())
            raise SourceError(f"{paths[0]}: expected the same number of images for each camera, found {listed}")
        first = found[wanted[0]]
        ids = [SINGLE] if len(first) == 1 else [path.stem for path in first]
        if len(set(ids)) != len(ids):
            raise SourceError(f"{first[0].parent}: expected different image names, found one with two suffixes")
        self._images = {
            frame_id: {name: files[index] for name, files in found.items()} for index, frame_id in enumerate(ids)
        }
        self.drives: Mapping[str, tuple[str, ...]] = {SINGLE: tuple(ids)}

    def frame(self, frame_id: str) -> Frame:
        """One frame; images are read when asked for. Raises FrameError if there is no such frame."""
        if frame_id not in self._images:
            raise FrameError(f"no frame {frame_id!r} among the images; ids look like {next(iter(self._images))}")
        images = self._images[frame_id]
        return frame_of([images.get(name) for name in self.rig.camera_names], self._described, frame_id)

    def files(self, frame_id: str) -> Mapping[str, Path]:
        """See `data_cache.sources.base.StoredSource`."""
        return self._images[frame_id]


def frame_of(images: Sequence[Photograph | None], described: RigDescription, frame_id: str = SINGLE) -> Frame:
    """A frame made of these images, with the vehicle at the origin of the world.

    Args:
        images: one per camera in the order of the rig; None for a missing image.
        described: the rig.
        frame_id: id of the frame.

    Raises:
        FrameError: if there are more or fewer images than cameras, or an image of a camera without calibration.
    """
    names = tuple(described.cameras)
    if len(images) != len(names):
        raise FrameError(
            f"rig {described.name}: expected {len(names)} images, of {', '.join(names)}, found {len(images)};"
            " None stands for a missing one"
        )
    views = tuple(
        _view(name, image, described) if image is not None else None for name, image in zip(names, images, strict=True)
    )
    placed = all(described.cameras[view.camera.name].ego_from_cam is not None for view in views if view is not None)
    return Frame(frame_id, views, world_from_ego=np.eye(4) if placed else None)


def _view(name: str, image: Photograph, described: RigDescription) -> View:
    camera = described.cameras[name]
    calibration = camera.calibration
    if calibration is None:
        raise FrameError(f"rig {described.name}: expected no image of camera {name}, which has no calibration")
    world_from_cam = camera.ego_from_cam if camera.ego_from_cam is not None else np.eye(4)
    if isinstance(image, Path):
        plain = calibration.lens is None
        return View(
            calibration.camera,
            world_from_cam,
            0,
            partial(load_image, image, calibration),
            image if plain else None,
            ego_from_cam=camera.ego_from_cam,
        )
    load = partial(_in_memory, image, calibration)
    return View(calibration.camera, world_from_cam, 0, load, ego_from_cam=camera.ego_from_cam)


def _in_memory(
    rgb: np.ndarray, calibration: Calibration, at_least: tuple[int, int] | None = None
) -> UInt8[np.ndarray, "H W 3"]:
    camera, lens = calibration.camera, calibration.lens
    if rgb.shape != (camera.height_px, camera.width_px, 3) or rgb.dtype != np.uint8:
        raise FrameError(
            f"camera {camera.name}: expected uint8 RGB ({camera.height_px}, {camera.width_px}, 3), found {rgb.dtype}"
            f" {rgb.shape}"
        )
    return rgb if lens is None else undistorted(rgb, lens)


def _by_camera(paths: Sequence[Path], wanted: Sequence[str], rig_file: Path) -> dict[str, list[Path]]:
    """The image files of each camera, at least one each."""
    if not wanted:
        raise SourceError(f"{rig_file}: expected cameras with intrinsics, found only names")
    gone = next((path for path in paths if not path.exists()), None)
    if gone is not None:
        raise SourceError(f"expected an image, or a folder of images, found nothing at {gone}")
    if len(paths) == 1 and paths[0].is_dir():
        files = sorted(path for path in paths[0].iterdir() if path.is_dir() or path.suffix.lower() in SUFFIXES)
    else:
        files = list(paths)
    found: dict[str, list[Path]] = {}
    for name in wanted:
        own = [path for path in files if (path.name if path.is_dir() else path.stem) == name]
        if len(own) != 1:
            listed = ", ".join(path.name for path in own or files[:8]) or "no image"
            raise SourceError(
                f"{paths[0]}: expected one image {name}.jpg (or .png, ...), or one folder {name}, found {listed}; if"
                f" the camera has no images, leave only its name in {rig_file}"
            )
        found[name] = own
        if own[0].is_dir():
            found[name] = sorted(path for path in own[0].iterdir() if path.suffix.lower() in SUFFIXES)
            if not found[name]:
                raise SourceError(f"{own[0]}: expected images, found none")
    return found
