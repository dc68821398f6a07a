"""Metres of training frames without LiDAR: the teacher, placed by motion and corrected by what LiDAR taught a network.

The network (stages/student/refiner.py) trains on the frames with LiDAR, whose teacher is placed by motion as well. What
it says of the others is kept, a file a frame, and taken in place of their LiDAR: at the pixels on which the returns of
a frame with LiDAR fall, since nothing has taught it what lies above the beams or beyond their range.
"""

import hashlib
import json
import time
import warnings
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from data_cache.dataset import CachedFrames, CachedRigs, batches, collate
from data_cache.errors import SurroundWarning
from data_cache.files import write_error
from data_cache.metres import write_metres
from data_cache.shards.reader import CacheReader
from data_cache.storage.claims import Claims
from stages.compute.devices import autocast, place, resolve_precision
from stages.compute.parallel import leads, process_count
from stages.compute.preemption import Preempted
from stages.compute.progress import progress_bar
from stages.student.checkpoint import (
    CheckpointError,
    DamagedCheckpointError,
    TrainingState,
    clear_partials,
    load_state,
    save_state,
    saved_states,
)
from stages.student.refiner import Refiner
from stages.student.spec import StudentSpec
from stages.targets.binning import Binning, stored_binning
from stages.targets.bins import decode
from stages.targets.lidar_fit import LidarFit
from stages.targets.lidar_frame import teacher_disparity
from stages.targets.spec import BinSpec
from stages.training.motion_fits import DEFINITION as MOTION
from stages.training.preflight import STATES
from stages.training.schedule import draws, learning_rate, sample_order, split
from stages.training.spec import TrainStudentSpec
from stages.training.step import TrainingError, augment, on_device, optimizer_tensors, restore_optimizer

DEFINITION = "metres at the pixels of another frame's returns"
"""Part of what tells metres apart: a change to what is kept must change this text."""
STUDENT_STEPS = 2
"""A refiner takes one step for so many of the student's: it has less to learn, and fewer frames."""
NETWORK, OPTIMIZER = "network.", "optimizer."
NETWORK_SETTINGS = ("encoder", "pretrained", "input_size", "decoder_channels")
TRAINING_SETTINGS = ("seed", "steps", "batch_rigs", "accumulate", "learning_rate", "warmup_steps", "weight_decay",
                     "clip_norm", "flip", "jitter", "lidar_share")  # fmt: skip
"""What decides a refiner of the sections `student` and `train_student`."""
SAVING_S = 20.0
"""A process that waits stays so long after a signal: where one ends, a launcher may kill those that still save."""
LOWER_RATE = "lower train_student.learning_rate or look at these frames; the last saved state is kept"


