"""Stage one as users run it: real processes on a small real data set, and ways to catch them in the middle."""

import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import MappingProxyType

import numpy as np
from PIL import Image

from data_cache.sources.pandaset import CAMERAS
from support.data_sets.pandaset import HERE, LENS, write_sweep
from support.repository import REPOSITORY
from support.surround import RECIPE
from support.tiny_encoder import TINY_ENCODER
from support.warm import Forked

DEADLINE_S = 120


def write_drive(root: Path, frame_count: int) -> Path:
    """A drive 005 of one camera in PandaSet's layout whose frames all differ; two frames more, to test on."""
    rng = np.random.default_rng(5)
    camera, lidar = root / "005/camera" / CAMERAS[0], root / "005/lidar"
    camera.mkdir(parents=True)
    lidar.mkdir(parents=True)
    stamps = [1557539958.0 + i for i in range(frame_count + 2)]
    for folder in (camera, lidar):
        (folder / "timestamps.json").write_text(json.dumps(stamps))
    (camera / "intrinsics.json").write_text(json.dumps(LENS))
    (camera / "poses.json").write_text(json.dumps([HERE] * len(stamps)))
    for i in range(len(stamps)):
        blobs = rng.integers(0, 256, (9, 16, 3), dtype=np.uint8)
        Image.fromarray(blobs).resize((1920, 1080), Image.Resampling.BILINEAR).save(camera / f"{i:02d}.jpg", quality=60)
        write_sweep(sweep(root, i), np.column_stack([rng.uniform(-20, 20, (300, 3)), np.zeros(300)]))
    return root


def sweep(root: Path, frame: int) -> Path:
    """The LiDAR file of a frame."""
    return root / "005/lidar" / f"{frame:02d}.pkl.gz"


def write_recipe(path: Path, teacher: Path, frame_count: int, shard_frames: int = 1, more: str = "") -> Path:
    """A recipe for the drive of `write_drive`; its encoder is a real one, which processes of others know, too."""
    text = RECIPE.format(teacher=teacher).replace('"synthetic"', '"pandaset"').replace(TINY_ENCODER, "resnet-10")
    text = text.replace("drive-00[:1]", f"005[:{frame_count}]").replace("drive-01[:1]", f"005[{frame_count}:]")
    path.write_text(text.replace("shard_frames = 1", f"shard_frames = {shard_frames}") + more)
    return path


class Command:
    """A `surround` process that leads a process group of its own, as a cluster or a terminal starts it."""

    def __init__(self, log: Path, *arguments: object, environment: Mapping[str, str] = MappingProxyType({})):
        log.parent.mkdir(parents=True, exist_ok=True)
        self._log = log
        log.write_text("")
        self.process = Forked(list(map(str, arguments)), log, {"OMP_NUM_THREADS": "1", **os.environ, **environment})

    @property
    def output(self) -> str:
        """All that it and its workers have printed."""
        return self._log.read_text()

    def signal(self, number: int, *, group: bool = False) -> None:
        """Send a signal to the process, or to it and all that it started."""
        (os.killpg if group else os.kill)(self.process.pid, number)

    def end(self) -> int:
        """Wait for its exit code; whatever it has left behind is killed."""
        try:
            return self.process.wait(DEADLINE_S)
        finally:
            self.kill()

    def kill(self) -> None:
        """SIGKILL for it and all that it started."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def descendants(pid: int) -> list[int]:
    """Processes that a process has started, and those that they have started."""
    found: list[int] = []
    try:
        threads = list(Path(f"/proc/{pid}/task").iterdir())
        children = [int(child) for thread in threads for child in (thread / "children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []
    for child in children:
        found += [child, *descendants(child)]
    return found


def wait_until(condition: Callable[[], bool], what: str) -> None:
    """Wait for something that has to happen."""
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {DEADLINE_S} s for {what}")
        time.sleep(0.02)


class HeldFrame:
    """A file of a frame under a lease of the kernel: whoever opens it waits in the middle of a frame until let go.

    After /proc/sys/fs/lease-break-time (45 s) the kernel lets it go itself.
    """

    def __init__(self, path: Path):
        self._path, self._file = path, -1

    def __enter__(self) -> "HeldFrame":
        signal.signal(signal.SIGIO, signal.SIG_IGN)  # tells the holder that somebody waits
        self._file = os.open(self._path, os.O_RDWR)
        fcntl.fcntl(self._file, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        return self

    def wait_for_reader(self) -> None:
        """Until somebody is caught."""
        wait_until(
            lambda: fcntl.fcntl(self._file, fcntl.F_GETLEASE) != fcntl.F_WRLCK,  # what it is asked to become
            f"a reader of {self._path}",
        )

    def readers(self, among: Iterator[int] | list[int]) -> list[int]:
        """Those processes that are caught."""
        return [pid for pid in among if _waits_for_lease(pid)]

    def restore(self) -> None:
        """From now on the frame is an ordinary file; who was caught before stays caught."""
        copy = self._path.with_suffix(".copy")
        copy.write_bytes(os.pread(self._file, os.fstat(self._file).st_size, 0))
        copy.replace(self._path)

    def let_go(self) -> None:
        """Let the reader have it."""
        file, self._file = self._file, -1
        if file >= 0:
            os.close(file)

    def __exit__(self, *_: object) -> None:
        self.let_go()


def _waits_for_lease(pid: int) -> bool:
    try:
        return any("break_lease" in (task / "wchan").read_text() for task in Path(f"/proc/{pid}/task").iterdir())
    except OSError:
        return False


@contextmanager
def dask_process(*arguments: object, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A scheduler or worker of dask, as somebody who runs a cluster starts it."""
    with log.open("ab") as stream:
        process = subprocess.Popen(
            [sys.executable, "-m", "dask", *map(str, arguments)],
            stdout=stream,
            stderr=stream,
            cwd=REPOSITORY,
            env={"OMP_NUM_THREADS": "1"} | os.environ,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
