"""The checks of `surround doctor`. Nothing is downloaded, trained or cached."""

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw

from data_cache.errors import SourceError, SurroundError
from data_cache.files import replace_atomically
from data_cache.frames.geometry import sparse_depth
from data_cache.frames.rig import Frame
from data_cache.sources.base import StoredSource
from data_cache.sources.selectors import spread
from pipeline.doctor import findings
from pipeline.doctor.findings import Finding
from pipeline.doctor.machine import check_devices, check_load, check_loaders, check_room, check_scheduler
from pipeline.recipe.config import Recipe
from pipeline.recipe.run_folder import RunFolder, cache_location
from pipeline.report.drawing import draw_points, panorama_order
from pipeline.runs import cluster
from pipeline.runs.splits import frames_to_learn, frames_to_test, open_data, refuse_leak
from pipeline.runs.stage_one import find_teacher_weights, open_teacher, with_begun_runtime
from pipeline.weights.fetch import find_weights
from stages.checkup.alignment import LEAST_INPUT_PX, check_alignment
from stages.checkup.readable import ReadSample, has_sweep, missing_files, read_sample
from stages.checkup.ring import check_ring
from stages.compute.progress import progress_bar
from stages.compute.resize import resize_rgb
from stages.inference.colours import depth_scale
from stages.student.encoder import ENCODERS
from stages.teacher.load import LoadedTeacher

SAMPLE_FRAMES = 6
CALIBRATION_FRAMES = 3
PANEL_WIDTH_PX = 640
PANELS_PER_ROW = 3
_EXAMPLE = "for one run pass --data DIR or --set 'data.train=[...]'"


def run_doctor(recipe: Recipe, folder: RunFolder, *, scheduler: str = "threads") -> tuple[Finding, ...]:
    """Run every check; one that cannot run says why, and the others still run.

    A few frames are read and shown to the teacher. Only RUN/doctor/lidar_on_images.png is written.

    Raises:
        SettingError: if `scheduler` is neither a known name nor an address.
    """
    if scheduler not in cluster.SCHEDULERS:
        cluster.require_address(scheduler)
    load = check_load()  # before this command adds to it
    with progress_bar(3, 0, "doctor", "part") as bar:
        for warning in load:
            if warning.level != "ok":  # told at once: it may be why the rest takes long
                bar.write(findings.findings_text([warning]), file=sys.stderr)
        around = [*check_encoder(recipe), *check_devices(recipe), *load, *check_scheduler(recipe, scheduler)]
        bar.update()
        bar.set_postfix_str("teacher")
        teacher, found = check_teacher(with_begun_runtime(recipe, cache_location(recipe, folder)))
        bar.update()
        bar.set_postfix_str("data")
        found += check_data(recipe, folder, teacher)
        bar.update()
    return (*found, *around)


def check_data(recipe: Recipe, folder: RunFolder, teacher: LoadedTeacher | None) -> list[Finding]:
    """Check the data set, and everything that needs it."""
    spec = recipe.data
    try:
        source = open_data(spec)
        learnt = frames_to_learn(spec, source)
    except SourceError as error:
        return [Finding("data", "problem", str(error), f"correct [data] of the recipe; {_EXAMPLE}")]
    found = []
    tested: tuple[str, ...] = ()
    try:
        tested = frames_to_test(recipe, source)
        refuse_leak(learnt, tested)
        found.append(
            Finding(
                "data",
                "ok",
                f"{source.name}: {len(learnt.train):,} frames to train on, {len(learnt.selection):,} to select on,"
                f" {len(tested):,} to test on",
            )
        )
    except SurroundError as error:
        found.append(Finding("data", "problem", str(error), f"change data.test; {_EXAMPLE}"))
    frame_ids = tuple(dict.fromkeys((*learnt.ordered, *tested)))
    if isinstance(source, StoredSource):
        found.append(findings.files_finding(missing_files(source, frame_ids)))
    found += check_loaders(recipe, source.rig.view_count)
    sample = read_sample(source, spread(frame_ids, SAMPLE_FRAMES), recipe.teacher_cache.input_size)
    found.append(findings.sample_finding(sample))
    if not sample.frames:
        return found
    names = source.rig.camera_names
    shown = next((frame for frame in sample.frames if frame.lidar_depth.any()), sample.frames[0])
    frame = source.frame(max(sample.frames, key=lambda frame: int(frame.view_valid.sum())).id)
    if has_sweep(source, learnt.train):
        found.append(findings.lidar_finding(names, sample))
    else:
        found.append(findings.no_sweep_finding(source.name, len(learnt.train), recipe.losses.supervised > 0))
    found += check_calibration(names, teacher, sample)
    found += findings.ring_findings(check_ring(frame), names)
    found.append(check_picture(source.frame(shown.id), folder.doctor / "lidar_on_images.png", spec.depth_range_m))
    if teacher is not None:
        found += check_room(recipe, folder, source, learnt, teacher, shown.id)
    return found


