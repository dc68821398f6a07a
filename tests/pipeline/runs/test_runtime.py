"""The runtime of the teacher in a cache: recorded once, kept by those who go on."""

import importlib.util
import json
from pathlib import Path

import pytest
from support.surround import surround

from pipeline.recipe.config import load_recipe
from pipeline.runs.stage_one import open_teacher

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("openvino") is None,
    reason="openvino is not installed; pip install 'surround-distill[openvino]'",
)


def teacher_cache(recipe: Path, run: Path, runtime: str, *more: object) -> tuple[int, str]:
    return surround("teacher-cache", recipe, "--run", run, "--set", f"teacher_cache.runtime={runtime}", *more)


def recorded(run: Path) -> dict[str, object]:
    return json.loads((run / "cache/cache.json").read_text())["resolved"]


def stored_arrays(run: Path) -> dict[str, bytes]:
    return {str(p.relative_to(run)): p.read_bytes() for p in (run / "cache/arrays.zarr").rglob("*") if p.is_file()}


@pytest.mark.parametrize(("begun", "other"), [("openvino", "torch"), ("torch", "openvino")])
def test_a_cache_goes_on_in_the_runtime_that_it_was_begun_with(recipe, tmp_path, begun, other):
    assert teacher_cache(recipe, tmp_path, begun, "--part", "1/2")[0] == 0
    assert recorded(tmp_path)["runtime"] == begun
    code, text = teacher_cache(recipe, tmp_path, other)
    assert code == 1
    assert f"teacher_runtime: cache has '{begun}', recipe says '{other}'" in text
    code, text = teacher_cache(recipe, tmp_path, "auto")
    assert (code, recorded(tmp_path)["runtime"]) == (0, begun), text


def test_a_cache_from_before_there_were_runtimes_was_begun_in_torch(recipe, tmp_path):
    assert teacher_cache(recipe, tmp_path, "torch")[0] == 0
    path = tmp_path / "cache/cache.json"
    table = json.loads(path.read_text())
    del table["resolved"]["runtime"]
    path.write_text(json.dumps(table))
    code, text = teacher_cache(recipe, tmp_path, "auto")
    assert (code, "1 already done" in text) == (0, True), text
    assert "fp32 in torch" in surround("cache", "status", tmp_path)[1]


def test_verify_and_eval_ask_the_teacher_in_the_runtime_of_the_cache(recipe, tmp_path):
    auto = ("--set", "teacher_cache.runtime=auto", "--set", "teacher_cache.device=cpu")
    assert teacher_cache(recipe, tmp_path, "torch")[0] == 0
    assert surround("teacher-cache", recipe, "--run", tmp_path, *auto)[0] == 0  # the recipe that the run remembers
    code, text = surround("cache", "verify", tmp_path, "--recompute", "1")
    assert (code, "differs in 0.00 %" in text or "differs in 0 %" in text) == (0, True), text
    assert surround("train-student", recipe, "--run", tmp_path, *auto)[0] == 0
    assert surround("eval", recipe, "--run", tmp_path, *auto)[0] == 0
    report = json.loads((tmp_path / "eval/report.json").read_text())
    assert report["latency"]["teacher_runtime"] == "torch"


def test_equal_runtimes_give_equal_bytes(recipe, tmp_path):
    for name in ("one", "two"):
        assert teacher_cache(recipe, tmp_path / name, "openvino")[0] == 0
    assert stored_arrays(tmp_path / "one") == stored_arrays(tmp_path / "two")


def test_openvino_is_what_auto_takes_on_a_cpu_and_doctor_says_so(recipe, tmp_path):
    asked = load_recipe(str(recipe), ["teacher_cache.runtime=auto", "teacher_cache.device=cpu"])
    assert open_teacher(asked).runtime == "openvino"
    options = ("--set", "teacher_cache.runtime=auto", "--set", "teacher_cache.device=cpu")
    assert "fp32 in openvino" in surround("doctor", recipe, "--run", tmp_path, *options)[1]


def test_a_runtime_that_is_not_known_is_an_error_of_the_recipe(recipe, tmp_path):
    code, text = teacher_cache(recipe, tmp_path, "onnx")
    assert (code, "runtime: expected one of auto, torch, openvino, got 'onnx'" in text) == (2, True), text
