"""Planning, status and resume of a cache of a million frames, of which all shards but a few have (fake) receipts."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.fakes import tiny_identity

from data_cache.shards.identity import Resolved, SplitFrames
from data_cache.shards.receipts import Receipt, StoredFile, receipt_name
from data_cache.shards.schema import array_table, shard_name
from data_cache.shards.writer import CacheWriter

pytestmark = pytest.mark.bench
FRAMES, SHARD_FRAMES, OPEN_SHARDS = 1_000_000, 64, 25
SCRIPT = """
import sys, time
from pathlib import Path
from data_cache.shards.reader import CacheReader, cache_status
from data_cache.shards.schema import Resolved, SplitFrames, load_description
from data_cache.storage.store import open_store
from data_cache.shards.writer import CacheWriter
root = {root!r}
begin = time.perf_counter()
{body}
seconds = time.perf_counter() - begin
peak_kib = next(line.split()[1] for line in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line)
print(f"{{seconds:.2f}} s, peak {{int(peak_kib) / 1024:.0f}} MiB")
"""
OPEN_WRITER = f"""
frames = SplitFrames(tuple(f"{{i:032x}}" for i in range({FRAMES})), ())
writer = CacheWriter(root, load_description(open_store(root))[0], Resolved("fp32", 2, 1), frames)
"""
BODIES = {
    "plan and resume: open the writer, list what is pending": OPEN_WRITER
    + f"assert len(writer.pending()) == {OPEN_SHARDS}",
    "the same of part 7/100": OPEN_WRITER + "writer.pending(part=(7, 100))",
    "status": "assert not cache_status(root).complete",
    "open for reading": "CacheReader(root, complete=False)",
    "`surround cache status`": "sys.argv[1:] = ['cache', 'status', root]\n"
    "from pipeline.cli.main import main\nmain(standalone_mode=False)",
}


def fill(root: Path) -> int:
    """Receipts of empty files: as many files to list and receipts to read as in earnest. Returns how many files."""
    frames = SplitFrames(tuple(f"{i:032x}" for i in range(FRAMES)), ())
    ours = tiny_identity(frames, shard_frames=SHARD_FRAMES)
    CacheWriter(root, ours, Resolved("fp32", 2, 1), frames)
    (root / receipt_name(0)).parent.mkdir()
    for shard in range(ours.shard_count - OPEN_SHARDS):
        names = [shard_name(name, spec, shard) for name, spec in array_table(ours).items()]
        for name in names:
            os.close(os.open(root / name, os.O_CREAT | os.O_WRONLY))
        receipt = Receipt(shard, ours.sha256, {name: StoredFile(0, "0" * 64) for name in names}, {}, {})
        (root / receipt_name(shard)).write_text(receipt.to_json())
    return sum(1 for path in root.rglob("*") if path.is_file())


def test_bench_a_million_frames(tmp_path, capsys):
    file_count = fill(tmp_path)
    with capsys.disabled():
        print(f"\n{FRAMES} frames in shards of {SHARD_FRAMES}, {file_count} files:")
        for what, body in BODIES.items():
            script = SCRIPT.format(root=str(tmp_path), body=body)
            done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
            print(f"  {what}: {done.stdout.splitlines()[-1]}")
