"""docs/ROBOT.md, its commands run word for word on recordings that the test writes, with a recipe of tiny sizes."""

import re
import shlex
from pathlib import Path

import numpy as np
from support.bags import messages_of, write_bag
from support.repository import REPOSITORY
from support.surround import RECIPE, surround

from data_cache.sources.registry import open_source

PAGE = (REPOSITORY / "docs/ROBOT.md").read_text()
COMMANDS = [shlex.split(line) for line in re.findall(r"^ {4}surround (.*)$", PAGE, re.MULTILINE)]


def write_recordings(folder: Path) -> list[Path]:
    """ROS 2 bags of two synthetic drives, the second of which is to test on."""
    source = open_source("synthetic", None)
    drives = {"monday": ["drive-00/0"], "wednesday": ["drive-01/0"]}
    return [write_bag(folder / f"{name}.mcap", messages_of(source, ids), "mcap-zstd") for name, ids in drives.items()]


def test_the_page_has_six_commands_in_their_order():
    verbs = [" ".join(words[: 1 + (words[0] == "rig")]) for words in COMMANDS]
    assert verbs == ["rig import", "doctor", "teacher-cache", "train-student", "export", "predict"]


def test_the_page_leads_from_a_recording_to_depth(tmp_path, monkeypatch, teacher_folder):
    monkeypatch.chdir(tmp_path)
    *train, test = (path.stem for path in write_recordings(tmp_path))
    text = RECIPE.format(teacher=teacher_folder)
    for of_page, own in (
        ('source = "synthetic"', 'source = "rig_folder"\nroot = "van"'),
        ('["drive-00[:1]"]', str(train).replace("'", '"')),
        ('["drive-01[:1]"]', f'["{test}"]'),
    ):
        assert of_page in text
        text = text.replace(of_page, own)
    (tmp_path / "van.toml").write_text(text)
    for words in COMMANDS:
        code, said = surround(*words)
        assert code == 0, f"surround {shlex.join(words)}: {said}"
    assert (tmp_path / "student.onnx").is_file()
    assert (tmp_path / f"seen/mcap/{test}.mcap").is_file()
    student = "runs/van/student/last.safetensors"
    bag = ("--on", f"{test}.mcap", "--write", "npy")
    assert surround("predict", student, "--out", "direct", *bag)[0] == 0
    assert surround("predict", student, "--out", "imported", "--write", "npy")[0] == 0
    direct, imported = (sorted((tmp_path / name / "npy").rglob("*.npy")) for name in ("direct", "imported"))
    assert len(direct) == len(imported) == 6
    for ours, theirs in zip(direct, imported, strict=True):
        np.testing.assert_array_equal(np.load(ours), np.load(theirs))
    code, said = surround("predict", student, "--out", "x", *bag, "--set", "eval.flip=true")
    assert (code, "a recording has no recipe" in said) == (2, True), said
