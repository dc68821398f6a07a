"""`surround ablate`: train and measure every student of an ablation, as many at a time as the machine allows."""

import hashlib
import json
import os
import shlex
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from functools import cache, lru_cache
from multiprocessing import get_context
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Event
from pathlib import Path
from threading import Lock, Thread
from typing import Any

import torch

from data_cache.claims import Claims
from data_cache.errors import SurroundError
from data_cache.files import write_atomically, write_error
from data_cache.images import larger
from data_cache.reader import CacheReader
from data_cache.rig import Frame, Rig
from data_cache.sources import Source, open_source, select
from pipeline.ablation import BASELINE, Outcome, markdown_table, slug, table_rows
from pipeline.config import DataSpec, Recipe, parse_recipe, recipe_toml
from pipeline.errors import RecipeError
from pipeline.folders import RunFolder, cache_location
from pipeline.provenance import surroundings
from pipeline.run import train_recipe
from pipeline.signals import STOP_SIGNALS, preemption
from pipeline.stage_one import decided_identity, open_recipe_source, refuse_leak
from stages.checkpoint import load_student
from stages.devices import place, resolve_device, resolve_precision
from stages.evaluate import EvaluateReport, evaluate
from stages.losses import LossTerms
from stages.progress import Preempted, progress_bar
from stages.train_student import require_tokens

KEPT_FRAMES = 32
"""Up to so many frames to measure on stay in memory between students; the synthetic ones take seconds to render."""


_RESULT_FIELDS = {"row", "lidar_share", "seed", "metrics", "frames", "images", "provenance"}


class AblationError(SurroundError):
    """Some students could not be trained or measured."""


@dataclass(frozen=True)
class Cell:
    """One student of the ablation.

    Attributes:
        row, lidar_share, seed: which one.
        recipe: of that student alone.
        cache_id: of the cache that it learns from.
        folder: its run folder.
    """

    row: str
    lidar_share: float
    seed: int
    recipe: Recipe
    cache_id: str
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
        return content if isinstance(content, dict) and content.keys() >= _RESULT_FIELDS else None


