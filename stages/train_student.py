"""Stage two: train the student from the cache and sparse LiDAR. The teacher is not in memory.

The learning rate, the sample order and every random number are functions of (seed, step): a run that was interrupted
and resumed is the same run, byte for byte on a CPU.
"""

import json
import math
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch.utils.tensorboard import SummaryWriter

from data_cache.dataset import CachedFrames, CachedRigs, batches, collate, single
from data_cache.errors import SurroundError
from data_cache.files import write_atomically, write_error
from data_cache.reader import CacheReader
from stages.augment import jitter_colours, mirror, thin_lidar
from stages.binning import Binning, stored_binning
from stages.checkpoint import Lineage, architecture, load_state, save_state, save_student
from stages.devices import autocast, place, require_known, resolve_device, resolve_precision
from stages.distill import Learner, loss_terms
from stages.losses import LossSpec, LossTerms, weighted_sum
from stages.metrics import abs_rel
from stages.progress import Preempted, progress_bar
from stages.student.model import Student

LOG_EVERY = 10


class TrainingError(SurroundError):
    """Training cannot go on."""


@dataclass(frozen=True, kw_only=True)
class TrainStudentSpec:
    """How stage two runs.

    Attributes:
        seed: of the sample order and the augmentation.
        steps: optimiser steps in all.
        batch_rigs: frames per step.
        learning_rate, warmup_steps, weight_decay, clip_norm: AdamW, linear warm-up then cosine to 0, gradient norm.
        flip, jitter: augmentation.
        lidar_share: of the pixels with a LiDAR return, those that teach; drawn once per frame, the same in every run.
        checkpoint_every: steps between saved states; a kill costs at most these.
        select_every: steps between looks at the selection split, where the recipe names one.
        workers: loader processes, 0 to read in the training process.
        precision, device: auto, or as named in stages/devices.py.
    """

    seed: int = 0
    steps: int
    batch_rigs: int = 4
    learning_rate: float = 1e-3
    warmup_steps: int = 50
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    flip: bool = True
    jitter: bool = True
    lidar_share: float = 1.0
    checkpoint_every: int = 200
    select_every: int = 200
    workers: int = 0
    precision: str = "auto"
    device: str = "auto"

    def __post_init__(self) -> None:
        require_known(self.device, self.precision)
        for name in ("steps", "batch_rigs", "checkpoint_every", "select_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        for name in ("seed", "warmup_steps", "workers"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: expected 0 or more, got {getattr(self, name)}")
        for name in ("learning_rate", "clip_norm"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name}: expected a positive number, got {getattr(self, name)}")
        if not 0 <= self.weight_decay < math.inf:
            raise ValueError(f"weight_decay: expected 0 or more, got {self.weight_decay}")
        if not 0 < self.lidar_share <= 1:
            raise ValueError(f"lidar_share: expected more than 0 and at most 1, got {self.lidar_share}")


@dataclass(frozen=True)
class TrainStudentReport:
    """What a run of stage two did; `best_abs_rel` is None where the recipe names no selection split."""

    steps_done: int
    steps_skipped: int
    seconds: float
    frames_per_s: float
    best_abs_rel: float | None
    quarantined_count: int


def learning_rate(step: int, spec: TrainStudentSpec) -> float:
    """Rate of the optimiser step after `step` done ones: linear warm-up, then half a cosine to zero."""
    if step < spec.warmup_steps:
        return spec.learning_rate * (step + 1) / spec.warmup_steps
    share = (step - spec.warmup_steps) / max(1, spec.steps - spec.warmup_steps)
    return spec.learning_rate * 0.5 * (1 + math.cos(math.pi * share))


def sample_order(seed: int, frame_count: int, batch_rigs: int, steps: range) -> list[list[int]]:
    """Positions of each step's frames: epochs are permutations drawn from (seed, epoch), laid end to end."""
    permutations: dict[int, list[int]] = {}
    order = []
    for step in steps:
        batch = []
        for position in range(step * batch_rigs, (step + 1) * batch_rigs):
            epoch, place = divmod(position, frame_count)
            if epoch not in permutations:
                permutations[epoch] = torch.randperm(frame_count, generator=_generator(seed, epoch, 0)).tolist()
            batch.append(permutations[epoch][place])
        order.append(batch)
    return order


