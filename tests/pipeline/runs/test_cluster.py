"""Stage one by every engine, with real processes, real workers and real signals."""

import os
import re
import shutil
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from support.caches import contents
from support.commands import (
    Command,
    HeldFrame,
    dask_process,
    descendants,
    free_port,
    sweep,
    wait_until,
    write_drive,
    write_recipe,
)
from support.surround import surround

from data_cache.shards.reader import cache_status
from data_cache.storage.claims import Claims
from pipeline.recipe.cluster import ClusterSpec
from pipeline.runs.cluster import job_script

FRAMES = 6
TWO_WORKERS = "[cluster]\nworkers = 2\n"


@pytest.fixture(scope="module")
def drive(tmp_path_factory):
    return write_drive(tmp_path_factory.mktemp("drive"), FRAMES)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory, teacher_folder):
    return write_recipe(tmp_path_factory.mktemp("recipe") / "r.toml", teacher_folder, FRAMES, more=TWO_WORKERS)


@pytest.fixture(scope="module")
def straight(drive, recipe, tmp_path_factory):
    """Contents of the cache of an undisturbed run in this process."""
    run = tmp_path_factory.mktemp("straight")
    code, text = surround("teacher-cache", recipe, "--data", drive, "--run", run)
    assert (code, "6 shards written" in text) == (0, True), text
    return contents(run / "cache")


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """A scheduler on loopback with one worker, as somebody who runs a cluster starts them."""
    log = tmp_path_factory.mktemp("dask") / "log"
    url = f"tcp://127.0.0.1:{free_port()}"
    with dask_scheduler(url, log) as scheduler:
        with dask_worker(url, log):
            yield url
        assert scheduler.poll() is None


def dask_scheduler(url: str, log: Path):
    host, port = url.removeprefix("tcp://").split(":")
    return dask_process("scheduler", "--host", host, "--port", port, "--no-dashboard", "--no-jupyter", log=log)


def dask_worker(url: str, log: Path):
    """A worker; it waits for the scheduler."""
    return dask_process("worker", url, "--nthreads", 1, "--no-dashboard", "--death-timeout", 60, log=log)


@pytest.mark.torture
def test_local_workers_write_the_bytes_of_one_process(drive, recipe, straight, tmp_path):
    command = Command(
        tmp_path / "log", "teacher-cache", recipe, "--data", drive, "--run", tmp_path, "--scheduler", "local"
    )
    assert command.end() == 0, command.output
    assert contents(tmp_path / "cache") == straight
    assert "6 shards written (6 frames" in command.output
    for noise in ("Traceback", "distributed.", "Warning"):
        assert noise not in command.output, command.output


@pytest.mark.torture
def test_a_foreign_scheduler_writes_the_same_bytes_run_after_run(drive, recipe, straight, address, tmp_path):
    for run in ("one", "two"):
        options = ("--data", drive, "--run", tmp_path / run, "--scheduler", address)
        code, text = surround("teacher-cache", recipe, *options)
        assert (code, "6 shards written" in text) == (0, True), text
        assert contents(tmp_path / run / "cache") == straight


@pytest.mark.torture
def test_a_worker_killed_in_the_middle_of_a_shard_has_it_done_again_by_another(drive, recipe, straight, tmp_path):
    with HeldFrame(sweep(drive, 3)) as held:
        command = Command(
            tmp_path / "log", "teacher-cache", recipe, "--data", drive, "--run", tmp_path, "--scheduler", "local"
        )
        held.wait_for_reader()
        wait_until(lambda: held.readers(descendants(command.process.pid)) != [], "the worker that reads")
        (victim,) = held.readers(descendants(command.process.pid))
        assert cache_status(tmp_path / "cache").shards_open >= 1
        held.restore()
        os.kill(victim, signal.SIGKILL)
        assert command.end() == 0, command.output
    assert contents(tmp_path / "cache") == straight
    # A finished shard whose worker dies before it has told the scheduler is asked for again, and found to be done.
    written, done = re.search(r"(\d) shards? written .* (\d) already done", command.output).groups()
    assert int(written) + int(done) == FRAMES
    assert "Traceback" not in command.output


