"""What stands in the way of a recipe, looked for before hours are spent. Nothing is downloaded, trained or cached."""

import importlib.util
import os
import resource
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image, ImageDraw

from data_cache.errors import SettingError, SourceError, SurroundError
from data_cache.files import replace_atomically, size_text
from data_cache.frames.geometry import sparse_depth
from data_cache.frames.rig import Frame
from data_cache.shards.identity import SplitFrames
from data_cache.sources.base import Source, StoredSource
from data_cache.sources.selectors import spread
from data_cache.storage.locations import open_store
from pipeline.doctor import findings
from pipeline.doctor.findings import Finding
from pipeline.recipe.config import Recipe
from pipeline.recipe.run_folder import RunFolder, cache_location
from pipeline.report.drawing import draw_points, panorama_order
from pipeline.runs import cluster
from pipeline.runs.data import frames_to_learn, frames_to_test, open_data, refuse_leak
from pipeline.runs.stage_one import StageOne, find_teacher_weights, open_teacher, with_begun_runtime
from pipeline.weights.fetch import find_weights
from stages.caching.size import predict_size, sample_frames
from stages.checkup.alignment import LEAST_INPUT_PX, check_alignment
from stages.checkup.files import ReadSample, has_sweep, missing_files, read_sample
from stages.checkup.ring import check_ring
from stages.compute.devices import resolve_device, resolve_precision
from stages.compute.resize import resize_rgb
from stages.inference.colours import depth_scale
from stages.student.encoder import ENCODERS
from stages.student.model import Student
from stages.targets.binning import AffineBinning
from stages.teacher.load import LoadedTeacher

SAMPLE_FRAMES = 6
CALIBRATION_FRAMES = 3
PANEL_WIDTH_PX = 640
PANELS_PER_ROW = 3
STATE_BYTES = 16
"""Of a saved state for each parameter: weight, two moments of AdamW and the average, in fp32."""
SHARDS_IN_MEMORY = 3
BATCHES_AHEAD = 2
TENSORS_PER_BATCH = 20
FILES_OF_A_PROCESS = 200
SHARED_MEMORY = Path("/dev/shm")
_EXAMPLE = "--data DIR and --set 'data.train=[...]' do it for one run"


def run_doctor(recipe: Recipe, folder: RunFolder, *, scheduler: str = "threads") -> tuple[Finding, ...]:
    """Every check; what cannot be checked says why, and the others still run.

    A few frames are read and shown to the teacher. RUN/doctor/lidar_on_images.png is all that is written.

    Raises:
        SettingError: if `scheduler` is no scheduler that there could be.
    """
    if scheduler not in cluster.SCHEDULERS:
        cluster.require_address(scheduler)
    teacher, found = check_teacher(with_begun_runtime(recipe, cache_location(recipe, folder)))
    found += check_data(recipe, folder, teacher)
    found += check_encoder(recipe)
    found += check_devices(recipe)
    found += check_scheduler(recipe, scheduler)
    return tuple(found)