def train_student(
    reader: CacheReader,
    student: Student,
    train_ids: Sequence[str],
    selection_ids: Sequence[str],
    folder: Path,
    spec: TrainStudentSpec,
    loss_spec: LossSpec,
    depth_range_m: tuple[float, float],
    *,
    fresh: bool = False,
    on_accepted: Callable[[], None] = lambda: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> TrainStudentReport:
    """Train `student` for `spec.steps` steps and leave last (and best) checkpoints, state and logs in `folder`.

    A state in `folder` is continued unless `fresh`; running it twice does nothing the second time. `on_accepted` is
    called once the cache and the state are known to fit.

    Raises:
        Preempted: after saving, if `should_stop` says so between two steps.
        TrainingError: if no frame is usable, none has LiDAR in range though it should teach, or a loss is not finite
            (term, step and frames named).
        CheckpointError: if the state is damaged, belongs to another run, or cannot be written.
        DamagedCacheError: if the cache is damaged.
    """
    usable = reader.usable(tuple(train_ids))
    selection = reader.usable(tuple(selection_ids))
    if not usable:
        raise TrainingError(
            f"{reader.store.location}: all {len(train_ids)} training frames are quarantined; see teacher-cache"
        )
    dataset = CachedFrames(reader, usable, neighbours=loss_spec.photometric > 0)
    if loss_spec.supervised and not _any_lidar(dataset, depth_range_m):
        raise TrainingError(
            f"{reader.store.location}: no training frame has a LiDAR return between {depth_range_m[0]} and"
            f" {depth_range_m[1]} m, so nothing says how many metres; check the LiDAR files and data.depth_range_m,"
            " or set losses.supervised = 0.0"
        )
    device = resolve_device(spec.device)
    precision = resolve_precision(spec.precision, device)
    learner = _learner(student, reader, loss_spec)
    binning = stored_binning(student.bins, reader.identity.bin_knots)
    place(learner, device)
    # Not fused: fused steps do not repeat to the byte after a resume.
    optimizer = torch.optim.AdamW(learner.parameters(), spec.learning_rate, weight_decay=spec.weight_decay)
    run = _run_identity(reader, student, usable, spec, loss_spec, depth_range_m, precision)
    state_path = folder / "state.safetensors"
    begin, best = 0, math.inf

    def lineage(step: int) -> Lineage:
        cache = reader.identity
        return Lineage(cache.teacher_name, cache.teacher_licence, cache.sha256, cache.source, depth_range_m, step)

    def save(step: int) -> None:
        # The state last: a student without its state is trained again, a state without its student would count as done.
        save_student(folder / "last.safetensors", student, lineage(step))
        save_state(state_path, learner, optimizer, step, best, run)

    if state_path.exists() and not fresh:
        progress = load_state(state_path, learner, optimizer, run)
        begin, best = progress.step, progress.best
        if not (folder / "last.safetensors").exists():
            save_student(folder / "last.safetensors", student, lineage(begin))
    on_accepted()
    log = _Log(folder, begin)

    order = sample_order(spec.seed, len(usable), spec.batch_rigs, range(begin, spec.steps))
    clock = time.perf_counter()
    student.train()
    with progress_bar(spec.steps, begin, "train-student", "step") as bar, log:
        for step, rigs in enumerate(batches(dataset, order, spec.workers), start=begin):
            if should_stop():
                save(step)
                raise Preempted(f"stopped after step {step} of {spec.steps}; the state is saved in {folder}")
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, spec)
            terms = _step(learner, binning, optimizer, rigs, step, spec, loss_spec, depth_range_m, device, precision)
            done = step + 1
            if done % LOG_EVERY == 0 or done == spec.steps:
                values = _values(terms)
                bar.set_postfix({name: f"{value:.3f}" for name, value in values.items()}, refresh=False)
                rate = (done - begin) * spec.batch_rigs / (time.perf_counter() - clock)
                log.write(done, {**values, "learning_rate": learning_rate(step, spec), "frames_per_s": rate})
            bar.update()
            if selection and (done % spec.select_every == 0 or done == spec.steps):
                score = _selection_abs_rel(student, CachedFrames(reader, selection), depth_range_m, device, precision)
                log.write(done, {"selection_abs_rel": score})
                if score < best:
                    best = score
                    # Before the state that knows of it: killed in between, the resumed run finds the same best again.
                    save_student(folder / "best.safetensors", student, lineage(done))
                    save(done)
            if done % spec.checkpoint_every == 0 or done == spec.steps:
                save(done)
    seconds = time.perf_counter() - clock
    steps_done = spec.steps - begin
    return TrainStudentReport(
        steps_done,
        begin,
        seconds,
        steps_done * spec.batch_rigs / seconds,
        best if selection else None,
        len(train_ids) - len(usable),
    )


def require_tokens(reader: CacheReader, loss_spec: LossSpec) -> None:
    """Raise TrainingError if a loss learns from teacher tokens that the cache does not hold."""
    if (loss_spec.feature or loss_spec.all_relation) and not reader.identity.token_channels:
        raise TrainingError(
            f"{reader.store.location} holds no teacher tokens, from which losses.feature and losses.all_relation learn;"
            " set teacher_cache.tokens = true and write the cache again, or do without these losses"
        )


def _learner(student: Student, reader: CacheReader, loss_spec: LossSpec) -> Learner:
    """Everything that learns."""
    require_tokens(reader, loss_spec)
    token_channels = reader.identity.token_channels
    return Learner(student, token_channels if loss_spec.feature else 0)


def _values(terms: LossTerms) -> dict[str, float]:
    return {f.name: term.item() for f in fields(terms) if (term := getattr(terms, f.name)) is not None}


