"""Foxglove's own libraries of npm that read recordings, kept in the user's cache; no script of a package runs."""

import json
import os
import shutil
import subprocess
from pathlib import Path

PACKAGES = (
    "@mcap/core@2.2.2",
    "@mcap/nodejs@1.0.2",
    "@foxglove/rosbag2@5.0.1",
    "@foxglove/rosbag2-web@4.1.1",
    "@foxglove/rosmsg@5.0.5",
    "@foxglove/rosmsg2-serialization@3.1.0",
    "@foxglove/wasm-lz4@1.0.2",
    "fzstd@0.1.1",
)
SCRIPT = Path(__file__).with_name("bag_readers.cjs")
FOLDER = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "surround-distill" / "bag-readers-1"


class NoReadersError(Exception):
    """There are none; the text says why."""


def fetch() -> None:
    """Install the readers where they are not; raises NoReadersError."""
    npm = shutil.which("npm")
    if npm is None or shutil.which("node") is None:
        raise NoReadersError("readers of npm: npm and node are not installed")
    if (FOLDER / "done").is_file():
        return
    FOLDER.mkdir(parents=True, exist_ok=True)
    (FOLDER / "package.json").write_text("{}")
    command = [npm, "install", "--ignore-scripts", "--no-audit", "--no-fund", "--silent", *PACKAGES]
    done = subprocess.run(command, cwd=FOLDER, capture_output=True, text=True)
    if done.returncode:
        raise NoReadersError(f"readers of npm: cannot be fetched: {done.stderr.strip()[-300:]}")
    (FOLDER / "done").touch()


def read(path: Path) -> list[tuple[str, int, str, tuple[int, str, int] | None]]:
    """Of each message the topic, the time of recording, the SHA-256 of its bytes; and stamp, frame, length of its data.

    The last is None for messages that are not of ROS.
    """
    shutil.copy(SCRIPT, FOLDER / SCRIPT.name)  # node looks for packages beside the script
    done = subprocess.run(["node", SCRIPT.name, str(path)], cwd=FOLDER, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = []
    for line in done.stdout.splitlines():
        topic, log_ns, digest, said = json.loads(line)
        found.append((topic, int(log_ns), digest, said and (int(said[0]), said[1], said[2])))
    return found
