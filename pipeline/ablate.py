"""`surround ablate`: train and measure every student of an ablation, as many at a time as the machine allows."""

import hashlib
import json
import os
import shlex
import signal
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, fields, replace
from functools import cache
from multiprocessing import get_context
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import torch

from data_cache.claims import Claims
from data_cache.errors import SurroundError
from data_cache.files import write_atomically, write_error
from data_cache.images import larger
from data_cache.reader import CacheReader
from data_cache.rig import Frame, Rig
from data_cache.sources import Source, select
from pipeline.ablation import AblateSpec, Outcome, markdown_table, slug, table_rows
from pipeline.config import Recipe, parse_recipe, recipe_toml
from pipeline.folders import RunFolder, cache_location
from pipeline.provenance import surroundings
from pipeline.run import train_recipe
from pipeline.signals import preemption
from pipeline.stage_one import decided_identity, open_recipe_source, refuse_leak
from stages.checkpoint import load_student
from stages.devices import place, resolve_device, resolve_precision
from stages.evaluate import EvaluateReport, evaluate
from stages.losses import LossSpec
from stages.progress import Preempted, progress_bar

KEPT_FRAMES = 64
"""Up to so many frames to measure on stay in memory between students; the synthetic ones take seconds to render."""


class AblationError(SurroundError):
    """Some students could not be trained or measured."""


