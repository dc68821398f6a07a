"""Depth in metres of one moment of a rig, from a file of `surround export`: numpy, onnxruntime and Pillow alone.

    python depth.py student.onnx --out seen front=1266.4:front.jpg right=1260.8:right.jpg ...

Each camera is given by its name in the file, its focal length fx in pixels of the image, and the image, free of
distortion. A camera that is left out is missing. Writes OUT/CAMERA.npy: float32, H x W of the image, metres along the
optical axis, as `surround predict --write npy` does. On a vehicle, call `open_student` once and `look` at each moment.
"""

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from PIL import Image

FORMAT = "surround-export/1"
THREADS = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class DeployError(Exception):
    """The file, an image or an argument cannot be used here; the message says why."""


@dataclass(frozen=True)
class Student:
    """An exported student, ready to run.

    Attributes:
        session: the graph, in onnxruntime on the CPU.
        cameras: names of the rig's cameras, clockwise from the front: the order of the graph's input.
        size: (H, W) that images are stretched to.
        views_per_call: the cameras that the graph takes at once: all of them, or 1.
    """

    session: onnxruntime.InferenceSession
    cameras: tuple[str, ...]
    size: tuple[int, int]
    views_per_call: int


@dataclass(frozen=True)
class Photo:
    """An image file, and the focal length fx of its camera in pixels of that image."""

    focal_px: float
    path: Path


def open_student(path: Path) -> Student:
    """Load a file of `surround export`; raises DeployError if it is not one, or not for this CPU."""
    session = opened(path, THREADS)
    about = metadata(session)
    if about.get("format") != FORMAT:
        raise DeployError(f"{path}: expected a file of `surround export` ({FORMAT}), found {about.get('format')}")
    require_right_here(about)
    if about["batch"] not in (1, "dynamic"):
        raise DeployError(f"{path}: expected --batch 1 or dynamic, found {about['batch']} rigs per call")
    if about["views_per_call"] == 1:  # as many cameras at a time as there are threads, each on one
        session = opened(path, 1)
    return Student(session, tuple(about["cameras"]), tuple(about["input_size"]), about["views_per_call"])