@pytest.mark.torture
def test_a_worker_of_a_foreign_scheduler_killed_in_the_middle_of_a_shard_has_it_done_again(
    drive, recipe, straight, address, tmp_path
):
    def others() -> list[int]:
        found = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
        return [pid for pid in found if pid != os.getpid()]

    def kill_the_reader() -> None:
        held.wait_for_reader()
        wait_until(lambda: held.readers(others()) != [], "the worker that reads")
        victims = held.readers(others())
        held.restore()
        for victim in victims:
            os.kill(victim, signal.SIGKILL)

    with HeldFrame(sweep(drive, 3)) as held, ThreadPoolExecutor(1) as pool:
        killing = pool.submit(kill_the_reader)
        code, text = surround("teacher-cache", recipe, "--data", drive, "--run", tmp_path, "--scheduler", address)
        killing.result()  # a kill that did not happen is no pass
    assert (code, "6 of 6 shards" in text, "Traceback" in text) == (0, True, False), text
    assert contents(tmp_path / "cache") == straight


@pytest.mark.torture
def test_a_scheduler_that_is_lost_is_one_clear_error_and_the_same_command_goes_on(drive, recipe, straight, tmp_path):
    log, url = tmp_path / "dask", f"tcp://127.0.0.1:{free_port()}"
    options = ("teacher-cache", recipe, "--data", drive, "--run", tmp_path / "run")
    with HeldFrame(sweep(drive, 3)) as held, dask_scheduler(url, log) as scheduler, dask_worker(url, log):
        command = Command(tmp_path / "log", *options, "--scheduler", url)
        held.wait_for_reader()
        scheduler.kill()
        assert command.end() == 1, command.output
    assert "Error: the connection to the scheduler was lost" in command.output
    for noise in ("Traceback", "distributed.", "Warning"):
        assert noise not in command.output, command.output
    assert cache_status(tmp_path / "run/cache").shards_done >= 1
    assert surround(*options)[0] == 0
    assert contents(tmp_path / "run/cache") == straight


def test_two_parts_at_once_fill_one_cache(drive, recipe, straight, tmp_path):
    options = ("teacher-cache", recipe, "--data", drive, "--run", tmp_path)
    parts = [Command(tmp_path / f"log-{i}", *options, "--part", f"{i}/2") for i in (1, 2)]
    assert [part.end() for part in parts] == [0, 0], [part.output for part in parts]
    assert contents(tmp_path / "cache") == straight
    assert all("3 shards written" in part.output for part in parts)


def test_a_job_array_may_have_more_parts_than_there_are_shards(drive, recipe, straight, tmp_path):
    options = ("teacher-cache", recipe, "--data", drive, "--run", tmp_path)
    for i in range(8, 0, -1):
        code, text = surround(*options, "--part", f"{i}/8")
        assert code == 0, text
        nothing = f"no shards in part {i}/8; the cache has only 6" in text
        assert (nothing, "1 shard written" in text) == (i > 6, i <= 6), text
    assert contents(tmp_path / "cache") == straight


@pytest.mark.torture
def test_the_same_part_started_twice_damages_nothing_and_the_loser_says_so(drive, recipe, straight, tmp_path):
    options = ("teacher-cache", recipe, "--data", drive, "--run", tmp_path)
    with HeldFrame(sweep(drive, 2)) as held:
        first = Command(tmp_path / "first", *options)
        held.wait_for_reader()
        second = Command(tmp_path / "second", *options)
        assert second.end() == 1, second.output
        assert re.search(r"\d shards? left to another process that is writing now", second.output)
        assert "workers of an earlier run may still be finishing, or the same part" in second.output
        held.let_go()
        assert first.end() == 0, first.output
    assert contents(tmp_path / "cache") == straight
    written = [int(re.search(r"(\d) shards? written", c.output)[1]) for c in (first, second)]
    assert sum(written) == FRAMES


