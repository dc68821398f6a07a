"""`surround ablate`: train and measure every student of an ablation, as many at a time as the machine allows."""

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
from multiprocessing import get_context
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Event
from pathlib import Path
from threading import Lock, Thread
from typing import Any

import torch

from data_cache.errors import SurroundError
from data_cache.files import write_atomically
from data_cache.shards.reader import CacheReader
from data_cache.stop_signals import STOP_SIGNALS
from pipeline.ablation.student import Cell, plan_cells, train_and_measure
from pipeline.ablation.table import Outcome, ablation_table, table_rows
from pipeline.errors import RecipeError
from pipeline.recipe.config import Recipe
from pipeline.recipe.preemption import preemption
from pipeline.recipe.provenance import surroundings
from pipeline.recipe.run_folder import RunFolder, cache_location
from pipeline.runs.data import frames_to_test, open_data, refuse_leak
from pipeline.runs.stage_one import decided_identity
from stages.compute.progress import Preempted, progress_bar


class AblationError(SurroundError):
    """Some students could not be trained or measured."""


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
        AblationError: if students failed, naming each; the others are trained and in the table all the same.
    """
    if recipe.ablate.measure == "selection" and not recipe.data.selection:
        raise RecipeError(
            "ablate.measure = selection: the recipe names no data.selection; name drives, or measure the test split"
        )
    here = surroundings()  # before hours pass in which the checkout may move
    cells = plan_cells(recipe, folder)
    reader = CacheReader(cache_location(recipe, folder), expected=decided_identity(recipe))
    refuse_leak(reader.frames, frames_to_test(recipe, open_data(recipe.data)))
    my_part = slice(part[0] - 1, None, part[1])
    mine = cells[my_part]
    pending = [cell for cell in mine if cell.outcome() is None]
    jobs = jobs or torch.cuda.device_count() or len(os.sched_getaffinity(0))
    failure: AblationError | None = None
    if pending and train:
        say(f"ablate: {len(pending)} of {len(cells)} students to train, {jobs} at a time, in {folder.ablate}")
        with preemption() as should_stop, progress_bar(len(mine), len(mine) - len(pending), "ablate", "student") as bar:
            try:
                run_cells(pending, jobs, here, lambda _: bar.update(), should_stop)
            except AblationError as error:  # the others are in the table all the same
                failure = error
    outcomes = [cell.outcome() for cell in cells]
    left = outcomes[my_part].count(None)
    results = [outcome for outcome in outcomes if outcome is not None]
    rows = table_rows([Outcome(**{field.name: result[field.name] for field in fields(Outcome)}) for result in results])
    path = None
    if train:
        provenance = {"command": shlex.join(command), "cache_id": reader.identity.sha256, **here}
        path = _write_table(recipe, folder, rows, results, provenance)
    if failure is not None:
        say(ablation_table(rows))
        raise failure
    return AblateRun(
        table=ablation_table(rows),
        path=path,
        done_before=len(mine) - len(pending),
        done=len(pending) - left,
        elsewhere=left if train else 0,
        missing=len(cells) - len(results),
    )


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
    executor = ProcessPoolExecutor(
        min(jobs, len(cells)), context, _start_worker, (os.getpid(), jobs, devices, stop, here)
    )
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


def _start_worker(parent: int, jobs: int, devices: "Queue[int]", stop: Event, here: Mapping[str, object]) -> None:
    global _worker
    _worker = _Worker(stop, here, Lock())
    os.environ["TQDM_DISABLE"] = "1"  # one bar is enough
    for number in STOP_SIGNALS:  # the parent passes them on as the event
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
    Thread(target=_outlive_nobody, args=(_worker, parent), daemon=True).start()
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
    assert _worker is not None
    with _worker.busy:
        train_and_measure(cell, _worker.here, _worker.stop.is_set)


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
        "recipe": asdict(replace(recipe, data=replace(data, root="", masks=""))),
        "students": results,
        "provenance": {**provenance, "students_git_commits": commits},
    }
    path = folder.ablate / ("table.json" if measure == "test" else "selection.json")
    write_atomically(path, json.dumps(content, indent=1) + "\n")
    write_atomically(path.with_suffix(".md"), ablation_table(rows) + "\n")
    return path
