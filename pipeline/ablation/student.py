"""One student of an ablation: its recipe, its folder, and how it is trained and measured."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from data_cache.files import write_atomically, write_error
from data_cache.frames.images import larger
from data_cache.frames.rig import Frame, Rig
from data_cache.shards.reader import CacheReader
from data_cache.sources.base import Source
from data_cache.storage.claims import Claims
from pipeline.ablation.table import Outcome
from pipeline.errors import RecipeError
from pipeline.recipe.ablate import BASELINE, slug
from pipeline.recipe.config import READING, DataSpec, Recipe, parse_recipe, recipe_toml
from pipeline.recipe.run_folder import RunFolder, cache_location
from pipeline.runs.evaluate import own_checkpoint
from pipeline.runs.splits import open_data, select_frames
from pipeline.runs.stage_one import decided_identity
from pipeline.runs.train_student import train_recipe
from stages.compute.devices import place, resolve_device, resolve_precision
from stages.compute.parallel import joined
from stages.compute.preemption import Preempted
from stages.evaluate import evaluate
from stages.evaluation.protocols import PROTOCOLS, measured_frames
from stages.evaluation.results import EvaluateReport, against_lidar
from stages.losses.spec import supervised_alone
from stages.student.checkpoint import load_student
from stages.training.motion_fits import DEFINITION as MOTION
from stages.training.preflight import require_tokens
from stages.training.refined_metres import DEFINITION as REFINED

KEPT_FRAMES = 32
"""At most this many test or selection frames stay in memory between students; synthetic ones take seconds to render."""


_RESULT_FIELDS = {"row", "lidar_share", "seed", "metrics", "frames", "images", "provenance"}


@dataclass(frozen=True)
class PlannedStudent:
    """One student of the ablation.

    Attributes:
        row, lidar_share, lidar_drives, seed: which one.
        recipe: of that student alone.
        cache_id: of the cache that it learns from.
        folder: its run folder.
        shared: run folder of the metres of frames without LiDAR, which all students share.
    """

    row: str
    lidar_share: float
    lidar_drives: int | None
    seed: int
    recipe: Recipe
    cache_id: str
    folder: RunFolder
    shared: RunFolder

    @property
    def measured_on(self) -> tuple[str, ...]:
        """Selectors of the frames that it is measured on."""
        data = self.recipe.data
        return data.test if self.recipe.ablate.measure == "test" else data.selection

    @property
    def result(self) -> Path:
        """File of its measurement; each way of measuring has a file of its own."""
        spec = self.recipe.eval
        data = self.recipe.data
        more = [value for value in (data.masks, data.unusual_reading) if value]
        how = json.dumps([self.measured_on, spec.protocol, spec.flip, spec.device, spec.precision, *more])
        return self.folder.root / f"measured-{hashlib.sha256(how.encode()).hexdigest()[:8]}.json"

    def outcome(self) -> dict[str, Any] | None:
        """Its measurement; None if there is none, or it cannot be read."""
        try:
            content = json.loads(self.result.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        if not isinstance(content, dict) or not content.keys() >= _RESULT_FIELDS:
            return None
        metrics = content["metrics"]
        whole = isinstance(metrics, dict) and all(isinstance(value, float | int | None) for value in metrics.values())
        return content if whole else None


def plan_students(recipe: Recipe, folder: RunFolder) -> list[PlannedStudent]:
    """Plan every student, all rows of the first seed first, so that an unfinished table compares whole seeds."""
    spec = recipe.ablate
    readers: dict[str, CacheReader] = {}

    def open_cache(own: Recipe) -> CacheReader:
        decided, location = decided_identity(own), own.teacher_cache.location
        key = json.dumps([location, decided], sort_keys=True)
        if key not in readers:
            readers[key] = CacheReader(location, expected=decided)
        return readers[key]

    return [
        replace(_plan_student(on_drives, folder, row, overrides, share, seed, open_cache), lidar_drives=count)
        for seed in spec.seeds
        for share in spec.lidar_shares
        for count, on_drives in _by_lidar_drives(recipe).items()
        for row, overrides in spec.rows.items()
    ]


def _by_lidar_drives(recipe: Recipe) -> dict[int | None, Recipe]:
    """The recipe for each number of LiDAR drives.

    Raises:
        RecipeError: if there are fewer training drives.
    """
    counts = recipe.ablate.lidar_drives
    if not counts:
        return {None: recipe}
    source = open_data(recipe.data)
    train = set(select_frames(recipe.data, source, recipe.data.train))
    drives = [name for name, frame_ids in source.drives.items() if train & set(frame_ids)]
    if max(counts) > len(drives):
        raise RecipeError(f"ablate.lidar_drives: {max(counts)} of the {len(drives)} drives of data.train")
    chosen = {count: tuple(drives[i * len(drives) // count] for i in range(count)) for count in counts}
    return {count: replace(recipe, data=replace(recipe.data, lidar_drives=names)) for count, names in chosen.items()}


def _plan_student(
    recipe: Recipe,
    folder: RunFolder,
    row: str,
    overrides: Sequence[str],
    lidar_share: float,
    seed: int,
    open_cache: Callable[[Recipe], CacheReader],
) -> PlannedStudent:
    try:
        bare = replace(
            recipe,
            losses=supervised_alone(recipe.losses),
            train_student=replace(recipe.train_student, seed=seed, lidar_share=lidar_share),
            teacher_cache=replace(recipe.teacher_cache, location=cache_location(recipe, folder)),
        )
    except ValueError as error:
        raise RecipeError(f"losses: every row starts from the supervised loss alone: {error}") from error
    try:
        own = parse_recipe(recipe_toml(bare), "recipe", overrides)
    except RecipeError as error:
        raise RecipeError(f"row {row!r}: {error}") from error
    if row == BASELINE and overrides:
        raise RecipeError(f"row {row!r}: it is what the others are compared with and takes no overrides")
    # The folder's name holds a digest of all that changes the student, so that no result is taken for that of another.
    reader = open_cache(own)
    require_tokens(reader, own.losses)
    cache_id = reader.identity.sha256
    decisive = asdict(own) | {"cache_id": cache_id}
    for section, names in {
        "data": ("root", "masks", "test", *READING),  # the cache's id covers what is read
        "teacher_cache": ("location", "device", "batch_images", "runtime"),
    }.items():
        for name in names:
            del decisive[section][name]
    if not own.data.lidar_drives or own.losses.lidar_alone:
        del decisive["losses"]["without_lidar"]
    elif own.losses.without_lidar != "student":
        decisive["metres"] = [MOTION, REFINED]
    # Results of before these settings stay what they are.
    if not own.data.lidar_drives:
        del decisive["data"]["lidar_drives"]
    if not own.losses.bin_relation:
        del decisive["losses"]["bin_relation"]
    for name in ("name", "ablate", "eval", "cluster"):
        del decisive[name]
    digest = hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()[:8]
    name = f"{slug(row)}-lidar{lidar_share:g}-seed{seed}-{digest}"
    return PlannedStudent(row, lidar_share, None, seed, own, cache_id, RunFolder(folder.ablate / name), folder)


def train_and_measure(student: PlannedStudent, here: Mapping[str, object], should_stop: Callable[[], bool]) -> None:
    """Train and measure a student, unless another process does; steps that are done are not done again.

    Args:
        student: which one.
        here: provenance, kept with the result.
        should_stop: asked between steps and frames.

    Raises:
        Preempted: if `should_stop` returns True, after saving.
        WriteError: if its folder or a file cannot be written.
        TrainingError, CheckpointError, EvaluationError, DamagedCacheError: if it cannot be trained or measured.
    """
    try:
        student.folder.root.mkdir(parents=True, exist_ok=True)
        claims = Claims(student.folder.root / "claim.lock")
    except OSError as error:
        raise write_error(error, student.folder.root) from error
    if not claims.take(0) or student.outcome() is not None:
        return
    if should_stop():
        raise Preempted("stopped before it began")
    with joined(student.recipe.train_student.device) as device:
        trained = train_recipe(student.recipe, student.folder, device, shared=student.shared, should_stop=should_stop)
    report = _measure(student, should_stop)
    per_step = trained.seconds / trained.steps_done if trained.steps_done else None
    minutes = per_step * student.recipe.train_student.steps / 60 if per_step is not None else None
    metrics = report_metrics(report) | {"minutes": minutes}
    outcome = Outcome(student.row, student.lidar_share, student.seed, metrics, student.lidar_drives)
    provenance = {**here, "cache_id": student.cache_id}
    content = {**asdict(outcome), "frames": report.frames, "images": report.images, "provenance": provenance}
    write_atomically(student.result, json.dumps(content, indent=1) + "\n")


def _measure(planned: PlannedStudent, should_stop: Callable[[], bool]) -> EvaluateReport:
    recipe = planned.recipe
    checkpoint = own_checkpoint(recipe, planned.folder)
    student = load_student(checkpoint, expected=recipe.student, expected_bins=recipe.bins).student
    device = resolve_device(recipe.eval.device)
    place(student, device)
    source = _opened(recipe.data)
    return evaluate(
        source,
        measured_frames(
            PROTOCOLS[recipe.eval.protocol], source, select_frames(recipe.data, source, planned.measured_on)
        ),
        recipe.data.named(planned.measured_on),
        student,
        None,
        replace(recipe.eval, latency=False, pictures=0),
        device=device,
        precision=resolve_precision(recipe.eval.precision, device),
        decode_size=larger(recipe.teacher_cache.input_size, recipe.student.input_size),
        should_stop=should_stop,
    ).report


def report_metrics(report: EvaluateReport) -> dict[str, float | None]:
    """Pick the numbers of an ablation: against dense truth if the data set has it, else against LiDAR.

    Raises:
        EvaluationError: if there is neither.
    """
    dense = report.dense_truth or {}
    main = dense["all"].mean if dense else against_lidar(report).metric.mean
    return {
        "abs_rel": main.abs_rel,
        "rmse": main.rmse,
        "d1": main.d1,
        **{name: dense[name].mean.abs_rel for name in ("edges", "above_lidar", "at_lidar") if name in dense},
        "overlap": report.consistency.overlap_abs_rel,
        "overlap_with_gross": report.consistency.overlap_with_gross,
        "overlap_share": report.consistency.overlap_share,
        "lidar_protocol": report.student.metric.mean.abs_rel if report.student is not None else None,
    }


@lru_cache(maxsize=1)
def _opened(data: DataSpec) -> Source:
    """The source of all students, opened once per process."""
    return kept_frames(open_data(data))


def kept_frames(source: Source) -> Source:
    """The source, but the first KEPT_FRAMES frames that it has read stay in memory."""
    return _KeptFrames(source)


class _KeptFrames:
    """A source that keeps the frames it has read in memory."""

    def __init__(self, source: Source):
        self._source = source
        self._frames: dict[str, Frame] = {}

    @property
    def name(self) -> str:
        return self._source.name

    @property
    def rig(self) -> Rig:
        return self._source.rig

    @property
    def drives(self) -> Mapping[str, tuple[str, ...]]:
        return self._source.drives

    @property
    def splits(self) -> Mapping[str, tuple[str, ...]]:
        return self._source.splits

    def frame(self, frame_id: str) -> Frame:
        if frame_id not in self._frames and len(self._frames) < KEPT_FRAMES:
            self._frames[frame_id] = _loaded_once(self._source.frame(frame_id))
        return self._frames.get(frame_id) or self._source.frame(frame_id)


def _loaded_once(frame: Frame) -> Frame:
    """The frame with loaders that read a file once and keep what they read."""
    return replace(
        frame,
        views=tuple(replace(view, load_image=cache(view.load_image)) if view else None for view in frame.views),
        load_sweep=cache(frame.load_sweep) if frame.load_sweep else None,
        load_truth_m=tuple(cache(load) for load in frame.load_truth_m) if frame.load_truth_m else None,
    )