@pytest.mark.parametrize(
    ("engine", "numbers", "group"),
    [
        ("threads", [signal.SIGUSR1], False),
        # A queue and a terminal send theirs to all processes; the workers must neither die of any nor complain.
        pytest.param("local", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT], True, marks=pytest.mark.torture),
    ],
)
def test_a_signal_ends_with_75_and_the_same_command_goes_on(drive, recipe, straight, tmp_path, engine, numbers, group):
    options = ("teacher-cache", recipe, "--data", drive, "--run", tmp_path, "--scheduler", engine)
    with HeldFrame(sweep(drive, 4)) as held:
        command = Command(tmp_path / "log", *options)
        held.wait_for_reader()
        for number in numbers:
            command.signal(number, group=group)
        held.restore()
        threading.Timer(1, held.let_go).start()  # a thread that reads cannot be interrupted
        assert command.end() == 75, command.output
        assert "Run the same command to continue" in command.output
        assert "Traceback" not in command.output
    assert cache_status(tmp_path / "cache").shards_done > 0  # the open one was finished or dropped
    assert surround(*options[:-1], "threads")[0] == 0
    assert contents(tmp_path / "cache") == straight


@pytest.mark.torture
def test_an_error_in_a_worker_is_the_message_of_one_process(drive, recipe, straight, address, tmp_path):
    """The worker meets a cache folder into which it cannot write; root can write everywhere but into a file."""
    options = ("teacher-cache", recipe, "--data", drive, "--run", tmp_path)
    assert surround(*options, "--part", "1/6")[0] == 0
    array = tmp_path / "cache/arrays.zarr/relation"
    metadata = (array / "zarr.json").read_bytes()
    for path in array.glob("c.*"):
        path.unlink()
    (tmp_path / "cache/receipts/000000.json").unlink()
    blocked = array / "c.3.0.0.0"
    blocked.mkdir()
    for engine in ("threads", address):
        code, text = surround(*options, "--scheduler", engine)
        assert (code, "Error: cannot write" in text, "Traceback" in text) == (1, True, False), text
    blocked.rmdir()
    assert (array / "zarr.json").read_bytes() == metadata
    assert surround(*options, "--scheduler", address)[0] == 0
    assert contents(tmp_path / "cache") == straight


def test_a_worker_that_finds_the_cache_of_another_recipe_says_what_one_process_says(
    drive, recipe, address, tmp_path, monkeypatch
):
    """Somebody replaces the cache between the plan and the first shard."""
    options = ("teacher-cache", recipe, "--data", drive)
    assert surround(*options, "--run", tmp_path / "other", "--part", "1/6", "--set", "bins.sigma=2.0")[0] == 0

    def replace(announcement: str) -> None:
        (tmp_path / "run/cache/cache.json").write_bytes((tmp_path / "other/cache/cache.json").read_bytes())

    monkeypatch.setattr("pipeline.cli.stages.say", replace)
    code, text = surround(*options, "--run", tmp_path / "run", "--scheduler", address)
    assert (code, "bin_sigma: cache has 2.0, recipe says" in text, "Traceback" in text) == (1, True, False), text
    assert text.count("Error: ") == 1


def test_a_worker_that_outlives_a_run_opens_the_cache_of_the_next_one_anew(drive, recipe, straight, address, tmp_path):
    """A lock in a deleted folder would keep nobody from anything."""
    options = ("teacher-cache", recipe, "--data", drive, "--run", tmp_path, "--scheduler")
    assert surround(*options, address)[0] == 0
    shutil.rmtree(tmp_path / "cache")
    assert surround(*options, "threads", "--part", "1/6")[0] == 0
    other = Claims(tmp_path / "cache/claims.lock")
    other.take(3)
    code, text = surround(*options, address)
    assert (code, "1 shard left to another process" in text) == (1, True), text
    other.release(3)
    code, text = surround(*options, address)
    assert (code, "1 shard written" in text) == (0, True), text
    assert contents(tmp_path / "cache") == straight


@pytest.mark.parametrize(
    ("scheduler", "message"),
    [
        ("thread", "expected threads, local, slurm or an address"),
        ("tcp://127.0.0.1:9", "no dask scheduler answers there"),
        ("tcp://127.0.0.1:x", "no dask scheduler answers there"),
        ("tls://127.0.0.1:9", "no dask scheduler answers there"),  # no certificates are configured
        ("nonsense://127.0.0.1:9", "expected threads, local, slurm or an address"),
        ("inproc://127.0.0.1/9/1", "expected threads, local, slurm or an address"),
        ("://127.0.0.1:9", "expected threads, local, slurm or an address"),
    ],
)
def test_a_scheduler_that_is_not_there_is_one_clear_error_before_teacher_and_cache(
    drive, recipe, tmp_path, monkeypatch, scheduler, message
):
    monkeypatch.setattr("pipeline.runs.cluster.PROBE_S", 1)
    options = ("--data", drive, "--run", tmp_path / "run", "--scheduler", scheduler)
    code, text = surround("teacher-cache", recipe, *options, "--set", "teacher_cache.weights=/nowhere")
    assert (code, message in text, "Traceback" in text) == (2, True, False), text
    assert not (tmp_path / "run").exists()


