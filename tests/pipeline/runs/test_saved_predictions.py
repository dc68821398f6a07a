"""`surround eval` saves depth maps, and measures a folder of them. The files: stages/evaluation/test_predictions.py."""

import json
from pathlib import Path

import pytest
from support.fakes import FakeSource
from support.students import LINEAGE, MEMORY_RECIPE, student
from support.surround import surround

from pipeline.runs import splits
from stages.student.checkpoint import save_student


@pytest.fixture
def recipe(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(splits, "open_source", lambda *_, **__: FakeSource(4, name="home"))
    (tmp_path / "home.toml").write_text(MEMORY_RECIPE.format(source="home").replace("[96, 160]", "[32, 64]"))
    return tmp_path / "home.toml"


def test_the_command_saves_and_measures_a_folder_without_student_and_teacher(recipe, tmp_path):
    save_student(tmp_path / "run/student/last.safetensors", student(), LINEAGE)
    settings = ("near_m=0.5", "far_m=80.0", "focal_px=32.0", "decoder_channels=8", "pretrained=false")
    options = [word for setting in settings for word in ("--set", f"student.{setting}")]
    options += ["--set", "bins.count=64", "--set", "eval.latency=false", "--set", "eval.pictures=1"]
    saving = ("--set", "eval.teacher=false", "--set", "eval.save_predictions=npy")
    code, text = surround("eval", recipe, "--run", tmp_path / "run", *options, *saving)
    assert code == 0, text
    predictions = tmp_path / "run/eval/predictions"
    assert len(list(predictions.rglob("*.npy"))) == 9
    code, text = surround("eval", recipe, "--run", tmp_path / "theirs", "--predictions", predictions)
    assert code == 0, text
    ours, theirs = (json.loads((tmp_path / run / "eval/report.json").read_text()) for run in ("run", "theirs"))
    assert theirs["student"] == ours["student"]
    assert (theirs["teacher"], theirs["latency"], theirs["provenance"]["predictions"]) == (None, None, str(predictions))
    code, text = surround("compare", tmp_path / "run", tmp_path / "theirs")
    assert (code, "| theirs |" in text) == (0, True), text
    code, text = surround("eval", recipe, "--run", tmp_path / "zero", "--predictions", predictions, "--protocol", "zero-shot")  # fmt: skip # noqa: E501
    assert (code, "report:" in text) == (0, True), text


def test_bad_folders_are_one_clear_error_and_exit_2(recipe, tmp_path):
    run = ("--run", tmp_path / "run")
    code, text = surround("eval", recipe, *run, "--predictions", tmp_path, "--checkpoint", "x")
    assert (code, "cannot be combined with --checkpoint" in text) == (2, True), text
    code, text = surround("eval", recipe, *run, "--predictions", tmp_path / "none")
    assert (code, "expected a folder of predictions" in text) == (2, True), text
    code, text = surround("eval", recipe, *run, "--predictions", tmp_path)
    assert (code, "9 of 9 predictions are missing" in text) == (2, True), text
    code, text = surround("eval", recipe, *run, "--set", "eval.save_predictions=jpg")
    assert (code, "save_predictions: expected png16, npy or nothing, got 'jpg'" in text) == (2, True), text
    assert not (tmp_path / "run").exists()