@dataclass(frozen=True, eq=False)
class RefinerJob:
    """What a refiner learns from.

    Attributes:
        reader: the cache.
        student, bins: sections of the recipe; the refiner has the student's encoder and width.
        encoder_weights: folder of ImageNet weights, None for random ones.
        spec: steps, rate and seed of the student, from which those of the refiner follow.
        depth_range_m: LiDAR depths outside are ignored.
        lidar_ids: training frames whose LiDAR teaches.
        fits: the teacher placed by motion in every training frame, see `CachedRigs.teacher_fit`.
        folder: on a disk that all processes share; holds a folder for each cache, choice of frames and settings.
        device: of the training.
    """

    reader: CacheReader
    student: StudentSpec
    bins: BinSpec
    encoder_weights: Path | None
    spec: TrainStudentSpec
    depth_range_m: tuple[float, float]
    lidar_ids: frozenset[str]
    fits: Mapping[str, Tensor]
    folder: Path
    device: torch.device

    @property
    def labelled(self) -> tuple[str, ...]:
        """The training frames with LiDAR that can be read."""
        return tuple(i for i in self.reader.usable(tuple(self.reader.frames.train)) if i in self.lidar_ids)

    @property
    def run(self) -> dict[str, Any]:
        """Settings in which two refiners that are the same must agree."""
        return {
            "definition": DEFINITION,
            "cache": self.reader.identity.sha256,
            "train_frames": list(self.reader.usable(tuple(self.reader.frames.train))),
            "lidar_frames": sorted(self.lidar_ids),
            "network": {name: getattr(self.student, name) for name in NETWORK_SETTINGS},
            "bins": asdict(self.bins),
            "training": {name: getattr(self.spec, name) for name in TRAINING_SETTINGS} | {"precision": self.precision},
            "motion": MOTION,
            "depth_range_m": list(self.depth_range_m),
        }

    @property
    def digest(self) -> str:
        """Of `run`: the name of its folder, and what tells the metres of two refiners apart."""
        return hashlib.sha256(json.dumps(self.run, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def passes(self) -> int:
        """Passes of a step: this process alone does what all processes of the student's training would share.

        How many there are decides no more than what the batch norms see at once, so it is not part of `run`: a training
        goes on with another number of processes.
        """
        return self.spec.accumulate * process_count()

    @property
    def precision(self) -> str:
        """That of the student; fp32 for fp16, since a refiner's loss is not scaled."""
        precision = resolve_precision(self.spec.precision, self.device)
        return "fp32" if precision == "fp16" else precision


def refined_metres(job: RefinerJob, should_stop: Callable[[], bool]) -> Mapping[str, Path]:
    """Files of metres (V H W, 0 = none) of each training frame outside `job.lidar_ids`, for `CachedFrames`.

    A frame has metres where the frames with LiDAR, taking turns, have returns in range.

    What is there is not computed again. Of processes that ask for the same, one works and the others wait.

    Raises:
        Preempted: if `should_stop` returns True; the steps and the frames that are done are kept.
        TrainingError: if a loss, a gradient or a depth is not finite, or all frames with LiDAR are quarantined.
        WriteError: if a file cannot be written.
        CheckpointError: if a state is not a refiner's or cannot be written.
        DamagedCacheError, LoaderError: if frames cannot be read.
    """
    if not job.labelled:
        raise TrainingError(
            f"{job.reader.store.location}: all {len(job.lidar_ids)} training frames with LiDAR are quarantined, so"
            " nothing teaches the refiner; name others in data.lidar_drives, or set losses.without_lidar = 'motion'"
        )
    folder = job.folder / job.digest
    asked = [frame_id for frame_id in job.run["train_frames"] if frame_id not in job.lidar_ids]
    files = {frame_id: folder / f"{i:06d}.npz" for i, frame_id in enumerate(asked)}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        claims = Claims(folder / "refiner.lock")
    except OSError as error:
        raise write_error(error, folder) from error
    with ExitStack() as stack:
        waiting = leave_at = None
        while missing := [file for file in files.values() if not file.exists()]:
            if claims.take(0):
                try:
                    if should_stop():
                        raise Preempted(f"stopped before the refiner in {folder} was trained; what it has is kept")
                    _write_metres(job, folder, files, should_stop)
                finally:
                    claims.release(0)
                continue
            if should_stop():
                leave_at = leave_at or time.monotonic() + SAVING_S
                if time.monotonic() >= leave_at:
                    raise Preempted(f"stopped while another process trained the refiner in {folder}")
            done = len(files) - len(missing)
            waiting = waiting or stack.enter_context(
                progress_bar(len(files), done, "refine elsewhere", "frame", quiet=not leads())
            )
            time.sleep(1)
            waiting.update(done - waiting.n)
    return files


def _write_metres(job: RefinerJob, folder: Path, files: Mapping[str, Path], should_stop: Callable[[], bool]) -> None:
    missing = [i for i, file in enumerate(files.values()) if not file.exists()]
    if not missing:
        return
    binning = stored_binning(job.bins, job.reader.identity.bin_knots)
    refiner = _trained(job, binning, folder, should_stop)
    refiner.eval()
    frames = CachedFrames(job.reader, tuple(files), lidar_ids=frozenset(), teacher_fits=job.fits)
    labelled, paths = CachedFrames(job.reader, job.labelled), list(files.values())
    near_m, far_m = job.depth_range_m
    with progress_bar(len(missing), 0, "refine", "frame") as bar:
        for i in missing:
            if should_stop():
                raise Preempted(f"stopped while frames without LiDAR were refined; {folder} keeps those that are done")
            rigs = on_device(job.device, collate([frames[i]]))
            with torch.no_grad():
                log_m, placed = _refined(refiner, job, binning, rigs, rigs.image.float() / 255)
            lidar_m = labelled[i % len(labelled)].lidar_depth_m.to(job.device)
            falls = (lidar_m > near_m) & (lidar_m < far_m) & placed[0, :, None, None]
            if not torch.isfinite(log_m).all():
                raise TrainingError(f"the refiner's depth of frame {frames.frame_ids[i]} is not finite; {LOWER_RATE}")
            metres = torch.where(falls, log_m[0].exp().clamp(near_m, far_m), 0.0)
            write_metres(paths[i], metres.cpu().numpy())
            bar.update()


def _trained(job: RefinerJob, binning: Binning, folder: Path, should_stop: Callable[[], bool]) -> Refiner:
    """The refiner after its last step; continues from the newest state."""
    steps = max(1, job.spec.steps // STUDENT_STEPS)
    spec = replace(job.spec, steps=steps, warmup_steps=min(job.spec.warmup_steps, steps // 2))
    torch.manual_seed(spec.seed)
    refiner = Refiner(job.student, job.encoder_weights)
    place(refiner, job.device)
    optimizer = torch.optim.AdamW(refiner.parameters(), spec.learning_rate, weight_decay=spec.weight_decay)
    begin = 0
    clear_partials(folder / STATES)
    if (state := _newest_state(job, folder)) is not None:
        refiner.load_state_dict(_part(state.tensors, NETWORK))
        restore_optimizer(optimizer, _part(state.tensors, OPTIMIZER))
        begin = state.step

    def save(step: int) -> None:
        tensors = {f"{NETWORK}{name}": value for name, value in refiner.state_dict().items()}
        tensors |= {f"{OPTIMIZER}{name}": value for name, value in optimizer_tensors(optimizer).items()}
        save_state(folder / STATES, TrainingState(tensors, step, 0.0, measured=True), job.run, spec.keep_last)

    frames = CachedFrames(job.reader, job.labelled, teacher_fits=job.fits)
    order = sample_order(spec.seed, [range(len(frames))], spec.batch_rigs, range(begin, steps))
    passes = [part for batch in order for part in split(batch, 0, 1, job.passes)]
    refiner.train()
    with ExitStack() as stack:
        bar = stack.enter_context(progress_bar(steps, begin, "refiner", "step"))
        workers = spec.workers if passes else 0
        loader = stack.enter_context(batches(frames, passes, workers, pin_memory=job.device.type == "cuda"))
        for step in range(begin, steps):
            if should_stop():
                save(step)
                raise Preempted(f"stopped after step {step} of {steps} of the refiner; the state is saved in {folder}")
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, spec)
            optimizer.zero_grad(set_to_none=True)
            for share in split(draws(spec, step), 0, 1, job.passes):
                rigs, image = augment(on_device(job.device, next(loader)), share, spec.lidar_share)
                loss = _loss(*_refined(refiner, job, binning, rigs, image), rigs.lidar_depth_m, job.depth_range_m)
                if not torch.isfinite(loss):
                    raise TrainingError(
                        f"refiner, step {step + 1}: the loss is not finite; frames {', '.join(rigs.frame_ids)};"
                        f" {LOWER_RATE}"
                    )
                (loss / job.passes).backward()  # type: ignore[no-untyped-call]
            if not torch.isfinite(torch.nn.utils.clip_grad_norm_(refiner.parameters(), spec.clip_norm)):
                raise TrainingError(f"refiner, step {step + 1}: a gradient is not finite; {LOWER_RATE}")
            optimizer.step()
            bar.update()
            if (step + 1) % spec.checkpoint_every == 0 or step + 1 == steps:
                save(step + 1)
    return refiner


def _newest_state(job: RefinerJob, folder: Path) -> TrainingState | None:
    """The state to go on from; without a readable one the refiner is trained again."""
    try:
        return load_state(folder / STATES, job.run)
    except CheckpointError as error:
        if not isinstance(error.__cause__, DamagedCheckpointError):
            raise
        warnings.warn(f"{error.args[0].partition(';')[0]}; the refiner is trained again", SurroundWarning, stacklevel=2)
        for path in saved_states(folder / STATES):
            path.unlink()
        return None


def _refined(
    refiner: Refiner, job: RefinerJob, binning: Binning, rigs: CachedRigs, image: Float[Tensor, "B V 3 H W"]
) -> tuple[Float[Tensor, "B V H W"], Bool[Tensor, "B V"]]:
    """Log of the refined depth in metres, and the views in which motion has placed the teacher."""
    assert rigs.teacher_fit is not None
    scale, shift = rigs.teacher_fit.unbind(-1)
    placed = (scale > 0) & rigs.view_valid
    disparity = teacher_disparity(decode(rigs.bins, job.bins), rigs.lidar_depth_m, binning)
    depth_m = LidarFit(scale, shift, placed).depth_m(disparity).clamp(*job.depth_range_m)
    with autocast(job.device, job.precision):
        log_m = refiner(image, depth_m, disparity)
    return log_m.float(), placed


def _loss(
    log_m: Float[Tensor, "B V H W"],
    placed: Bool[Tensor, "B V"],
    lidar_depth_m: Float[Tensor, "B V H W"],
    depth_range_m: tuple[float, float],
) -> Float[Tensor, ""]:
    """Mean |log depth - log LiDAR| over the returns in range of the placed views; zero without any."""
    there = (lidar_depth_m > depth_range_m[0]) & (lidar_depth_m < depth_range_m[1]) & placed[..., None, None]
    error = (log_m - torch.where(there, lidar_depth_m, 1.0).log()).abs()
    return torch.where(there, error, 0.0).sum() / there.sum().clamp(min=1)


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