def opened(path: Path, threads: int) -> onnxruntime.InferenceSession:
    """The graph on the CPU, each call on this many threads."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's errors have no class in common
        raise DeployError(f"{path}: onnxruntime cannot load it: {error}") from error


def metadata(session: onnxruntime.InferenceSession) -> dict[str, Any]:
    """What the file says of itself, by name; docs/EXPORT.md lists the names."""
    prefix = "surround."
    found = session.get_modelmeta().custom_metadata_map
    return {key.removeprefix(prefix): json.loads(value) for key, value in found.items() if key.startswith(prefix)}


def require_right_here(about: Mapping[str, Any]) -> None:
    """Raise DeployError for an int8 file whose metres would be wrong on this CPU, without a word from onnxruntime."""
    target, flags = about.get("int8_target", "cpu"), cpu_flags()
    has_vnni = "avx512_vnni" in flags or "avx_vnni" in flags
    if target != "cpu" and not (target == "cpu-vnni" and has_vnni):
        raise DeployError(
            f"this int8 file is right on {about['int8_right_on']}, which this CPU is not; export with --int8 cpu"
        )


def cpu_flags() -> str:
    """What Linux says of the CPU; empty elsewhere."""
    path = Path("/proc/cpuinfo")
    return path.read_text() if path.is_file() else ""


def look(student: Student, photos: Mapping[str, Photo]) -> dict[str, np.ndarray]:
    """Depth of each image: float32 metres (H, W), at the size of the image, by the name of its camera."""
    unknown = sorted(photos.keys() - set(student.cameras))
    if unknown or not photos:
        found = f"no camera {unknown[0]}" if unknown else "no image"
        raise DeployError(f"expected cameras of {', '.join(student.cameras)}, found {found}")
    with ThreadPoolExecutor(THREADS) as pool:
        stretches = pool.map(lambda photo: stretched(photo.path, student.size), photos.values())
        seen = dict(zip(photos, stretches, strict=True))
        image = np.zeros((1, len(student.cameras), 3, *student.size), np.uint8)
        focal_px = np.zeros((1, len(student.cameras)), np.float32)  # 0: the camera is missing
        for i, name in enumerate(student.cameras):
            if name in seen:
                rgb, (_, native_width) = seen[name]
                image[0, i] = rgb.transpose(2, 0, 1)
                focal_px[0, i] = photos[name].focal_px * (student.size[1] / native_width)
        depth_m = run(student, image, focal_px, pool)[0]
        sizes = [seen[name][1] for name in photos]
        maps = [depth_m[student.cameras.index(name)] for name in photos]
        return dict(zip(photos, pool.map(at_image_size, maps, sizes), strict=True))


def stretched(path: Path, size: tuple[int, int]) -> tuple[np.ndarray, tuple[int, int]]:
    """An image as the student was trained to see it, RGB (H, W, 3) uint8 of `size`; and its own (H, W).

    A JPEG is decoded at the smallest of 1, 1/2, 1/4, 1/8 that is no smaller than `size`; then comes an antialiased
    bicubic filter. The aspect ratio is not kept.
    """
    try:
        with Image.open(path) as image:
            native = image.height, image.width
            image.draft("RGB", (size[1], size[0]))
            rgb = image.convert("RGB").resize((size[1], size[0]), Image.Resampling.BICUBIC)
    except Exception as error:  # a damaged image can fail in any way
        raise DeployError(f"{path}: cannot be read as an image: {error}") from error
    return np.asarray(rgb), native


def run(student: Student, image: np.ndarray, focal_px: np.ndarray, pool: ThreadPoolExecutor) -> np.ndarray:
    """The graph: uint8 [1, V, 3, H, W] and float32 [1, V] in, float32 metres [1, V, H, W] out."""

    def call(views: slice) -> np.ndarray:
        feeds = {"image": np.ascontiguousarray(image[:, views]), "focal_px": np.ascontiguousarray(focal_px[:, views])}
        depth_m: np.ndarray = student.session.run(["depth_m"], feeds)[0]
        return depth_m

    step = student.views_per_call
    return np.concatenate([*pool.map(call, (slice(i, i + step) for i in range(0, image.shape[1], step)))], axis=1)


def at_image_size(depth_m: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Depth resized to (H, W) `size`: bilinear between pixel centres at half-integers, without antialiasing."""
    height, width = depth_m.shape
    scale = (width / size[1], 0.0, 0.0, 0.0, height / size[0], 0.0)
    image = Image.fromarray(np.ascontiguousarray(depth_m))
    return np.asarray(image.transform((size[1], size[0]), Image.Transform.AFFINE, scale, Image.Resampling.BILINEAR))


def parsed_photo(text: str) -> tuple[str, Photo]:
    """NAME=FX:FILE."""
    name, _, rest = text.partition("=")
    focal, _, path = rest.partition(":")
    try:
        focal_px = float(focal)
    except ValueError:
        focal_px = 0.0
    if not (name and path and 0 < focal_px < float("inf")):
        raise DeployError(f"expected NAME=FX:FILE, such as front=1266.4:front.jpg, found {text!r}")
    return name, Photo(focal_px, Path(path))


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Depth in metres from a file of `surround export`.")
    parser.add_argument("student", type=Path, help="the ONNX file")
    parser.add_argument("photos", nargs="+", metavar="NAME=FX:FILE", help="camera, focal length in pixels, image")
    parser.add_argument("--out", type=Path, required=True, help="folder for OUT/CAMERA.npy")
    parser.add_argument("--repeat", type=int, default=1, metavar="N", help="look N times; prints the median time")
    given = parser.parse_args(arguments)
    try:
        photos = dict(map(parsed_photo, given.photos))
        if len(photos) < len(given.photos):
            raise DeployError("expected each camera once")
        student = open_student(given.student)
        print("ready", flush=True)
        times_s = []
        for _ in range(max(1, given.repeat)):
            begin = time.perf_counter()
            depths_m = look(student, photos)
            times_s.append(time.perf_counter() - begin)
        given.out.mkdir(parents=True, exist_ok=True)
        for name, depth_m in depths_m.items():
            np.save(given.out / f"{name}.npy", depth_m)
    except (DeployError, OSError) as error:
        sys.exit(f"Error: {error}")
    median_ms = 1e3 * statistics.median(times_s)
    print(f"depth of {len(depths_m)} image{'s' * (len(depths_m) > 1)} in {median_ms:.1f} ms: {given.out}")


if __name__ == "__main__":
    main()
