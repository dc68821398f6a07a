"""Runs stage one of a recipe: fills the cache of a run folder."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from data_cache.files import size_text
from data_cache.shards.reader import CacheStatus, cache_status
from data_cache.shards.writer import CachePlan
from data_cache.storage.store import CacheStore
from pipeline.recipe.config import Recipe, keep_recipe, recipe_toml
from pipeline.recipe.run_folder import RunFolder, cache_location
from pipeline.runs import cluster
from pipeline.runs.stage_one import open_run_stage_one
from pipeline.weights.catalog import KNOWN
from pipeline.weights.hub import PREFIX
from stages.compute.preemption import preemption
from stages.compute.progress import progress_bar
from stages.teacher_cache import TeacherCacheReport


@dataclass(frozen=True)
class TeacherCacheRun:
    """What stage one did in this run, and the status of the whole cache."""

    location: str
    plan: CachePlan
    report: TeacherCacheReport
    seconds: float
    status: CacheStatus


def run_teacher_cache(
    recipe: Recipe,
    folder: RunFolder,
    *,
    scheduler: str = "threads",
    part: tuple[int, int] = (1, 1),
    retry_quarantined: bool = False,
    say: Callable[[str], object] = lambda _: None,
) -> TeacherCacheRun:
    """Stage one: write the missing shards of the cache.

    Args:
        recipe, folder: of the run.
        scheduler: threads, local, slurm or the address of a dask scheduler.
        part: (I, N), every N-th shard from the I-th.
        retry_quarantined: try quarantined frames again.
        say: gets a line with the plan, and one whenever no worker is running.
    """
    cluster.require_scheduler(scheduler)
    stage = open_run_stage_one(recipe, folder)
    location = cache_location(recipe, folder)
    writer = stage.writer(location)
    keep_recipe(recipe, folder.recipe)
    plan = writer.plan(part=part, retry_quarantined=retry_quarantined)
    if plan.pending:
        say(_announcement(plan, writer.store))
    begin = time.perf_counter()
    frames = {shard: len(writer.frame_range(shard)) for shard in plan.pending}
    with preemption() as should_stop, progress_bar(sum(frames.values()), 0, "teacher-cache", "frame") as bar:
        if scheduler == "threads" or not plan.pending:
            report = stage.write(
                writer,
                plan.pending,
                retry_quarantined=retry_quarantined,
                on_frame=bar.update,
                should_stop=should_stop,
            )
        else:
            report = cluster.write_on_cluster(
                scheduler,
                recipe.cluster,
                cluster.ShardJob(recipe_toml(_portable(recipe)), location, retry_quarantined, stage.knots),
                plan.pending,
                logs=folder.slurm_logs.absolute(),
                on_shard=lambda shard: bar.update(frames[shard]),
                say=say,
                should_stop=should_stop,
            )
            writer.plan(part=part)  # removes partial files of workers that were killed
    return TeacherCacheRun(writer.store.location, plan, report, time.perf_counter() - begin, cache_status(location))


def _announcement(plan: CachePlan, store: CacheStore) -> str:
    text = (
        f"teacher-cache: {len(plan.pending)} of {plan.in_part} shards to write to {store.location},"
        f" {'about' if plan.exact else 'at most'} {size_text(plan.needed_bytes)}"
    )
    free_bytes = store.free_bytes()
    if free_bytes is None:
        return text
    text += f", {size_text(free_bytes)} free"
    return text + ("; that is NOT ENOUGH" if plan.exact and free_bytes < plan.needed_bytes else "")


def _portable(recipe: Recipe) -> Recipe:
    """The recipe with an absolute weights folder, for workers in another working folder."""
    spec = recipe.teacher_cache
    if spec.weights in KNOWN or spec.weights.startswith(PREFIX):
        return recipe
    return replace(recipe, teacher_cache=replace(spec, weights=str(Path(spec.weights).absolute())))
