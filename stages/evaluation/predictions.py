"""Saved depth maps, ours or those of others: one file per image, 16-bit PNG as in KITTI, or NumPy."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import numpy as np
from jaxtyping import Float, UInt16
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from data_cache.errors import FrameError, SourceError
from data_cache.files import open_regular, replace_atomically
from data_cache.frames.images import BYTE_LIMIT, opened
from data_cache.frames.rig import Frame
from data_cache.sources.base import Source
from data_cache.sources.parsing.npy import NpyError, read_data, read_header

PNG_STEPS_PER_M = 256
PNG_FAR_M = 65535 / PNG_STEPS_PER_M
"""Largest depth in a PNG, 255.996 m; greater depths are saved as this."""
SIGMA_STEPS = 10_000
"""Steps of a PNG of sigma per unit of log depth."""
SUFFIXES = {"png16": ".png", "npy": ".npy"}


class PredictionError(SourceError):
    """A folder of predictions is incomplete, or a file in it is not a depth map of its image."""


@dataclass(frozen=True)
class PredictionFolder:
    """A folder with a prediction for every image to be measured; the files are known to exist.

    Attributes:
        root: folder that holds `CAMERA/FRAME ID.png` or `.npy`.
        size: (H, W) of the network that made them; files have this size or that of the image.
    """

    root: Path
    size: tuple[int, int]


def open_predictions(root: Path, source: Source, frame_ids: Sequence[str], size: tuple[int, int]) -> PredictionFolder:
    """Check that each image of the frames has a file; the content is checked when it is read.

    Raises:
        PredictionError: naming the folder, the number of missing files and the first of them.
    """
    if not root.is_dir():
        raise PredictionError(
            f"expected a folder of predictions, found {'a file' if root.exists() else 'nothing'} at {root}; it is"
            " RUN/eval/predictions of a run with eval.save_predictions, or holds CAMERA/FRAME ID.png or .npy"
        )
    wanted = missing = 0
    first = ""
    for frame_id in frame_ids:
        try:
            views = source.frame(frame_id).views
        except FrameError:  # evaluation leaves this frame out
            continue
        for view in views:
            if view is not None:
                wanted += 1
                if not any(path.is_file() for path in _candidates(root, view.camera.name, frame_id)):
                    missing += 1
                    first = first or str(prediction_file(root, view.camera.name, frame_id, ".png"))
    if missing:
        raise PredictionError(
            f"{missing} of {wanted} predictions are missing in {root}; the first is {first} (or .npy):"
            " CAMERA/FRAME ID, as `eval.save_predictions` names them"
        )
    return PredictionFolder(root, size)


def prediction_file(root: Path, camera: str, frame_id: str, suffix: str) -> Path:
    """CAMERA/FRAME ID below a folder; a slash in the id makes a sub-folder, unusual characters are percent-encoded."""
    return frame_file(root / _safe(camera), frame_id, suffix)


def frame_file(root: Path, frame_id: str, suffix: str) -> Path:
    """FRAME ID below a folder, with the rules of `prediction_file`."""
    return root.joinpath(*map(_safe, f"{frame_id}{suffix}".split("/")))


def save_prediction(path: Path, depth_m: Float[np.ndarray, "H W"]) -> None:
    """Write a depth map in one step: as `png_steps` if the name ends in .png, else as float32 metres.

    Raises WriteError.
    """

    def write(partial: Path) -> None:
        with partial.open("wb") as stream:
            if path.suffix == ".png":
                image = Image.fromarray(png_steps(depth_m))
                # At full image size 6 to 12 times as fast as the default level, for a quarter more bytes.
                image.save(stream, "PNG", compress_level=1)
            else:
                np.save(stream, depth_m.astype(np.float32))

    replace_atomically(path, write)


def save_sigma(path: Path, sigma: Float[np.ndarray, "H W"], calibration: str) -> None:
    """Write a standard deviation of log depth as a 16-bit PNG in steps of 1 / SIGMA_STEPS, in one step.

    Args:
        path: of the file.
        sigma: larger values than 6.5535 are saved as this.
        calibration: what it was calibrated on, or that it was not; kept in the file as the text `calibration`.

    Raises WriteError.
    """
    steps = np.round(sigma * np.float32(SIGMA_STEPS)).clip(0, 65535).astype(np.uint16)
    text = PngInfo()
    text.add_text("calibration", calibration)

    def write(partial: Path) -> None:
        with partial.open("wb") as stream:
            Image.fromarray(steps).save(stream, "PNG", compress_level=1, pnginfo=text)

    replace_atomically(path, write)


def png_steps(depth_m: Float[np.ndarray, "H W"]) -> UInt16[np.ndarray, "H W"]:
    """Depth in 1/256 m, rounded and clipped to [1/256 m, PNG_FAR_M]; 0 (no depth) stays 0."""
    steps = np.round(depth_m * np.float32(PNG_STEPS_PER_M)).clip(1, 65535)
    return np.where(depth_m > 0, steps, 0).astype(np.uint16)


def read_rig(folder: PredictionFolder, frame: Frame) -> tuple[Float[np.ndarray, "_ _"] | None, ...]:
    """Read the depth of every view of a frame in metres, 0 = none; None where the camera is missing.

    Raises:
        PredictionError: if a file is missing, exists in both formats, or is not a depth map of its image.
    """
    return tuple(
        read_prediction(
            _one(folder.root, view.camera.name, frame.id), folder.size, (view.camera.height_px, view.camera.width_px)
        )
        if view is not None
        else None
        for view in frame.views
    )


def read_prediction(path: Path, *sizes: tuple[int, int]) -> Float[np.ndarray, "H W"]:
    """Read a depth map in metres, 0 = none.

    Args:
        path: a 16-bit grey PNG in 1/256 m, or an .npy file of floats in metres.
        sizes: allowed (H, W).

    Raises:
        PredictionError: if it is damaged, of another kind or size, or holds values that are not finite or negative.
    """
    try:
        depth_m = (_read_png if path.suffix == ".png" else _read_npy)(path, sizes)
    except (OSError, FrameError, NpyError) as error:
        raise PredictionError(f"{path}: cannot be read as a depth map: {error}; write it again") from error
    if not np.isfinite(depth_m).all() or (depth_m < 0).any():
        bad = int((~np.isfinite(depth_m) | (depth_m < 0)).sum())
        raise PredictionError(
            f"{path}: expected finite depths >= 0 in metres, found {bad} pixels that are not; 0 stands for no depth"
        )
    return depth_m


def _require_size(path: Path, shape: tuple[int, ...], sizes: Sequence[tuple[int, int]]) -> None:
    if shape not in sizes:
        wanted = " or ".join(f"{height} x {width}" for height, width in dict.fromkeys(sizes))
        raise PredictionError(
            f"{path}: expected a depth map of {wanted} (h x w), found {' x '.join(map(str, shape))};"
            " student.input_size is the size of the network"
        )


# Both formats check the header first: a depth map of another size is neither decoded nor allocated.
def _read_png(path: Path, sizes: Sequence[tuple[int, int]]) -> Float[np.ndarray, "H W"]:
    with opened(path) as image:
        if image.format != "PNG" or not image.mode.startswith("I"):
            raise PredictionError(
                f"{path}: expected a 16-bit grey PNG (metres x {PNG_STEPS_PER_M}), found {image.format}, mode"
                f" {image.mode}"
            )
        _require_size(path, (image.height, image.width), sizes)
        return np.asarray(image).astype(np.float32) / PNG_STEPS_PER_M


def _read_npy(path: Path, sizes: Sequence[tuple[int, int]]) -> Float[np.ndarray, "H W"]:
    with open_regular(path, BYTE_LIMIT, "file") as stream:
        header = read_header(stream)
        if header.dtype.kind != "f" or len(header.shape) != 2:
            raise PredictionError(
                f"{path}: expected a 2-D array of floats, metres, found {header.dtype} {header.shape}"
            )
        _require_size(path, header.shape, sizes)
        values = read_data(stream, header, BYTE_LIMIT)
    with np.errstate(over="ignore", invalid="ignore"):  # values beyond float32 are refused later as not finite
        return values.astype(np.float32)


def _one(root: Path, camera: str, frame_id: str) -> Path:
    found = [path for path in _candidates(root, camera, frame_id) if path.is_file()]
    if len(found) != 1:
        names = " and ".join(map(str, found)) if found else f"none of {_candidates(root, camera, frame_id)[0]}, .npy"
        raise PredictionError(f"expected one prediction of {camera} in frame {frame_id}, found {names}")
    return found[0]


def _candidates(root: Path, camera: str, frame_id: str) -> list[Path]:
    return [prediction_file(root, camera, frame_id, suffix) for suffix in SUFFIXES.values()]


def _safe(name: str) -> str:
    """A path component for a name, safe on disk and different for different names."""
    return "%2E" * len(name) if name in (".", "..") else quote(name, safe="") or "%"
