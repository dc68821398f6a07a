"""Recordings beyond what the ordinary tests do: readers of other people, and imports that are killed."""

import hashlib
import random
import signal
import time
from contextlib import suppress
from pathlib import Path

import pytest
from support import node_readers
from support.bags import messages_of, write_bag
from support.commands import Command, wait_until
from support.small_recording import camera, in_order, lidar, poses, statics

from data_cache.sources.recordings.containers.opening import bag_files, open_file
from data_cache.sources.recordings.decoding.messages import decode
from data_cache.sources.registry import open_source

KILLS = 10
FRAMES = 300


@pytest.fixture(scope="module")
def messages():
    source = open_source("synthetic", None)
    return messages_of(source, source.drives["drive-03"][:1])


@pytest.mark.torture
@pytest.mark.parametrize("kind", ["mcap", "mcap-lz4", "mcap-zstd", "sqlite3", "foxglove"])
def test_readers_of_foxglove_find_the_same_messages(tmp_path, messages, kind):
    try:
        node_readers.fetch()
    except node_readers.NoReadersError as error:
        pytest.skip(str(error))
    (path,) = bag_files(write_bag(tmp_path / "bag", messages, kind))
    ours = []
    for one in open_file(path).messages():
        said = None
        if one.channel.encoding == "cdr":
            message = decode(one.channel, one.data)
            if isinstance(message, tuple):
                said = message[0].stamp_ns, message[0].parent, 0
            else:
                stamp_ns = getattr(message, "stamp_ns", one.log_ns - 5_000_000)
                said = stamp_ns, message.frame_id, len(getattr(message, "data", b""))
        ours.append((one.channel.topic, one.log_ns, hashlib.sha256(one.data).hexdigest(), said))
    theirs = node_readers.read(path)
    assert len(theirs) == len(messages)
    assert sorted(map(repr, theirs)) == sorted(map(repr, ours))
    print(f"\n{kind}: {len(theirs)} messages, {path.stat().st_size / 1e6:.1f} MB: the same to Foxglove")


@pytest.mark.torture
def test_an_import_that_is_killed_at_any_moment_ends_with_the_same_folder(tmp_path):
    said = [*statics(), *poses(until_s=FRAMES / 10), *lidar(FRAMES), *camera("front", count=FRAMES)]
    bag = write_bag(tmp_path / "van", in_order([*said, *camera("left", count=FRAMES)]), "mcap-zstd")
    assert Command(tmp_path / "log", "rig", "import", bag, "--out", tmp_path / "whole/van").end() == 0
    whole, rng, continued = contents(tmp_path / "whole/van"), random.Random(11), 0
    for i in range(KILLS):
        out, frames = tmp_path / f"{i}/van", rng.randrange(FRAMES - 20)
        command = Command(tmp_path / "log", "rig", "import", bag, "--out", out)
        wait_until(lambda out=out, frames=frames: written(out) > frames, f"{frames} frames")
        time.sleep(rng.uniform(0, 0.005))
        with suppress(ProcessLookupError):  # it has ended meanwhile
            command.signal(signal.SIGKILL)
        command.end()
        if not (out / "rig.json").exists():
            command = Command(tmp_path / "log", "rig", "import", bag, "--out", out)
            assert command.end() == 0, command.output
            continued += "of them before" in command.output
        assert contents(out) == whole
    assert continued > KILLS // 2
    print(f"\nimport killed {KILLS} times: {len(whole)} files, the same bytes; {continued} were continued half-way")


def written(out: Path) -> int:
    """Frames in the file of lines, finished or not."""
    return max((path.read_bytes().count(b"\n") for path in out.glob("frames.jsonl*")), default=0)


def contents(folder: Path) -> dict[Path, bytes]:
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
