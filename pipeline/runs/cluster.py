"""Stage one on the workers of a dask scheduler, which hands out shard numbers and takes back a few bytes."""

import asyncio
import functools
import logging
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_cache.errors import SettingError, SurroundError
from data_cache.stop_signals import deaf_children
from stages.compute.preemption import Preempted
from stages.compute.waiting import DECIDED_BY

if TYPE_CHECKING:
    from distributed import Client

    from data_cache.shards.writer import CacheWriter
    from pipeline.runs.stage_one import StageOne
    from stages.teacher_cache import TeacherCacheReport
from pipeline.recipe.cluster import ClusterSpec

ANY_PORT = ":0"
SCHEDULERS = ("threads", "local", "slurm")
SCHEMES = ("tcp", "tls", "ws", "wss", "ucx")
"""Schemes of addresses at which a dask scheduler can answer."""
POLL_S = 0.2
PROBE_S = 5
CONNECT_S = 15
LOOK_S = 30
ALLOWED_DEATHS = 10
"""Workers that may die over one shard before the shard is taken to be the cause; preempted ones count, too."""


class ClusterError(SurroundError):
    """The scheduler or its workers failed."""


@dataclass(frozen=True)
class ShardJob:
    """Everything but its number that a worker needs to write a shard.

    Attributes:
        recipe_toml: the resolved recipe, with absolute folders.
        location: of the cache, absolute path or URL.
        retry_quarantined: whether finished shards with quarantined frames are written again.
        knots: what fit-bins has fitted; None if the recipe's strategy needs none.
        run_id: differs from run to run: a worker that outlives a run opens data, teacher and cache anew for the next.
    """

    recipe_toml: str
    location: str
    retry_quarantined: bool
    knots: tuple[float, ...] | None = None
    run_id: str = field(default_factory=lambda: uuid.uuid4().hex)


def require_scheduler(name: str) -> None:
    """Check the value of --scheduler; at an address, a scheduler must answer. Raises SettingError."""
    if name not in SCHEDULERS:
        count_workers(name)


def require_address(address: str) -> None:
    """Check the form of an address; no scheduler is asked. Raises SettingError."""
    scheme, colon, _ = address.partition("://")
    if not colon or scheme not in SCHEMES:
        raise SettingError(
            f"--scheduler: expected {', '.join(SCHEDULERS)} or an address like tcp://host:8786 ({', '.join(SCHEMES)}),"
            f" got {address!r}"
        )


def count_workers(address: str) -> int:
    """Count the workers of the scheduler at an address. Raises SettingError if none answers within PROBE_S."""
    require_address(address)
    try:
        return asyncio.run(_call(address))
    except (
        OSError,
        ValueError,
        TypeError,
        ImportError,
    ) as error:  # the last two: ucx is not installed, tls lacks files
        raise _no_answer(address, error) from error


async def _call(address: str) -> int:
    """Ask a scheduler for its workers, without a Client: one that fails leaves threads and log messages behind."""
    from distributed.comm import connect
    from distributed.core import send_recv
    from distributed.security import Security

    comm = await connect(address, timeout=PROBE_S, **Security().get_connection_args("client"))
    try:
        identity = await asyncio.wait_for(send_recv(comm, op="identity", n_workers=-1), PROBE_S)
        return len(identity["workers"])
    finally:
        comm.abort()


def _no_answer(address: str, error: Exception) -> SettingError:
    return SettingError(
        f"--scheduler {address}: no dask scheduler answers there ({error}); start one with `dask scheduler` and workers"
        f" with `dask worker {address} --nthreads 1`"
    )


def write_on_cluster(
    scheduler: str,
    spec: ClusterSpec,
    job: ShardJob,
    shards: Sequence[int],
    *,
    logs: Path | None = None,
    on_shard: Callable[[int], object],
    say: Callable[[str], object],
    should_stop: Callable[[], bool],
) -> "TeacherCacheReport":
    """Write shards on the workers of a scheduler.

    If a worker dies, the scheduler gives its shard to another one, which writes it from the beginning.

    Args:
        scheduler: local, slurm or an address.
        spec: the workers to start, for local and slurm.
        job: what every worker needs.
        shards: numbers of shards.
        logs: folder for the logs of SLURM's jobs.
        on_shard: called with each shard as it is done.
        say: gets a line when no worker is running.
        should_stop: asked several times a second.

    Raises:
        Preempted: if `should_stop` says so. Finished shards are kept; workers at an address finish their shard.
        SettingError: if the scheduler does not answer or is not installed.
        ClusterError: if a shard brought down several workers, or the connection to the scheduler was lost.
        SurroundError: the first error of a worker; the other shards are then cancelled.
    """
    from distributed import CancelledError, KilledWorker, as_completed
    from distributed.comm import CommClosedError

    from stages.teacher_cache import TeacherCacheReport

    logging.getLogger("distributed.client").setLevel(logging.CRITICAL)  # a lost connection is ours to report
    report = TeacherCacheReport()
    with _workers(scheduler, spec, logs) as workers:
        client = workers.client
        numbers = dict(zip(client.map(functools.partial(write_shard, job), shards, pure=False), shards, strict=True))
        done = as_completed(list(numbers), loop=client.loop)
        look_at = time.monotonic() + CONNECT_S
        try:
            while not done.is_empty():
                if should_stop():
                    raise Preempted("stopped before all shards were written; finished shards are kept")
                for future in done.next_batch(block=False):
                    report += future.result()
                    on_shard(numbers.pop(future))
                    future.release()
                if time.monotonic() > look_at:
                    look_at = time.monotonic() + LOOK_S
                    workers.keep_up()
                    if not client.scheduler_info(n_workers=-1)["workers"]:
                        say(_no_workers(scheduler))
                time.sleep(POLL_S)
        except KilledWorker as error:
            raise ClusterError(
                f"a shard brought down {ALLOWED_DEATHS} workers in a row, the last one {error.last_worker.address};"
                " look at the workers' logs; most often memory ran out. Finished shards are kept"
            ) from error
        except (CancelledError, OSError) as error:
            lost = isinstance(error, (CancelledError, CommClosedError)) or client.status != "running"
            if not lost:  # an error of a shard
                raise
            raise ClusterError(
                f"the connection to the scheduler was lost ({scheduler}); finished shards are kept, and workers may"
                " still finish theirs; run the same command again"
            ) from error
        finally:
            with suppress(OSError):  # the scheduler may be gone
                client.cancel(list(numbers))
    return report


