"""Run folders that tests of more than one wing of the pipeline look at."""

from pathlib import Path

import pytest
from support.students import LINEAGE, MEMORY_RECIPE, NEAR, student
from support.surround import RECIPE, surround

from pipeline.runs import splits
from stages.student.checkpoint import save_student


@pytest.fixture(scope="module")
def recipe(tmp_path_factory, teacher_folder) -> Path:
    """The smallest recipe."""
    path = tmp_path_factory.mktemp("recipe") / "tiny.toml"
    path.write_text(RECIPE.format(teacher=teacher_folder))
    return path


@pytest.fixture(scope="module")
def run(recipe) -> Path:
    """The three stages, run once through the command line."""
    folder = recipe.parent / "run"
    code, text = surround("teacher-cache", recipe, "--run", folder)
    assert (code, "1 shard written" in text, "0 already done" in text) == (0, True, True), text
    code, text = surround("train-student", recipe, "--run", folder)
    assert (code, "3 steps" in text) == (0, True), text
    code, text = surround("eval", recipe, "--run", folder)
    assert (code, "AbsRel" in text, f"report: {folder / 'eval/report.html'}" in text) == (0, True, True), text
    return folder


@pytest.fixture
def folder(tmp_path: Path, monkeypatch) -> Path:
    """A run with a student and the recipe of its own data, which lie in memory; test frame 3 is damaged."""
    monkeypatch.setattr(splits, "open_source", lambda kind, root, version="", **options: NEAR)
    save_student(tmp_path / "run/student/last.safetensors", student(), LINEAGE)
    text = MEMORY_RECIPE.format(source="near").replace('["d[1:]"]', '["d"]').replace('["d[:1]"]', '["d[3:]"]')
    (tmp_path / "run/recipe.toml").write_text(text)
    return tmp_path
