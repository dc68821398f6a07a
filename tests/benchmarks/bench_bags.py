"""Importing recordings: messages a second, bytes a second against copying the file, and memory by length."""

import os
import shutil
import subprocess
import sys
import time
from copy import copy
from pathlib import Path

import pytest
from support.bags import Said, messages_of, write_bag
from support.repository import REPOSITORY

from data_cache.sources.registry import open_source

pytestmark = pytest.mark.bench
FRAMES = 8  # real frames, which repeat
REPEATS = {"short": 2, "long": 12}
SCRIPT = """
import sys, time
from pathlib import Path
from data_cache.sources.recordings.source import RecordingSource
from data_cache.sources.rig_folder.writing import export_rig
def peak_mb():  # not ru_maxrss, which begins with that of the parent
    (line,) = [one for one in Path("/proc/self/status").read_text().splitlines() if one.startswith("VmHWM")]
    return int(line.split()[1]) / 1024
before = peak_mb()
begin, cpu = time.perf_counter(), time.process_time()
source = RecordingSource([Path(sys.argv[1])])
read, read_cpu = time.perf_counter() - begin, time.process_time() - cpu
done = export_rig(source, [one for ids in source.drives.values() for one in ids], Path(sys.argv[2]))
whole, whole_cpu = time.perf_counter() - begin, time.process_time() - cpu
print(done.frame_count, read, read_cpu, whole, whole_cpu, before, peak_mb())
"""


def repeated(messages: list[Said], times: int) -> list[Said]:
    """The same messages again and again, each round a second later; stamps inside of them are moved as well."""
    found = []
    for i in range(times):
        for one in messages:
            shifted = one.ros
            if i and one.topic != "/tf_static":
                shifted = _later(one.ros, i)
            found.append(Said(one.topic, one.log_ns + i * 10**9, one.type, shifted))
    return [one for one in found if one.topic != "/tf_static" or one.log_ns < messages[0].log_ns + 10**9]


def _later(message: object, seconds: int) -> object:
    moved = copy(message)
    if hasattr(moved, "transforms"):
        moved.transforms = [_later(each, seconds) for each in moved.transforms]
        return moved
    moved.header = copy(moved.header)
    moved.header.stamp = copy(moved.header.stamp)
    moved.header.stamp.sec += seconds
    return moved


@pytest.mark.parametrize("kind", ["mcap-zstd", "mcap-plain", "sqlite3"])
def test_bench_bags(tmp_path, capsys, kind):
    folder = os.environ.get("SURROUND_REAL_DATA")
    if not folder:
        pytest.skip("real frames: set SURROUND_REAL_DATA to their folder")
    source = open_source("pandaset", Path(folder) / "pandaset")
    messages = messages_of(source, source.drives["002"][:FRAMES])
    lines = []
    for name, times in REPEATS.items():
        said = repeated(messages, times)
        bag = write_bag(tmp_path / name, said, kind)
        (path,) = [bag] if bag.is_file() else [one for one in bag.iterdir() if one.suffix in (".mcap", ".db3")]
        size = path.stat().st_size
        begin, cpu = time.perf_counter(), time.process_time()
        shutil.copyfile(path, tmp_path / "copy")
        copy_s, copy_cpu_s = time.perf_counter() - begin, time.process_time() - cpu
        command = [sys.executable, "-c", SCRIPT, str(bag), str(tmp_path / f"{name}-out")]
        done = subprocess.run(
            command, capture_output=True, text=True, check=True, cwd=REPOSITORY, env={**os.environ, "PYTHONPATH": "."}
        )
        frames, read, read_cpu, whole, whole_cpu, before, peak = map(float, done.stdout.split())
        lines.append(
            f"  {name}: {len(said)} messages, {frames:.0f} frames, {size / 1e6:.0f} MB; read once {read:.2f} s"
            f" ({read_cpu:.2f} of processor), whole import {whole:.2f} s ({whole_cpu:.2f}):"
            f" {len(said) / whole_cpu:.0f} messages and {size / 1e6 / whole_cpu:.0f} MB per processor second; copying"
            f" the file {copy_s:.2f} s ({copy_cpu_s:.2f}): {size / 1e6 / max(copy_cpu_s, 1e-9):.0f} MB; memory"
            f" {before:.0f} MB at start, {peak:.0f} MB at most"
        )
        shutil.rmtree(tmp_path / f"{name}-out")
        (tmp_path / "copy").unlink()
    with capsys.disabled():
        print(f"\n{kind}, {os.cpu_count()} cores:", *lines, sep="\n")
