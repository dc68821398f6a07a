"""What the machine offers a recipe: disk and memory, devices, loader workers, a scheduler."""

import importlib.util
import os
import resource
import shutil
from pathlib import Path

import torch

from data_cache.errors import SettingError, SurroundError
from data_cache.files import size_text
from data_cache.shards.identity import SplitFrames
from data_cache.sources.base import Source
from data_cache.storage.locations import open_store
from pipeline.doctor import findings
from pipeline.doctor.findings import Finding
from pipeline.recipe.config import Recipe
from pipeline.recipe.run_folder import RunFolder, cache_location
from pipeline.runs import cluster
from pipeline.runs.stage_one import StageOne
from stages.caching.size import predict_size, sample_frames
from stages.compute.devices import resolve_device, resolve_precision
from stages.student.model import Student
from stages.targets.binning import AffineBinning
from stages.teacher.load import LoadedTeacher

STATE_BYTES = 16
"""Bytes of a saved state per parameter: weight, two moments of AdamW and the average, in fp32."""
SHARDS_IN_MEMORY = 3
BATCHES_AHEAD = 2
TENSORS_PER_BATCH = 20
FILES_OF_A_PROCESS = 200
SHARED_MEMORY = Path("/dev/shm")


def check_room(
    recipe: Recipe, folder: RunFolder, source: Source, frames: SplitFrames, teacher: LoadedTeacher, frame_id: str
) -> list[Finding]:
    """Estimate from one frame the disk for the cache and the student's saved states, and the memory of stage one."""
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
        what += f", saved states of the student {size_text(state_bytes)}; together"
    remedy = (
        'set --run or teacher_cache.location to a larger disk; bins.encoding = "closed_form" or fewer frames take less'
    )
    return [
        findings.room_finding("disk", what, needed_bytes, free_bytes, remedy),
        findings.room_finding(
            "memory",
            "stage 1 needs about",
            _peak_bytes() + SHARDS_IN_MEMORY * recipe.teacher_cache.shard_frames * _frame_bytes(recipe, source),
            available_bytes(),
            "set teacher_cache.shard_frames lower",
        ),
    ]


def check_devices(recipe: Recipe) -> list[Finding]:
    """Find where each stage would run."""
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


def check_load() -> list[Finding]:
    """Check that no other jobs compete for the cores of the machine, over which the load is counted."""
    return [findings.load_finding(os.getloadavg()[0], os.cpu_count() or 1)]


def _resolved(device: str, precision: str) -> str:
    found = resolve_device(device)
    return f"{found} {resolve_precision(precision, found)}"


def check_loaders(recipe: Recipe, view_count: int) -> list[Finding]:
    """Check the shared memory and open files that the loader workers of stage two need."""
    spec = recipe.train_student
    if not spec.workers:
        return []
    height, width = recipe.student.input_size
    batches = BATCHES_AHEAD * spec.workers
    # Image and LiDAR in fp32, for the frame and for the one that the photometric loss compares it with.
    batch_bytes = spec.batch_rigs // spec.accumulate * view_count * height * width * 7 * 2
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    found = [findings.open_files_finding(FILES_OF_A_PROCESS + batches * TENSORS_PER_BATCH, soft)]
    if SHARED_MEMORY.is_dir():
        remedy = "raise it (docker: --shm-size), or set train_student.workers lower; 0 needs none"
        free = shutil.disk_usage(SHARED_MEMORY).free
        found.append(
            findings.room_finding(str(SHARED_MEMORY), "batches of loader workers", batches * batch_bytes, free, remedy)
        )
    return found


def check_scheduler(recipe: Recipe, scheduler: str) -> list[Finding]:
    """Check that the workers of stage one are available."""
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
            return [
                Finding(
                    "scheduler",
                    "problem",
                    "no sbatch on this machine",
                    "run on a machine that submits jobs, or use --part",
                )
            ]
        return [Finding("scheduler", "ok", "slurm: sbatch is here; teacher-cache --dry-run shows the job")]
    try:
        return [findings.scheduler_finding(scheduler, cluster.count_workers(scheduler))]
    except SettingError as error:
        return [Finding("scheduler", "problem", str(error), "start it, or make it reachable from here")]


def available_bytes() -> int:
    """Memory that this process may still use."""
    from distributed.system import memory_limit

    lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    available = next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    return min(available * 1024, int(memory_limit()))


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _frame_bytes(recipe: Recipe, source: Source) -> int:
    """Bytes of a frame in memory before compression: images, LiDAR, and bins in their widest form."""
    height, width = recipe.student.input_size
    stride = recipe.bins.prob_stride
    bins = recipe.bins.count if recipe.bins.encoding == "dense" else recipe.bins.window + 1
    return (
        source.rig.view_count * height * width * 5
        + source.rig.view_count * (height // stride) * (width // stride) * bins
    )