@dataclass(frozen=True)
class Cell:
    """One student of the ablation.

    Attributes:
        row, lidar_share, seed: which one.
        recipe: of that student alone.
        folder: its run folder.
    """

    row: str
    lidar_share: float
    seed: int
    recipe: Recipe
    folder: RunFolder

    @property
    def measured_on(self) -> tuple[str, ...]:
        """Selectors of the frames that it is measured on."""
        data = self.recipe.data
        return data.test if self.recipe.ablate.measure == "test" else data.selection

    @property
    def result(self) -> Path:
        """Where its measurement is kept; measured otherwise, it is another one."""
        how = json.dumps([self.measured_on, self.recipe.eval.protocol, self.recipe.eval.flip])
        return self.folder.root / f"measured-{hashlib.sha256(how.encode()).hexdigest()[:8]}.json"

    def outcome(self) -> dict[str, Any] | None:
        """Its measurement; None where there is none, or none that can be read."""
        try:
            content = json.loads(self.result.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return content if isinstance(content, dict) and {"row", "metrics"} <= content.keys() else None


@dataclass(frozen=True)
class AblateRun:
    """The table, and how much of it this run has done."""

    table: str
    path: Path
    done_before: int
    done: int
    missing: int


def run_ablate(
    recipe: Recipe,
    folder: RunFolder,
    *,
    jobs: int = 0,
    part: tuple[int, int] = (1, 1),
    train: bool = True,
    command: Sequence[str] = (),
    say: Callable[[str], object] = lambda _: None,
) -> AblateRun:
    """Train and measure what is missing of an ablation, and write RUN/ablate/table.json and table.md.

    Any number of processes may work on one ablation: a student is locked by the process that trains it.

    Args:
        recipe, folder: of the run whose cache all students learn from.
        jobs: students at a time; 0 for one per GPU, or per core of a machine without.
        part: (I, N), every N-th student from the I-th; the table has whatever is done by then.
        train: False to write the table of what is done so far, and nothing else.
        command: as typed, for the table's provenance.
        say: tells what goes on.

    Raises:
        Preempted: after the students under way have saved.
        RecipeError: if a row's overrides make no recipe, or test and training frames overlap.
        CacheError: if the cache is not the recipe's, or not complete.
        AblationError: if students failed, naming each; the others are trained all the same.
    """
    cells = plan_cells(recipe, folder)
    reader = CacheReader(cache_location(recipe, folder), expected=decided_identity(recipe))
    source = open_recipe_source(recipe)
    refuse_leak(reader.frames, select(source, recipe.data.test))
    mine = cells[part[0] - 1 :: part[1]]
    pending = [cell for cell in mine if cell.outcome() is None]
    jobs = min(jobs or torch.cuda.device_count() or os.cpu_count() or 1, len(pending))
    if pending and train:
        say(f"ablate: {len(pending)} of {len(cells)} students to train, {jobs} at a time, in {folder.ablate}")
        with preemption() as should_stop, progress_bar(len(mine), len(mine) - len(pending), "ablate", "student") as bar:
            run_cells(pending, jobs, lambda _: bar.update(), should_stop)
    return AblateRun(
        *write_table(recipe, folder, cells, reader.identity.sha256, command),
        len(mine) - len(pending),
        sum(cell.outcome() is not None for cell in pending),
        sum(cell.outcome() is None for cell in cells),
    )


def plan_cells(recipe: Recipe, folder: RunFolder) -> list[Cell]:
    """Every student, all rows of the first seed first: a table cut short compares what can be compared."""
    spec = recipe.ablate
    return [
        _cell(recipe, folder, row, overrides, share, seed)
        for seed in spec.seeds
        for share in spec.lidar_shares
        for row, overrides in spec.rows.items()
    ]


def _cell(recipe: Recipe, folder: RunFolder, row: str, overrides: Sequence[str], lidar_share: float, seed: int) -> Cell:
    bare = replace(
        recipe,
        losses=LossSpec(kl=0.0, relation=0.0, supervised=recipe.losses.supervised, frame=recipe.losses.frame),
        train_student=replace(recipe.train_student, seed=seed, lidar_share=lidar_share),
        teacher_cache=replace(recipe.teacher_cache, location=cache_location(recipe, folder)),
    )
    own = parse_recipe(recipe_toml(bare), f"row {row!r}", overrides)
    # Another recipe has another folder, so that nothing is taken for the result of another student. What does not
    # change the student is left out.
    decisive = asdict(own)
    for section, names in {"data": ("root", "test"), "teacher_cache": ("location", "device", "batch_images")}.items():
        for name in names:
            del decisive[section][name]
    for name in ("name", "ablate", "eval", "cluster"):
        del decisive[name]
    digest = hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()[:8]
    name = f"{slug(row)}-lidar{lidar_share:g}-seed{seed}-{digest}"
    return Cell(row, lidar_share, seed, own, RunFolder(folder.ablate / name))


def run_cells(
    cells: Sequence[Cell], jobs: int, on_done: Callable[[Cell], object], should_stop: Callable[[], bool]
) -> None:
    """Run cells in `jobs` processes of their own, one GPU or an equal share of the cores each."""
    context = get_context("spawn")
    stop, devices = context.Event(), context.Queue()
    for index in range(jobs):
        devices.put(index)
    executor = ProcessPoolExecutor(jobs, context, _start_worker, (jobs, devices, stop))
    failed: dict[str, SurroundError] = {}
    try:
        running: dict[Future[None], Cell] = {executor.submit(_run_cell, cell): cell for cell in cells}
        while running:
            finished, _ = wait(running, timeout=0.5, return_when=FIRST_COMPLETED)
            if should_stop():
                stop.set()
            for future in finished:
                cell = running.pop(future)
                try:
                    future.result()
                except Preempted:
                    raise Preempted("stopped; the students under way have saved, finished ones are kept") from None
                except BrokenProcessPool as error:
                    raise AblationError(
                        "a process of the ablation was killed, perhaps for want of memory; finished students are kept."
                        f" Run the same command again, with fewer --jobs than {jobs} if memory is the reason"
                    ) from error
                except SurroundError as error:  # the other students do not wait for somebody to wake up
                    failed[f"{cell.row}, LiDAR {cell.lidar_share:.0%}, seed {cell.seed}"] = error
                on_done(cell)
    finally:
        stop.set()
        executor.shutdown(cancel_futures=True)
    if failed:
        lines = [f"  {name}: {error}" for name, error in failed.items()]
        raise AblationError("\n".join([f"{len(failed)} of {len(cells)} students failed, the others are done:", *lines]))


_stop: Event | None = None


def _start_worker(jobs: int, devices: "Queue[int]", stop: Event) -> None:
    global _stop
    _stop = stop
    os.environ["TQDM_DISABLE"] = "1"  # one bar is enough
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole terminal; the parent passes it on
    index = devices.get()
    if torch.cuda.device_count():
        os.environ["CUDA_VISIBLE_DEVICES"] = str(index % torch.cuda.device_count())
    else:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // jobs))


def _run_cell(cell: Cell) -> None:
    """Train a student and measure it, if no other process does; what is done of either is not done again."""
    assert _stop is not None
    try:
        cell.folder.root.mkdir(parents=True, exist_ok=True)
        claims = Claims(cell.folder.root / "claim.lock")
    except OSError as error:
        raise write_error(error, cell.folder.root) from error
    if not claims.take(0) or cell.outcome() is not None:
        return
    with preemption() as signalled:

        def should_stop() -> bool:
            assert _stop is not None
            return _stop.is_set() or signalled()

        if should_stop():
            raise Preempted("stopped before it began")
        trained = train_recipe(cell.recipe, cell.folder, should_stop=should_stop)
        report = _measure(cell, should_stop)
    per_step = trained.seconds / trained.steps_done if trained.steps_done else None
    minutes = per_step * cell.recipe.train_student.steps / 60 if per_step is not None else None
    outcome = Outcome(cell.row, cell.lidar_share, cell.seed, report_metrics(report) | {"minutes": minutes})
    content = {**asdict(outcome), "frames": report.frames, "images": report.images, "provenance": surroundings()}
    write_atomically(cell.result, json.dumps(content, indent=1) + "\n")


def _measure(cell: Cell, should_stop: Callable[[], bool]) -> EvaluateReport:
    recipe = cell.recipe
    checkpoint = cell.folder.student / ("best.safetensors" if recipe.data.selection else "last.safetensors")
    student = load_student(checkpoint, expected=recipe.student, expected_bins=recipe.bins).student
    device = resolve_device(recipe.eval.device)
    place(student, device)
    source = _opened(recipe_toml(replace(recipe, name="", ablate=AblateSpec())))
    return evaluate(
        source,
        select(source, cell.measured_on),
        ", ".join(cell.measured_on),
        student,
        None,
        replace(recipe.eval, latency=False, pictures=0),
        device=device,
        precision=resolve_precision(recipe.eval.precision, device),
        decode_size=larger(recipe.teacher_cache.input_size, recipe.student.input_size),
        should_stop=should_stop,
    ).report


def report_metrics(report: EvaluateReport) -> dict[str, float | None]:
    """The numbers of an ablation: against dense truth where the source knows it, else against LiDAR."""
    dense = report.dense_truth or {}
    main = dense["all"].mean if dense else report.student.metric.mean
    return {
        "abs_rel": main.abs_rel,
        "rmse": main.rmse,
        "d1": main.d1,
        **{name: dense[name].mean.abs_rel for name in ("edges", "above_lidar", "at_lidar") if name in dense},
        "overlap": report.consistency.overlap_abs_rel,
        "lidar_protocol": report.student.metric.mean.abs_rel,
    }


def write_table(
    recipe: Recipe, folder: RunFolder, cells: Sequence[Cell], cache_id: str, command: Sequence[str]
) -> tuple[str, Path]:
    """Write RUN/ablate/table.json and table.md of what is done; returns the table and the path of the JSON."""
    results = [outcome for cell in cells if (outcome := cell.outcome()) is not None]
    rows = table_rows([Outcome(**{field.name: result[field.name] for field in fields(Outcome)}) for result in results])
    content = {
        "rows": rows,
        "measured_on": {
            "source": recipe.data.source,
            "split": cells[0].measured_on,
            **{name: results[0][name] for name in ("frames", "images") if results},
        },
        "recipe": asdict(replace(recipe, data=replace(recipe.data, root=""))),
        "students": results,
        "provenance": {"command": shlex.join(command), "cache_id": cache_id, **surroundings()},
    }
    path = folder.ablate / "table.json"
    write_atomically(path, json.dumps(content, indent=1) + "\n")
    table = markdown_table(rows)
    write_atomically(folder.ablate / "table.md", table + "\n")
    return table, path


@cache
def _opened(recipe_text: str) -> Source:
    """The source of a recipe, opened once per process."""
    return _KeptFrames(open_recipe_source(parse_recipe(recipe_text, "recipe")))


class _KeptFrames:
    """A source whose frames, once read, stay in memory."""

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
            self._frames[frame_id] = _remembering(self._source.frame(frame_id))
        return self._frames.get(frame_id) or self._source.frame(frame_id)


def _remembering(frame: Frame) -> Frame:
    return replace(
        frame,
        views=tuple(replace(view, load_image=cache(view.load_image)) if view else None for view in frame.views),
        load_sweep=cache(frame.load_sweep) if frame.load_sweep else None,
        load_truth_m=tuple(cache(load) for load in frame.load_truth_m) if frame.load_truth_m else None,
    )