def _step(
    learner: Learner,
    binning: Binning,
    optimizer: torch.optim.Optimizer,
    rigs: CachedRigs,
    step: int,
    spec: TrainStudentSpec,
    loss_spec: LossSpec,
    depth_range_m: tuple[float, float],
    device: torch.device,
    precision: str,
) -> LossTerms:
    generator = _generator(spec.seed, step, 1)
    if spec.flip or spec.lidar_share < 1:
        singles = [thin_lidar(single(rigs, i), spec.lidar_share) for i in range(len(rigs.frame_ids))]
        turned = (torch.rand(len(singles), generator=generator) < (0.5 if spec.flip else 0)).tolist()
        rigs = collate([mirror(rig) if turn else rig for rig, turn in zip(singles, turned, strict=True)])
    image = rigs.image.float() / 255
    if spec.jitter:
        image = torch.stack([jitter_colours(rig, generator) for rig in image])
    terms = loss_terms(learner, binning, rigs, image.to(device), loss_spec, depth_range_m, device, precision)
    total = weighted_sum(terms, loss_spec)
    if not torch.isfinite(total):
        raise TrainingError(
            f"step {step + 1}: loss is not finite: {_values(terms)}; frames {', '.join(rigs.frame_ids)}."
            " Lower train_student.learning_rate or look at these frames; the last saved state is kept"
        )
    optimizer.zero_grad(set_to_none=True)
    total.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(learner.parameters(), spec.clip_norm)
    optimizer.step()
    return terms


def _selection_abs_rel(
    student: Student,
    frames: CachedFrames,
    depth_range_m: tuple[float, float],
    device: torch.device,
    precision: str,
) -> float:
    """Mean AbsRel over the images of the selection frames at the student's own size."""
    student.eval()
    scores = []
    with torch.inference_mode():
        for rigs in batches(frames, [[i] for i in range(len(frames))], workers=0):
            with autocast(device, precision):
                out = student(rigs.image.to(device).float() / 255, rigs.focal_px.to(device), rigs.view_valid.to(device))
            for depth_m, lidar_m in zip(out.depth_m[0].cpu().numpy(), rigs.lidar_depth_m[0].numpy(), strict=True):
                valid = (lidar_m > depth_range_m[0]) & (lidar_m < depth_range_m[1])
                if valid.any():
                    scores.append(abs_rel(predicted_m=depth_m[valid].clip(*depth_range_m), truth_m=lidar_m[valid]))
    student.train()
    if not scores:
        raise TrainingError("the selection split has no LiDAR point in range; choose other frames for data.selection")
    return sum(scores) / len(scores)


def _any_lidar(frames: CachedFrames, depth_range_m: tuple[float, float]) -> bool:
    """Whether any frame has a return in range; the first one usually answers."""
    near_m, far_m = depth_range_m
    return any(
        bool(((rig.lidar_depth_m > near_m) & (rig.lidar_depth_m < far_m)).any())
        for rig in (frames[i] for i in range(len(frames)))
    )


def _run_identity(
    reader: CacheReader,
    student: Student,
    train_ids: Sequence[str],
    spec: TrainStudentSpec,
    loss_spec: LossSpec,
    depth_range_m: tuple[float, float],
    precision: str,
) -> Mapping[str, Any]:
    """What two runs must share to be the same run; how often it saves and who reads the data do not matter."""
    train = {k: v for k, v in asdict(spec).items() if k not in ("checkpoint_every", "workers", "device")}
    return {
        "cache": reader.identity.sha256,
        "train_frames": list(train_ids),
        "student": asdict(student.spec),
        "bins": architecture(student.bins),  # how the teacher's were cut is the cache's
        "train_student": train | {"precision": precision},
        "losses": asdict(loss_spec),
        "depth_range_m": list(depth_range_m),
    }


def _generator(seed: int, index: int, purpose: int) -> torch.Generator:
    """A generator for one epoch or step; nothing else draws from it, so nothing needs to be saved."""
    return torch.Generator().manual_seed((seed * 2 + purpose) * 1_000_003 + index)


class _Log:
    """log.jsonl and TensorBoard, cut back to the step from which a resumed run goes on."""

    def __init__(self, folder: Path, begin: int):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise write_error(error, folder) from error
        for partial in folder.glob("*.partial"):  # a killed run's; checkpoints are large
            partial.unlink(missing_ok=True)
        self._path = folder / "log.jsonl"
        if self._path.exists():
            kept = [line for line in self._path.read_text(errors="replace").splitlines() if _logged_step(line) <= begin]
            write_atomically(self._path, "".join(line + "\n" for line in kept if begin))
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=begin + 1)

    def __enter__(self) -> "_Log":
        return self

    def __exit__(self, *_: object) -> None:
        self._board.close()

    def write(self, step: int, values: Mapping[str, float]) -> None:
        try:
            with self._path.open("a") as file:
                file.write(json.dumps({"step": step, **values}) + "\n")
        except OSError as error:  # a lost line must not cost the steps since the last checkpoint
            warnings.warn(f"{self._path} cannot be written: {error}; training goes on", stacklevel=2)
        for name, value in values.items():
            self._board.add_scalar(name, value, step)


def _logged_step(line: str) -> float:
    """Step of a log line; a line cut off by a kill belongs to no step and is dropped."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf
