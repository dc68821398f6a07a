"""Drives with LiDAR and drives with cameras alone: who teaches what, and what is kept."""

import json
from pathlib import Path

import pytest
import torch
from support.surround import RECIPE, surround

from data_cache.shards.reader import CacheReader
from pipeline.ablation.student import plan_students
from pipeline.recipe.config import load_recipe
from pipeline.recipe.run_folder import RunFolder
from stages.training import motion_fits as module
from stages.training.motion_fits import motion_fits

FLEET = ("--set", 'data.lidar_drives=["drive-00"]', "--set", "train_student.batch_rigs=2")


@pytest.fixture(scope="module")
def recipe(tmp_path_factory, teacher_folder) -> Path:
    text = RECIPE.format(teacher=teacher_folder).replace(
        'train = ["drive-00[:1]"]', 'train = ["drive-00[:2]", "drive-02[:3]"]\nselection = ["drive-03[:1]"]'
    )
    path = tmp_path_factory.mktemp("recipe") / "tiny.toml"
    path.write_text(text)
    return path


@pytest.fixture(scope="module")
def run(recipe) -> Path:
    folder = recipe.parent / "run"
    assert surround("teacher-cache", recipe, "--run", folder)[0] == 0
    return folder


def fits_of(path: Path) -> dict[str, list]:
    """Those of whole lines."""
    entries = [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]
    return {entry["frame"]: entry["fit"] for entry in entries}


def test_frames_without_lidar_are_fitted_once_and_train_the_student(recipe, run):
    code, text = surround("train-student", recipe, "--run", run, *FLEET)
    assert (code, "3 steps" in text) == (0, True), text
    (kept,) = (run / "motion").iterdir()
    fits = fits_of(kept)
    assert fits.keys() == {"drive-02/0", "drive-02/1", "drive-02/2"}
    assert all(len(fit) == 6 for fit in fits.values())
    # Cut off while it was written: what is whole is kept, the rest is done again.
    whole = kept.read_text()
    kept.write_text(whole[: whole.rindex('"fit"')])
    assert len(fits_of(kept)) == 2
    assert surround("train-student", recipe, "--run", run, *FLEET, "--fresh")[0] == 0
    assert fits_of(kept) == fits
    # The report says whose LiDAR taught, although the command that measures does not name it.
    code, text = surround("eval", recipe, "--run", run, "--set", "eval.latency=false", "--set", "eval.teacher=false")
    assert code == 0, text
    assert json.loads((run / "eval/report.json").read_text())["provenance"]["lidar_drives"] == ["drive-00"]


def test_processes_share_the_fits(recipe, run, monkeypatch):
    """Whoever finds that another one has done a frame does not do it again."""
    reader, fitted = CacheReader(run / "cache"), []

    def fit(disparity, moments, nearest):
        fitted.append(len(moments))
        if len(fitted) == 1:  # another process does the rest meanwhile
            motion_fits(*asked, lambda: False)
        return torch.zeros(6, 2)

    monkeypatch.setattr(module, "fit_to_motion", fit)
    asked = (reader, load_recipe(str(recipe)).bins, (0.1, 80.0), frozenset({"drive-00/0"}), run / "shared")
    found = motion_fits(*asked, lambda: False)
    assert found.keys() == {"drive-00/1", "drive-02/0", "drive-02/1", "drive-02/2"}
    assert len(fitted) <= 5


def test_another_choice_of_drives_is_another_training(recipe, run):
    """A state is not continued with other LiDAR."""
    assert surround("train-student", recipe, "--run", run, *FLEET)[0] == 0
    code, text = surround("train-student", recipe, "--run", run, "--set", "train_student.batch_rigs=2")
    assert (code, "lidar_frames" in text) == (1, True), text


CONSENSUS = (*FLEET, "--set", "losses.without_lidar='consensus'")


