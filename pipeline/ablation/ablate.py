"""`surround ablate`: train and measure every student of an ablation, as many at a time as the machine allows."""

import json
import os
import shlex
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
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
from pipeline.ablation.student import PlannedStudent, plan_students, train_and_measure
from pipeline.ablation.table import Outcome, ablation_table, table_rows
from pipeline.errors import RecipeError
from pipeline.recipe.config import Recipe
from pipeline.recipe.provenance import surroundings
from pipeline.recipe.run_folder import RunFolder, cache_location
from pipeline.runs.splits import frames_to_test, open_data, refuse_leak
from pipeline.runs.stage_one import decided_identity
from stages.compute.preemption import Preempted, preemption
from stages.compute.progress import progress_bar


class AblationError(SurroundError):
    """Some students could not be trained or measured."""


@dataclass(frozen=True)
class AblateRun:
    """The table, and how much of it is done.

    Attributes:
        table: for people.
        path: of the JSON; None where nothing was written.
        done_before, done: students of this part that were done before, and in this run.
        elsewhere: students of this part that other processes are training.
        missing: students of all parts that are not done.
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
    """Train and measure the missing students of an ablation, and write RUN/ablate/table.json and table.md.

    Any number of processes may work on one ablation: a student is locked by the process that trains it.

    Args:
        recipe, folder: of the run whose cache all students learn from.
        jobs: students at a time; 0 for one per GPU, or per core of a machine without.
        part: (I, N), every N-th student from the I-th; the table holds all students that are done by then.
        train: False to make the table of what is done so far, and write nothing.
        command: as typed, for the table's provenance.
        say: gets a line about progress.

    Raises:
        Preempted: after the students in training have saved.
        RecipeError: if a row's overrides make no recipe or no fair comparison, or test and training frames overlap.
        CacheError, TrainingError: if the cache is not complete, is of another recipe, or lacks what a row needs.
        AblationError: if students failed, naming each; the others are trained and in the table nevertheless.
    """
    if recipe.ablate.measure == "selection" and not recipe.data.selection:
        raise RecipeError(
            "ablate.measure = selection: the recipe names no data.selection; name drives, or measure the test split"
        )
    here = surroundings()  # now: the checkout may change while students train
    students = plan_students(recipe, folder)
    reader = CacheReader(cache_location(recipe, folder), expected=decided_identity(recipe))
    refuse_leak(reader.frames, frames_to_test(recipe, open_data(recipe.data)))
    my_part = slice(part[0] - 1, None, part[1])
    mine = students[my_part]
    pending = [student for student in mine if student.outcome() is None]
    jobs = jobs or torch.cuda.device_count() or len(os.sched_getaffinity(0))
    failure: AblationError | None = None
    if pending and train:
        say(f"ablate: {len(pending)} of {len(students)} students to train, {jobs} at a time, in {folder.ablate}")
        with preemption() as should_stop, progress_bar(len(mine), len(mine) - len(pending), "ablate", "student") as bar:
            try:
                train_students(pending, jobs, here, lambda _: bar.update(), should_stop)
            except AblationError as error:  # the table still shows the others
                failure = error
    outcomes = [student.outcome() for student in students]
    left = outcomes[my_part].count(None)
    results = [outcome for outcome in outcomes if outcome is not None]
    names = [field.name for field in fields(Outcome)]
    rows = table_rows([Outcome(**{name: result[name] for name in names if name in result}) for result in results])
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
        missing=len(students) - len(results),
    )


def train_students(
    students: Sequence[PlannedStudent],
    jobs: int,
    here: Mapping[str, object],
    on_done: Callable[[PlannedStudent], object],
    should_stop: Callable[[], bool],
) -> None:
    """Train and measure students in at most `jobs` processes, each with one GPU or an equal share of the cores.

    Args:
        students: which ones.
        jobs: number of processes; the cores are divided by it, also when fewer students are left.
        here: provenance of this process, kept with each result.
        on_done: called in this process after each student.
        should_stop: asked twice a second.
    """
    context = get_context("spawn")
    with _signals_blocked():
        stop, devices = context.Event(), context.Queue()
    for index in range(jobs):
        devices.put(index)
    executor = ProcessPoolExecutor(
        min(jobs, len(students)), context, _start_worker, (os.getpid(), jobs, devices, stop, here)
    )
    failed: dict[str, SurroundError] = {}
    try:
        with _signals_blocked():
            running = {executor.submit(_train_in_worker, student): student for student in students}
        while running:
            finished, _ = wait(running, timeout=0.5, return_when=FIRST_COMPLETED)
            if should_stop():
                stop.set()
            for future in finished:
                student = running.pop(future)
                try:
                    future.result()
                except Preempted:
                    raise Preempted("stopped; the students in training have saved, finished ones are kept") from None
                except BrokenProcessPool as error:
                    if should_stop():
                        raise Preempted("stopped; finished students are kept") from error
                    raise AblationError(
                        "a process of the ablation was killed, perhaps because memory ran out; finished students are"
                        f" kept. Run the same command again, with fewer --jobs than {jobs} if memory is the reason"
                    ) from error
                except SurroundError as error:  # the other students go on
                    failed[f"{student.row}, LiDAR {student.lidar_share:.0%}, seed {student.seed}"] = error
                on_done(student)
    finally:
        stop.set()
        executor.shutdown(cancel_futures=True)
    if failed:
        lines = [f"  {name}: {error}" for name, error in failed.items()]
        raise AblationError(
            "\n".join([f"{len(failed)} of {len(students)} students failed, the others are done:", *lines])
        )


@contextmanager
def _signals_blocked() -> Iterator[None]:
    """Start processes inside: they inherit the block, so a signal to the group cannot kill them before they ignore it.

    Multiprocessing's own tracker, which starts with the first event, unblocks some signals.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@dataclass(frozen=True, eq=False)
class _Worker:
    """State of a process that trains students."""

    stop: Event
    here: Mapping[str, object]
    busy: Lock


_worker: _Worker | None = None


def _start_worker(parent: int, jobs: int, devices: "Queue[int]", stop: Event, here: Mapping[str, object]) -> None:
    global _worker
    _worker = _Worker(stop, here, Lock())
    os.environ["TQDM_DISABLE"] = "1"  # the parent shows the only bar
    for number in STOP_SIGNALS:  # the parent passes them on as the event
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
    Thread(target=_end_with_parent, args=(_worker, parent), daemon=True).start()
    index = devices.get()
    if count := torch.cuda.device_count():
        given = os.environ.get("CUDA_VISIBLE_DEVICES", "")
        names = given.split(",") if given else [str(i) for i in range(count)]
        os.environ["CUDA_VISIBLE_DEVICES"] = names[index % count]
    else:
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // jobs))


def _end_with_parent(worker: _Worker, parent: int) -> None:
    """End this process, with its student saved, when the process that started it has ended."""
    while os.getppid() == parent:
        time.sleep(1)
    worker.stop.set()
    with worker.busy:
        os._exit(1)


def _train_in_worker(student: PlannedStudent) -> None:
    assert _worker is not None
    with _worker.busy:
        train_and_measure(student, _worker.here, _worker.stop.is_set)


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