def check_teacher(recipe: Recipe) -> tuple[LoadedTeacher | None, list[Finding]]:
    """Load the teacher, if its weights are on this machine, and check them."""
    name = recipe.teacher_cache.weights
    try:
        weights = find_teacher_weights(name)
        if weights is None:
            return None, [findings.weights_finding("teacher", name, None)]
        teacher = open_teacher(recipe)
        present = findings.weights_finding("teacher", name, (str(weights.path), weights.licence))
        return teacher, [replace(present, found=f"{present.found}; {teacher.precision} in {teacher.runtime}")]
    except SurroundError as error:
        remedy = "correct teacher_cache.weights, input_size, device or runtime"
        return None, [Finding("teacher", "problem", str(error), remedy)]


def check_encoder(recipe: Recipe) -> list[Finding]:
    """Check the weights that the student starts from."""
    name = ENCODERS[recipe.student.encoder].weights
    if not recipe.student.pretrained or name is None:
        return []
    weights = find_weights(name)
    return [findings.weights_finding("encoder", name, (str(weights.path), weights.licence) if weights else None)]


def check_calibration(
    camera_names: Sequence[str], teacher: LoadedTeacher | None, sample: ReadSample
) -> tuple[Finding, ...]:
    """Check that LiDAR and the teacher's depth agree best with the calibration as it is."""
    frames = [frame for frame in sample.frames if frame.lidar_depth.any()][:CALIBRATION_FRAMES]
    if teacher is None:
        return (Finding("calibration", "warning", "not checked: it needs the teacher", "see teacher"),)
    if not frames:
        return (Finding("calibration", "warning", "not checked: no frame with LiDAR was read", "see lidar"),)
    if (height := teacher.input_size[0]) < LEAST_INPUT_PX:
        found = f"not checked: the teacher sees images {height} px high, the thresholds need {LEAST_INPUT_PX} or more"
        return (Finding("calibration", "warning", found, "look at lidar_on_images.png"),)
    return findings.calibration_findings(camera_names, check_alignment(teacher, frames))


def check_picture(frame: Frame, path: Path, range_m: tuple[float, float]) -> Finding:
    """Draw a frame's LiDAR on its images, for people to look at."""
    try:
        picture = Image.fromarray(lidar_on_images(frame, range_m))
        replace_atomically(path, lambda partial: picture.save(partial, "PNG"))
    except SurroundError as error:
        return Finding("picture", "problem", str(error), "choose another run folder with --run")
    return Finding("picture", "ok", f"LiDAR on the images of {frame.id}: {path}; edges should coincide")


def lidar_on_images(frame: Frame, range_m: tuple[float, float]) -> UInt8[np.ndarray, "H W 3"]:
    """Draw LiDAR, coloured by depth, on the darkened images, in ring order from left to right, front in the middle.

    Raises:
        FrameError: if an image or the sweep cannot be read.
    """
    sweep = frame.load_sweep() if frame.load_sweep is not None else None
    panels: list[Image.Image] = []
    for i in panorama_order(len(frame.views)):
        view = frame.views[i]
        if view is None:
            continue
        size = (round(PANEL_WIDTH_PX * view.camera.height_px / view.camera.width_px), PANEL_WIDTH_PX)
        rgb = resize_rgb(view.load_image(at_least=size), size)
        depth_m = sparse_depth(view, sweep, size) if sweep is not None else np.zeros(size, np.float32)
        panel = Image.fromarray(draw_points(rgb, depth_m, depth_scale(range_m)))
        ImageDraw.Draw(panel).text((6, 4), view.camera.name, fill="white")
        panels.append(panel)
    height = max(panel.height for panel in panels)
    rows = -(-len(panels) // PANELS_PER_ROW)
    page = Image.new("RGB", (PANEL_WIDTH_PX * min(PANELS_PER_ROW, len(panels)), height * rows))
    for place, panel in enumerate(panels):
        page.paste(panel, (PANEL_WIDTH_PX * (place % PANELS_PER_ROW), height * (place // PANELS_PER_ROW)))
    return np.asarray(page)