def check_data(recipe: Recipe, folder: RunFolder, teacher: LoadedTeacher | None) -> list[Finding]:
    """The data set, and all that needs it."""
    spec = recipe.data
    try:
        source = open_data(spec)
        learnt = frames_to_learn(spec, source)
    except SourceError as error:
        return [Finding("data", "problem", str(error), f"make [data] of the recipe and the folder fit; {_EXAMPLE}")]
    found = []
    tested: tuple[str, ...] = ()
    try:
        tested = frames_to_test(recipe, source)
        refuse_leak(learnt, tested)
        found.append(
            Finding(
                "data",
                "ok",
                f"{source.name}: {len(learnt.train):,} frames to learn from, {len(learnt.selection):,} to choose on,"
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
    """The teacher if its weights are here, and what is to be said about them."""
    name = recipe.teacher_cache.weights
    try:
        weights = find_teacher_weights(name)
        if weights is None:
            return None, [findings.weights_finding("teacher", name, None)]
        teacher = open_teacher(recipe)
        present = findings.weights_finding("teacher", name, (str(weights.path), weights.licence))
        return teacher, [replace(present, found=f"{present.found}; {teacher.precision} in {teacher.runtime}")]
    except SurroundError as error:
        remedy = "set teacher_cache.weights, input_size, device or runtime anew"
        return None, [Finding("teacher", "problem", str(error), remedy)]


def check_encoder(recipe: Recipe) -> list[Finding]:
    """The weights that the student starts from."""
    name = ENCODERS[recipe.student.encoder].weights
    if not recipe.student.pretrained or name is None:
        return []
    weights = find_weights(name)
    return [findings.weights_finding("encoder", name, (str(weights.path), weights.licence) if weights else None)]


def check_calibration(
    camera_names: Sequence[str], teacher: LoadedTeacher | None, sample: ReadSample
) -> tuple[Finding, ...]:
    """Whether LiDAR and the teacher's depth fit best with the calibration as it is."""
    frames = [frame for frame in sample.frames if frame.lidar_depth.any()][:CALIBRATION_FRAMES]
    if teacher is None:
        return (Finding("calibration", "warning", "not checked: it needs the teacher", "see teacher"),)
    if not frames:
        return (Finding("calibration", "warning", "not checked: no frame with LiDAR was read", "see lidar"),)
    if (height := teacher.input_size[0]) < LEAST_INPUT_PX:
        found = f"not checked: the teacher sees images of {height} px, the thresholds hold for {LEAST_INPUT_PX} or more"
        return (Finding("calibration", "warning", found, "look at lidar_on_images.png"),)
    return findings.calibration_findings(camera_names, check_alignment(teacher, frames))


def check_picture(frame: Frame, path: Path, range_m: tuple[float, float]) -> Finding:
    """Draw a frame's LiDAR on its images, for eyes."""
    try:
        picture = Image.fromarray(lidar_on_images(frame, range_m))
        replace_atomically(path, lambda partial: picture.save(partial, "PNG"))
    except SurroundError as error:
        return Finding("picture", "problem", str(error), "choose another run folder with --run")
    return Finding("picture", "ok", f"LiDAR on the images of {frame.id}: {path}; edges should coincide")


def lidar_on_images(frame: Frame, range_m: tuple[float, float]) -> UInt8[np.ndarray, "H W 3"]:
    """LiDAR coloured by depth on the darkened images, in ring order from left to right, front in the middle.

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


def check_room(
    recipe: Recipe, folder: RunFolder, source: Source, frames: SplitFrames, teacher: LoadedTeacher, frame_id: str
) -> list[Finding]:
    """Disk for the cache and the student's saved states, memory for stage one, judged by one frame."""
    stage = StageOne(recipe, source, frames, teacher, 1, 1, AffineBinning(), None)
    identity = stage.identity
    try:
        samples = sample_frames(source, teacher, stage.binning, [frame_id], identity.image_size, identity.prob_size)
        cache_bytes = round(predict_size(samples, identity, recipe.bins).total_bytes)
    except SurroundError as error:
        return [Finding("disk", "problem", f"cannot be predicted: {error}", "see frames and teacher")]
    student = Student(recipe.student, recipe.bins, None)
    states = recipe.train_student.keep_last + 1
    state_bytes = states * STATE_BYTES * sum(parameter.numel() for parameter in student.parameters())
    location = cache_location(recipe, folder)
    free_bytes = open_store(location).free_bytes()
    needed_bytes, what = cache_bytes, f"{location}: cache {size_text(cache_bytes)}"
    if "://" not in location:
        needed_bytes += state_bytes
        what += f", states of the student {size_text(state_bytes)}; together"
    remedy = (
        'set --run or teacher_cache.location to a larger disk; bins.encoding = "closed_form" or fewer frames take less'
    )
    return [
        findings.room_finding("disk", what, needed_bytes, free_bytes, remedy),
        findings.room_finding(
            "memory",
            "stage one, roughly",
            _peak_bytes() + SHARDS_IN_MEMORY * recipe.teacher_cache.shard_frames * _frame_bytes(recipe, source),
            available_bytes(),
            "set teacher_cache.shard_frames lower",
        ),
    ]


def check_devices(recipe: Recipe) -> list[Finding]:
    """Where each stage would run."""
    machine = [f"{len(os.sched_getaffinity(0))} CPU cores"]
    if torch.cpu._is_amx_tile_supported():
        machine.append("AMX")
    elif torch.cpu._is_avx512_bf16_supported():
        machine.append("AVX512-BF16")
    for i in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(i)
        machine.append(f"{properties.name} with {size_text(properties.total_memory)}")
    one, two, three = recipe.teacher_cache, recipe.train_student, recipe.eval
    wanted = {
        "teacher-cache": (one.device, one.precision),
        "train-student": (two.device, two.precision),
        "eval": (three.device, three.precision),
    }
    try:
        resolved = [f"{verb} {_resolved(*words)}" for verb, words in wanted.items()]
    except SettingError as error:
        return [Finding("devices", "problem", f"{', '.join(machine)}; {error}", 'set the section\'s device = "auto"')]
    return [Finding("devices", "ok", f"{', '.join(machine)}; {', '.join(resolved)}")]


def _resolved(device: str, precision: str) -> str:
    found = resolve_device(device)
    return f"{found} {resolve_precision(precision, found)}"


def check_loaders(recipe: Recipe, view_count: int) -> list[Finding]:
    """Shared memory and open files, which the loader workers of stage two need."""
    spec = recipe.train_student
    if not spec.workers:
        return []
    height, width = recipe.student.input_size
    batches = BATCHES_AHEAD * spec.workers
    # Image and LiDAR in fp32, and those of the frame that the photometric loss compares with.
    batch_bytes = spec.batch_rigs // spec.accumulate * view_count * height * width * 7 * 2
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    found = [findings.open_files_finding(FILES_OF_A_PROCESS + batches * TENSORS_PER_BATCH, soft)]
    if SHARED_MEMORY.is_dir():
        remedy = "docker: --shm-size; or train_student.workers lower, 0 needs none"
        free = shutil.disk_usage(SHARED_MEMORY).free
        found.append(
            findings.room_finding(str(SHARED_MEMORY), "batches of loader workers", batches * batch_bytes, free, remedy)
        )
    return found


def check_scheduler(recipe: Recipe, scheduler: str) -> list[Finding]:
    """Whether the workers of stage one can be had."""
    if scheduler == "threads":
        return []
    if scheduler == "local":
        workers = recipe.cluster.workers or torch.cuda.device_count() or len(os.sched_getaffinity(0))
        return [Finding("scheduler", "ok", f"local: {workers} processes, each with a teacher of its own")]
    if scheduler == "slurm":
        if importlib.util.find_spec("dask_jobqueue") is None:
            return [
                Finding("scheduler", "problem", "dask-jobqueue is missing", "pip install 'surround-distill[slurm]'")
            ]
        if shutil.which("sbatch") is None:
            return [Finding("scheduler", "problem", "no sbatch here", "run on a machine that submits jobs, or --part")]
        return [Finding("scheduler", "ok", "slurm: sbatch is here; teacher-cache --dry-run shows the job")]
    try:
        return [findings.scheduler_finding(scheduler, cluster.count_workers(scheduler))]
    except SettingError as error:
        return [Finding("scheduler", "problem", str(error), "start it, or open the way to it")]


def available_bytes() -> int:
    """Memory that this process may still take."""
    from distributed.system import memory_limit

    lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    available = next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    return min(available * 1024, int(memory_limit()))


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _frame_bytes(recipe: Recipe, source: Source) -> int:
    """A frame as it is held before it is compressed: images, LiDAR, and bins in their widest form."""
    height, width = recipe.student.input_size
    stride = recipe.bins.prob_stride
    bins = recipe.bins.count if recipe.bins.encoding == "dense" else recipe.bins.window + 1
    return (
        source.rig.view_count * height * width * 5
        + source.rig.view_count * (height // stride) * (width // stride) * bins
    )
