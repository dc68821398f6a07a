"""`make gpu` on a machine without one: what becomes of parts that fail."""

import importlib
import inspect
import json

import pytest
import torch
from benchmarks import gpu
from benchmarks.gpu import FAILED, MISSING, OK, Part

from stages.teacher_cache import PREFETCH_THREADS

PARTS_MODULE = """
import os, signal, sys, time
from benchmarks.gpu import Found, NotInstalledError, attempt

def works(setting):
    yield Found("speed", 2.5, "ms", f"on {setting.device}")
    print("chatter", file=sys.stderr)

def raises_after_a_row(setting):
    yield Found("first", 1.0)
    raise ValueError("no room\\nfor it")

def one_attempt_fails(setting):
    def fails():
        yield Found("half", 0.5)
        raise KeyError("other half")
    yield from attempt("halves", fails)
    yield Found("next", float("nan"))

def lacks_a_package(setting):
    raise NotInstalledError("pip install it")
    yield

def crashes(setting):
    yield Found("before", 1.0)
    os.kill(os.getpid(), signal.SIGSEGV)

def hangs(setting):
    yield Found("before", 1.0)
    time.sleep(60)
"""
NAMES = ("works", "raises_after_a_row", "one_attempt_fails", "lacks_a_package", "crashes")


def run(tmp_path, monkeypatch, capsys, *names, budget_s=30.0):
    (tmp_path / "pretended_parts.py").write_text(PARTS_MODULE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    parts = [Part(name.replace("_", " "), f"pretended_parts:{name}", budget_s) for name in names]
    code = gpu.main(["--device", "cpu", "--run", str(tmp_path / "run")], parts)
    document = json.loads((tmp_path / "run/gpu.json").read_text())
    return code, document, capsys.readouterr().out


def test_each_part_fails_alone_and_what_it_found_stays(tmp_path, monkeypatch, capsys):
    code, document, out = run(tmp_path, monkeypatch, capsys, *NAMES)
    assert code == 1
    rows = [(row["part"], row["what"], row["value"], row["state"]) for row in document["rows"]]
    assert [row for row in rows if row[1] != "time in all"] == [
        ("works", "speed", 2.5, OK),
        ("raises after a row", "first", 1.0, OK),
        ("raises after a row", "all of it", None, FAILED),
        ("one attempt fails", "half", 0.5, OK),
        ("one attempt fails", "halves", None, FAILED),
        ("one attempt fails", "next", None, OK),  # JSON knows no NaN
        ("lacks a package", "all of it", None, MISSING),
        ("crashes", "before", 1.0, OK),
        ("crashes", "the rest", None, FAILED),
    ]
    notes = {(row["part"], row["what"], row["state"]): row["note"] for row in document["rows"]}
    assert notes["raises after a row", "all of it", FAILED] == "ValueError: no room for it"
    assert "SIGSEGV" in notes["crashes", "the rest", FAILED]
    assert "| works | speed | 2.5 | ms | on cpu |" in out
    assert "| lacks a package | all of it | not installed |  | pip install it |" in out
    assert "ValueError: no room" in (tmp_path / "run/raises-after-a-row.log").read_text()
    assert {"versions", "git_commit", "device"} <= document["machine"].keys()
    assert not (tmp_path / "run/scratch").exists()


def test_a_part_that_hangs_is_ended_at_the_sum_of_the_budgets(tmp_path, monkeypatch, capsys):
    code, document, _ = run(tmp_path, monkeypatch, capsys, "hangs", budget_s=0.6)
    assert code == 1
    *_, rest, total = document["rows"]
    assert (rest["what"], rest["state"]) == ("the rest", FAILED)
    assert "did not end within 2 s" in rest["note"]  # 0.6 s, with the patience for a CPU
    assert 1.7 <= total["value"] < 30


def test_what_is_not_installed_is_no_failure(tmp_path, monkeypatch, capsys):
    code, _, _ = run(tmp_path, monkeypatch, capsys, "works", "lacks_a_package")
    assert code == 0


def test_the_parts_are_there_and_end_within_eight_minutes():
    assert gpu.FULL.patience * sum(part.budget_s for part in gpu.PARTS) <= 480
    for part in gpu.PARTS:
        module, _, name = part.function.partition(":")
        assert inspect.isgeneratorfunction(getattr(importlib.import_module(module), name)), part


def test_without_a_gpu_one_line_says_what_to_do(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main(["--run", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "sees no CUDA GPU" in error
    assert "make gpu DEVICE=cpu" in error
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("size", [gpu.FULL, gpu.TRIAL])
def test_what_stage_one_is_compared_with_is_measured(size):
    assert set(size.stage_one_batches) <= set(size.batches)
    assert PREFETCH_THREADS in size.readers