def job_script(spec: ClusterSpec) -> str:
    """Return the batch script of one SLURM worker, as it would be submitted."""
    with _slurm(spec, workers=0, logs=None) as cluster:
        script: str = cluster.job_script()
    return script


_ONE_SHARD_AT_A_TIME = threading.Lock()


def write_shard(job: ShardJob, shard: int) -> "TeacherCacheReport":
    """Write one shard; runs in a worker, which opens data set and teacher once. Raises SurroundError."""
    with _ONE_SHARD_AT_A_TIME:  # a worker with several threads has one teacher, which uses all of them
        stage, writer = _opened(job)
        return stage.write(writer, [shard], retry_quarantined=job.retry_quarantined)


@functools.lru_cache(maxsize=1)
def _opened(job: ShardJob) -> "tuple[StageOne, CacheWriter]":
    from pipeline.recipe.config import parse_recipe
    from pipeline.runs.stage_one import open_stage_one, with_begun_runtime

    _choose_gpu()
    recipe = with_begun_runtime(parse_recipe(job.recipe_toml, "recipe"), job.location)
    stage = open_stage_one(recipe, job.knots)
    return stage, stage.writer(job.location)


def _choose_gpu() -> None:
    """Take the i-th GPU in the i-th worker of `local`, whose workers are numbered."""
    import torch
    from distributed import get_worker

    name = get_worker().name
    if isinstance(name, int) and torch.cuda.device_count() > 1:
        torch.cuda.set_device(name % torch.cuda.device_count())


@dataclass(frozen=True, eq=False)
class _Workers:
    """A connection to the scheduler; `keep_up`, called now and then, replaces lost workers."""

    client: "Client"
    keep_up: Callable[[], object] = lambda: None


@contextmanager
def _workers(scheduler: str, spec: ClusterSpec, logs: Path | None) -> Iterator[_Workers]:
    import dask
    from distributed import Client, LocalCluster

    if scheduler not in ("local", "slurm"):
        try:
            client = Client(scheduler, timeout=CONNECT_S, set_as_default=False)
        except (OSError, TimeoutError, ValueError) as error:
            raise _no_answer(scheduler, error) from error
        with client:
            yield _Workers(client)
        return
    settings = {"distributed.scheduler.allowed-failures": ALLOWED_DEATHS}
    if scheduler == "slurm":
        wanted = spec.workers or 1
        with (
            dask.config.set(settings),
            _slurm(spec, wanted, logs) as cluster,
            Client(cluster, set_as_default=False) as client,
        ):
            # Scaling again submits a job for every worker whose time was up or that was preempted.
            yield _Workers(client, lambda: cluster.scale(jobs=wanted))
        return
    cores = len(os.sched_getaffinity(0))
    workers = spec.workers or _gpu_count() or cores
    settings["distributed.nanny.pre-spawn-environ.OMP_NUM_THREADS"] = max(1, cores // workers)
    with dask.config.set(settings):
        with deaf_children():
            started = LocalCluster(
                n_workers=workers, threads_per_worker=1, dashboard_address=ANY_PORT, silence_logs=logging.CRITICAL
            )
        with started as cluster, Client(cluster, set_as_default=False) as client:
            yield _Workers(client)


@contextmanager
def _slurm(spec: ClusterSpec, workers: int, logs: Path | None) -> Iterator[Any]:
    try:
        from dask_jobqueue import SLURMCluster
    except ImportError as error:
        raise SettingError("--scheduler slurm needs pip install 'surround-distill[slurm]'") from error
    environment = {name: os.environ[name] for name in DECIDED_BY if name in os.environ}
    environment["OMP_NUM_THREADS"] = str(spec.cores)
    # One worker with one dask thread per job; the teacher's lanes use the job's cores.
    with SLURMCluster(
        n_workers=workers,
        cores=1,
        processes=1,
        job_cpu=spec.cores,
        memory=spec.memory,
        walltime=spec.walltime,
        queue=spec.partition or None,
        account=spec.account or None,
        job_extra_directives=list(spec.directives),
        job_script_prologue=[f"export {name}={value}" for name, value in environment.items()] + list(spec.prologue),
        scheduler_options={"dashboard_address": ANY_PORT},
        log_directory=str(logs) if logs else None,
    ) as cluster:
        yield cluster


def _gpu_count() -> int:
    import torch

    return torch.cuda.device_count()


def _no_workers(scheduler: str) -> str:
    if scheduler == "slurm":
        return "no worker is running; `squeue --me` shows where its job stands"
    if scheduler == "local":
        return "no worker is alive; they start again by themselves"
    return f"no worker is connected to {scheduler}; start some with `dask worker {scheduler} --nthreads 1`"