@dataclass(frozen=True)
class AblateRun:
    """The table, and how much of it is done.

    Attributes:
        table: for people.
        path: of the JSON; None where nothing was written.
        done_before, done: students of this part, before and in this run.
        elsewhere: students of this part that other processes were training.
        missing: students of all parts.
    """

    table: str
    path: Path | None
    done_before: int
    done: int
    elsewhere: int
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
        train: False to look at what is done so far, and write nothing.
        command: as typed, for the table's provenance.
        say: tells what goes on.

    Raises:
        Preempted: after the students under way have saved.
        RecipeError: if a row's overrides make no recipe or no fair comparison, or test and training frames overlap.
        CacheError, TrainingError: if the cache is not the recipe's or a row's, not complete, or lacks what a row needs.
        AblationError: if students failed, naming each; the others are trained all the same.
    """
    if recipe.ablate.measure == "selection" and not recipe.data.selection:
        raise RecipeError("ablate.measure = selection: the recipe names no data.selection")
    here = surroundings()  # before hours pass in which the checkout may move
    cells = plan_cells(recipe, folder)
    reader = CacheReader(cache_location(recipe, folder), expected=decided_identity(recipe))
    refuse_leak(reader.frames, select(open_recipe_source(recipe), recipe.data.test))
    mine = cells[part[0] - 1 :: part[1]]
    pending = [cell for cell in mine if cell.outcome() is None]
    jobs = jobs or torch.cuda.device_count() or len(os.sched_getaffinity(0))
    if pending and train:
        say(f"ablate: {len(pending)} of {len(cells)} students to train, {jobs} at a time, in {folder.ablate}")
        with preemption() as should_stop, progress_bar(len(mine), len(mine) - len(pending), "ablate", "student") as bar:
            run_cells(pending, jobs, here, lambda _: bar.update(), should_stop)
    results = [outcome for cell in cells if (outcome := cell.outcome()) is not None]
    rows = table_rows([Outcome(**{field.name: result[field.name] for field in fields(Outcome)}) for result in results])
    path = None
    if train:
        provenance = {"command": shlex.join(command), "cache_id": reader.identity.sha256, **here}
        path = _write_table(recipe, folder, rows, results, provenance)
    left = sum(cell.outcome() is None for cell in pending)
    return AblateRun(
        table=markdown_table(rows),
        path=path,
        done_before=len(mine) - len(pending),
        done=len(pending) - left,
        elsewhere=left if train else 0,
        missing=len(cells) - len(results),
    )


def plan_cells(recipe: Recipe, folder: RunFolder) -> list[Cell]:
    """Every student, all rows of the first seed first: a table cut short compares what can be compared."""
    spec = recipe.ablate
    readers: dict[str, CacheReader] = {}

    def open_cache(own: Recipe) -> CacheReader:
        decided, location = decided_identity(own), own.teacher_cache.location
        key = json.dumps([location, decided], sort_keys=True)
        if key not in readers:
            readers[key] = CacheReader(location, expected=decided)
        return readers[key]

    return [
        _cell(recipe, folder, row, overrides, share, seed, open_cache)
        for seed in spec.seeds
        for share in spec.lidar_shares
        for row, overrides in spec.rows.items()
    ]


def _cell(
    recipe: Recipe,
    folder: RunFolder,
    row: str,
    overrides: Sequence[str],
    lidar_share: float,
    seed: int,
    open_cache: Callable[[Recipe], CacheReader],
) -> Cell:
    off: dict[str, Any] = {field.name: 0.0 for field in fields(LossTerms) if field.name != "supervised"}
    try:
        bare = replace(
            recipe,
            losses=replace(recipe.losses, **off),
            train_student=replace(recipe.train_student, seed=seed, lidar_share=lidar_share),
            teacher_cache=replace(recipe.teacher_cache, location=cache_location(recipe, folder)),
        )
    except ValueError as error:
        raise RecipeError(f"losses: every row starts from the supervised loss alone: {error}") from error
    try:
        own = parse_recipe(recipe_toml(bare), "recipe", overrides)
    except RecipeError as error:
        raise RecipeError(f"row {row!r}: {error}") from error
    if row == BASELINE and own.losses != bare.losses:
        raise RecipeError(f"row {row!r}: it is what the others are compared with and takes no loss of its own")
    # Another recipe has another folder, so that nothing is taken for the result of another student. What does not
    # change the student is left out.
    reader = open_cache(own)
    require_tokens(reader, own.losses)
    cache_id = reader.identity.sha256
    decisive = asdict(own) | {"cache_id": cache_id}
    for section, names in {"data": ("root", "test"), "teacher_cache": ("location", "device", "batch_images")}.items():
        for name in names:
            del decisive[section][name]
    for name in ("name", "ablate", "eval", "cluster"):
        del decisive[name]
    digest = hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()[:8]
    name = f"{slug(row)}-lidar{lidar_share:g}-seed{seed}-{digest}"
    return Cell(row, lidar_share, seed, own, cache_id, RunFolder(folder.ablate / name))


def run_cells(
    cells: Sequence[Cell],
    jobs: int,
    here: Mapping[str, object],
    on_done: Callable[[Cell], object],
    should_stop: Callable[[], bool],
) -> None:
    """Run cells in at most `jobs` processes of their own, one GPU or an equal share of the cores each.

    Args:
        cells: students to train and measure.
        jobs: processes; also what the cores are divided by, so that the last student is trained like the others.
        here: provenance of this process, kept with each result.
        on_done: called in this process after each cell.
        should_stop: asked twice a second.
    """
    context = get_context("spawn")
    with _signals_blocked():
        stop, devices = context.Event(), context.Queue()
    for index in range(jobs):
        devices.put(index)
    executor = ProcessPoolExecutor(min(jobs, len(cells)), context, _start_worker, (jobs, devices, stop, here))
    failed: dict[str, SurroundError] = {}
    try:
        with _signals_blocked():
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
                    if should_stop():
                        raise Preempted("stopped; finished students are kept") from error
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


@contextmanager
def _signals_blocked() -> Iterator[None]:
    """Inside, processes are started that a signal to the whole group does not kill before they can ignore it.

    They are born with it blocked. Multiprocessing's own tracker, which comes with the first event, unblocks some.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@dataclass(frozen=True, eq=False)