def test_a_scheduler_without_workers_is_waited_for_and_said(drive, recipe, tmp_path, monkeypatch):
    from pipeline.runs import cluster

    log, port = tmp_path / "log", free_port()
    monkeypatch.setattr(cluster, "CONNECT_S", 3)
    said: list[str] = []
    with dask_process("scheduler", "--host", "127.0.0.1", "--port", port, "--no-dashboard", "--no-jupyter", log=log):
        wait_until(lambda: "Scheduler at" in log.read_text(), "the scheduler")
        job = cluster.ShardJob("", "", False)
        with pytest.raises(cluster.Preempted):
            cluster.write_on_cluster(
                f"tcp://127.0.0.1:{port}",
                ClusterSpec(),
                job,
                [0],
                on_shard=lambda _: None,
                say=said.append,
                should_stop=lambda: bool(said),
            )
    assert "no worker is connected" in said[0]
    assert "dask worker tcp://127.0.0.1" in said[0]


def test_the_batch_script_of_slurm_says_what_the_recipe_says(drive, recipe, teacher_folder, tmp_path):
    more = (
        '[cluster]\nworkers = 3\ncores = 7\nmemory = "21GB"\nwalltime = "05:30:00"\npartition = "gpus"\n'
        'account = "perception"\ndirectives = ["--gres=gpu:1"]\nprologue = ["module load cuda"]\n'
    )
    written = write_recipe(tmp_path / "slurm.toml", teacher_folder, FRAMES, more=more)
    code, text = surround(
        "teacher-cache", written, "--data", drive, "--run", tmp_path / "run", "--scheduler", "slurm", "--dry-run"
    )
    assert code == 0, text
    for line in ("-p gpus", "-A perception", "--cpus-per-task=7", "--mem=20G", "-t 05:30:00", "--gres=gpu:1"):
        assert f"#SBATCH {line}" in text, text
    assert text.index("export OMP_NUM_THREADS=7") < text.index("module load cuda") < text.index("dask_worker")
    assert not (tmp_path / "run").exists()
    assert surround("teacher-cache", written, "--dry-run")[0] == 2
    assert "dask_worker" in job_script(ClusterSpec())


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("cores = 0", "cores >= 1"),
        ('memory = "lots"', 'memory: expected a size like "24GB"'),
        ('memory = "24"', "memory"),  # dask would take it for bytes
        ('memory = "0GB"', "memory"),
        ('memory = "-1GB"', "memory"),
        ('memory = ""', "memory"),
        ('walltime = "4h"', "walltime: expected HH:MM:SS or D-HH:MM:SS"),
        ('walltime = "04:60:00"', "walltime"),
        ('walltime = ""', "walltime"),
    ],
)
def test_impossible_cluster_sections_are_refused_with_exit_2(teacher_folder, tmp_path, line, message):
    written = write_recipe(tmp_path / "r.toml", teacher_folder, FRAMES, more=f"[cluster]\n{line}\n")
    code, text = surround("teacher-cache", written, "--run", tmp_path / "run", "--scheduler", "slurm", "--dry-run")
    assert (code, "[cluster]" in text, message in text, "Traceback" in text) == (2, True, True, False), text


@pytest.mark.parametrize(("memory", "slurm"), [("24GB", "23G"), ("1.5 TiB", "1536G"), ("500mb", "477M"), ("8G", "8G")])
def test_sizes_and_times_that_slurm_understands_reach_its_script(memory, slurm):
    for walltime in ("04:00:00", "1-12:30:59", "100:00:00"):
        script = job_script(ClusterSpec(memory=memory, walltime=walltime))
        assert f"#SBATCH --mem={slurm}\n" in script
        assert f"#SBATCH -t {walltime}\n" in script