def test_a_first_student_is_trained_once_and_its_weights_are_part_of_the_training(recipe, run, tmp_path):
    where = ("--run", tmp_path, "--set", f"teacher_cache.location='{run / 'cache'}'")
    assert surround("train-student", recipe, *where, *CONSENSUS)[0] == 0
    (first,) = (tmp_path / "first/student").glob("best.safetensors")
    alone = load_recipe(str(tmp_path / "first/recipe.toml")).losses
    assert alone.lidar_alone
    before = first.stat().st_mtime_ns, first.read_bytes()
    code, text = surround("train-student", recipe, *where, *CONSENSUS)
    assert (code, first.stat().st_mtime_ns) == (0, before[0]), text
    trained = (tmp_path / "student/last.safetensors").read_bytes()
    motion = ("--run", tmp_path / "motion-alone", *where[2:], *FLEET)
    assert surround("train-student", recipe, *motion)[0] == 0
    assert (tmp_path / "motion-alone/student/last.safetensors").read_bytes() != trained
    first.write_bytes((tmp_path / "student/last.safetensors").read_bytes())
    code, text = surround("train-student", recipe, *where, *CONSENSUS)
    assert (code, "first_student" in text) == (1, True), text


ROWS = """{supervised=[], consensus=["losses.kl=0.3", "losses.without_lidar='consensus'"]}"""
ABLATION = ("ablate.lidar_drives=[1]", "ablate.seeds=[0,1]", f"ablate.rows={ROWS}", "train_student.batch_rigs=2")


def test_in_an_ablation_the_first_student_is_the_supervised_one(recipe, run):
    students = plan_students(load_recipe(str(recipe), ABLATION), RunFolder(run))
    assert [s.row for s in students] == ["supervised", "supervised", "consensus", "consensus"]
    assert [s.seed for s in students] == [0, 1, 0, 1]
    assert [s.first for s in students] == [None, None, *students[:2]]


@pytest.mark.torture
def test_an_ablation_trains_the_first_student_once(recipe, run):
    _, _, student, _ = plan_students(load_recipe(str(recipe), ABLATION), RunFolder(run))
    words = [word for one in (*ABLATION, "ablate.seeds=[0]") for word in ("--set", one)]
    code, text = surround("ablate", recipe, "--run", run, "--jobs", "1", *words)
    assert code == 0, text
    assert student.folder.student.is_dir()
    assert not student.folder.first.root.exists()


def test_without_metres_from_motion_nothing_is_fitted(recipe, run, tmp_path):
    where = ("--run", tmp_path, "--set", f"teacher_cache.location='{run / 'cache'}'")
    assert surround("train-student", recipe, *where, *FLEET, "--set", "losses.without_lidar='student'")[0] == 0
    assert not (tmp_path / "motion").exists()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ('data.lidar_drives=["drive-03"]', "data.lidar_drives: ['drive-03'] selects none of the 5 frames"),
        ('data.lidar_drives=["drive-99"]', "drive-99"),
        ("losses.without_lidar='poses'", "without_lidar: expected one of motion, consensus, student, got 'poses'"),
    ],
)
def test_what_cannot_be_is_one_clear_error(recipe, run, override, message):
    code, text = surround("train-student", recipe, "--run", run, "--set", override)
    assert code in (1, 2)
    assert message in text


def test_one_rig_a_step_is_too_few(recipe, run, tmp_path):
    code, text = surround("train-student", recipe, "--run", run, *FLEET[:2], "--fresh")
    assert code == 2
    assert "train_student.batch_rigs: expected at least 2, one with LiDAR and one without, got 1" in text


def test_an_ablation_spreads_lidar_over_the_drives(recipe, run):
    asked = ["ablate.lidar_drives=[1,2]", "ablate.seeds=[0]", 'ablate.rows={supervised=[], KL=["losses.kl=0.3"]}']
    students = plan_students(load_recipe(str(recipe), asked), RunFolder(run))
    assert [(s.row, s.lidar_drives, s.recipe.data.lidar_drives) for s in students] == [
        ("supervised", 1, ("drive-00",)),
        ("KL", 1, ("drive-00",)),
        ("supervised", 2, ("drive-00", "drive-02")),
        ("KL", 2, ("drive-00", "drive-02")),
    ]
    assert len({s.folder.root for s in students}) == 4
    assert surround("ablate", recipe, "--run", run, "--set", "ablate.lidar_drives=[3]")[1].endswith(
        "ablate.lidar_drives: 3 of the 2 drives of data.train\n"
    )