class _Worker:
    """What a process that trains students knows besides them."""

    stop: Event
    here: Mapping[str, object]
    busy: Lock


_worker: _Worker | None = None


def _start_worker(jobs: int, devices: "Queue[int]", stop: Event, here: Mapping[str, object]) -> None:
    global _worker
    _worker = _Worker(stop, here, Lock())
    os.environ["TQDM_DISABLE"] = "1"  # one bar is enough
    for number in STOP_SIGNALS:  # the parent passes them on as the event
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
    Thread(target=_outlive_nobody, args=(_worker, os.getppid()), daemon=True).start()
    index = devices.get()
    if count := torch.cuda.device_count():
        given = os.environ.get("CUDA_VISIBLE_DEVICES", "")
        names = given.split(",") if given else [str(i) for i in range(count)]
        os.environ["CUDA_VISIBLE_DEVICES"] = names[index % count]
    else:
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // jobs))


def _outlive_nobody(worker: _Worker, parent: int) -> None:
    """End this process, with its student saved, when the one that started it is no more."""
    while os.getppid() == parent:
        time.sleep(1)
    worker.stop.set()
    with worker.busy:
        os._exit(1)


def _run_cell(cell: Cell) -> None:
    """Train a student and measure it, if no other process does; what is done of either is not done again."""
    assert _worker is not None
    with _worker.busy:
        _train_and_measure(cell, _worker.here, _worker.stop.is_set)


def _train_and_measure(cell: Cell, here: Mapping[str, object], should_stop: Callable[[], bool]) -> None:
    try:
        cell.folder.root.mkdir(parents=True, exist_ok=True)
        claims = Claims(cell.folder.root / "claim.lock")
    except OSError as error:
        raise write_error(error, cell.folder.root) from error
    if not claims.take(0) or cell.outcome() is not None:
        return
    if should_stop():
        raise Preempted("stopped before it began")
    trained = train_recipe(cell.recipe, cell.folder, should_stop=should_stop)
    report = _measure(cell, should_stop)
    per_step = trained.seconds / trained.steps_done if trained.steps_done else None
    minutes = per_step * cell.recipe.train_student.steps / 60 if per_step is not None else None
    outcome = Outcome(cell.row, cell.lidar_share, cell.seed, report_metrics(report) | {"minutes": minutes})
    provenance = {**here, "cache_id": cell.cache_id}
    content = {**asdict(outcome), "frames": report.frames, "images": report.images, "provenance": provenance}
    write_atomically(cell.result, json.dumps(content, indent=1) + "\n")


def _measure(cell: Cell, should_stop: Callable[[], bool]) -> EvaluateReport:
    recipe = cell.recipe
    checkpoint = cell.folder.student / ("best.safetensors" if recipe.data.selection else "last.safetensors")
    student = load_student(checkpoint, expected=recipe.student, expected_bins=recipe.bins).student
    device = resolve_device(recipe.eval.device)
    place(student, device)
    source = _opened(recipe.data)
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


def _write_table(
    recipe: Recipe,
    folder: RunFolder,
    rows: Sequence[Mapping[str, object]],
    results: Sequence[Mapping[str, Any]],
    provenance: Mapping[str, object],
) -> Path:
    """Write RUN/ablate/table.json and table.md, or selection.json and .md; returns the path of the JSON."""
    data, measure = recipe.data, recipe.ablate.measure
    commits = sorted({str(result["provenance"]["git_commit"]) for result in results})
    content = {
        "rows": rows,
        "measured_on": {
            "source": data.source,
            "split": data.test if measure == "test" else data.selection,
            **{name: results[0][name] for name in ("frames", "images") if results},
        },
        "recipe": asdict(replace(recipe, data=replace(data, root=""))),
        "students": results,
        "provenance": {**provenance, "students_git_commits": commits},
    }
    path = folder.ablate / ("table.json" if measure == "test" else "selection.json")
    write_atomically(path, json.dumps(content, indent=1) + "\n")
    write_atomically(path.with_suffix(".md"), markdown_table(rows) + "\n")
    return path


@lru_cache(maxsize=1)
def _opened(data: DataSpec) -> Source:
    """The source of all students, opened once per process."""
    return _KeptFrames(open_source(data.source, Path(data.root) if data.root else None, data.version))


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
