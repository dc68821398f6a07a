"""A drive as a Rerun recording, read back by the extra's own command."""

import importlib.util
import re
import subprocess
import sys

import pytest
from support.fakes import NAMES
from support.students import run_predict, writing

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("rerun") is None, reason="recordings: pip install 'surround-distill[rerun]'"
)


def rerun(*arguments: object) -> str:
    command = [sys.executable, "-m", "rerun", "rrd", *map(str, arguments)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def test_a_drive_is_one_recording_that_is_not_made_again(folder):
    recording = folder / "out/drive.rrd"
    code, text = run_predict(folder, "--frame", 0, "--frame", 2, *writing("rrd"))
    assert (code, "2 frames written" in text) == (0, True), text
    rerun("verify", recording)
    entities = set(re.findall(r"/world[\w/]*", rerun("print", "-v", recording)))
    cameras = {f"/world/ego/{name}{part}" for name in NAMES for part in ("", "/image", "/depth")}
    assert entities == {"/world", "/world/ego", "/world/ego/cloud", *cameras}
    # The vehicle of the fake drive stands 1.5 m below the world's origin, in frame 2 0.2 m to the left of it.
    places = re.findall(
        r"\[\[(?:-?[\d.]+, ){2}-?[\d.]+\]\]", rerun("print", "-vvv", "--entity", "/world/ego", recording)
    )
    assert sorted(places) == ["[[0.0, 0.0, -1.5]]", "[[0.0, 0.2, -1.5]]"]
    before = recording.read_bytes()
    assert "0 frames written, 2 already done" in run_predict(folder, "--frame", 0, "--frame", 2, *writing("rrd"))[1]
    assert recording.read_bytes() == before
    assert "1 frame written" in run_predict(folder, "--frame", 1, *writing("rrd"))[1]
    assert recording.read_bytes() != before
    assert not list(folder.rglob("*.partial"))
