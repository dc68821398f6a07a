"""Drives with LiDAR and drives with cameras alone: who teaches what, and what is kept."""

import json
import shutil
from itertools import count
from pathlib import Path

import numpy as np
import pytest
import torch
from support.surround import RECIPE, surround

from data_cache.dataset import CachedFrames
from data_cache.errors import SurroundWarning
from data_cache.metres import read_metres
from data_cache.shards.reader import CacheReader
from data_cache.storage.claims import Claims
from pipeline.ablation.student import plan_students
from pipeline.recipe.config import load_recipe
from pipeline.recipe.run_folder import RunFolder
from pipeline.runs.train_student import refiner_job
from stages.compute.preemption import Preempted
from stages.training import motion_fits as module
from stages.training import refined_metres as refining
from stages.training.motion_fits import motion_fits
from stages.training.refined_metres import RefinerJob, refined_metres

FLEET = ("--set", 'data.lidar_drives=["drive-00"]', "--set", "train_student.batch_rigs=2")
MOTION = (*FLEET, "--set", "losses.without_lidar='motion'")


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


def metres_of(path: Path) -> np.ndarray:
    return read_metres(path, (6, 32, 64), "any")


def test_frames_without_lidar_are_fitted_once_and_train_the_student(recipe, run):
    code, text = surround("train-student", recipe, "--run", run, *MOTION)
    assert (code, "3 steps" in text) == (0, True), text
    (kept,) = (run / "motion").iterdir()
    fits = fits_of(kept)
    assert fits.keys() == {"drive-02/0", "drive-02/1", "drive-02/2"}
    assert all(len(fit) == 6 for fit in fits.values())
    # Cut off while it was written: what is whole is kept, the rest is done again.
    whole = kept.read_text()
    kept.write_text(whole[: whole.rindex('"fit"')])
    assert len(fits_of(kept)) == 2
    assert surround("train-student", recipe, "--run", run, *MOTION, "--fresh")[0] == 0
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
        return torch.full((6, 2), 0.1)

    monkeypatch.setattr(module, "fit_to_motion", fit)
    asked = (reader, load_recipe(str(recipe)).bins, (0.1, 80.0), frozenset({"drive-00/0"}), run / "shared")
    found = motion_fits(*asked, lambda: False)
    assert found.keys() == {"drive-00/1", "drive-02/0", "drive-02/1", "drive-02/2"}
    assert len(fitted) <= 5


def test_another_choice_of_drives_is_another_training(recipe, run):
    """A state is not continued with other LiDAR."""
    assert surround("train-student", recipe, "--run", run, *MOTION)[0] == 0
    code, text = surround("train-student", recipe, "--run", run, "--set", "train_student.batch_rigs=2")
    assert (code, "lidar_frames" in text) == (1, True), text


def test_refined_metres_are_made_once_and_train_the_student(recipe, run, tmp_path):
    where = ("--run", tmp_path, "--set", f"teacher_cache.location='{run / 'cache'}'")
    code, text = surround("train-student", recipe, *where, *FLEET)
    assert code == 0, text
    (motion,), (refined,) = (tmp_path / "motion").iterdir(), (tmp_path / "refined").iterdir()
    assert fits_of(motion).keys() == {f"drive-{i}" for i in ("00/0", "00/1", "02/0", "02/1", "02/2")}
    kept = {path.name: metres_of(path) for path in sorted(refined.glob("*.npz"))}
    assert list(kept) == ["000000.npz", "000001.npz", "000002.npz"]
    placed = np.array([[scale > 0 for scale, _ in fits_of(motion)[f"drive-02/{i}"]] for i in range(3)])
    labelled = CachedFrames(CacheReader(run / "cache"), ("drive-00/0", "drive-00/1"))
    near_m, far_m = load_recipe(str(recipe)).data.depth_range_m
    for i, metres in enumerate(kept.values()):  # where the returns of the two frames with LiDAR fall, in turns
        lidar_m = labelled[i % 2].lidar_depth_m.numpy()
        falls = (lidar_m > near_m) & (lidar_m < far_m) & placed[i][:, None, None]
        assert np.array_equal(metres > 0, falls)
        assert falls.any()
    # A file that was deleted comes back from the state of the network, the others are left alone.
    times = {path: path.stat().st_mtime_ns for path in refined.glob("*.npz")}
    lost = refined / "000001.npz"
    lost.unlink()
    assert surround("train-student", recipe, *where, *FLEET, "--fresh")[0] == 0
    assert np.array_equal(metres_of(lost), kept[lost.name])
    assert all(path.stat().st_mtime_ns == times[path] for path in times if path != lost)
    # Fits of frames with LiDAR are there now, and do not take its place.
    found = motion_fits(
        CacheReader(run / "cache"),
        load_recipe(str(recipe)).bins,
        load_recipe(str(recipe)).data.depth_range_m,
        frozenset({"drive-00/0", "drive-00/1"}),
        tmp_path / "motion",
        lambda: False,
    )
    assert found.keys() == {"drive-02/0", "drive-02/1", "drive-02/2"}
    assert surround("train-student", recipe, *where, *FLEET, "--dry-run")[0] == 0
    # Nothing is made for a training that has ended, or that will be refused.
    shutil.rmtree(refined)
    motion.unlink()
    code, text = surround("train-student", recipe, *where, *FLEET)
    assert (code, refined.exists(), motion.exists()) == (0, False, False), text
    code, text = surround("train-student", recipe, *where, *MOTION)
    assert not motion.exists()
    assert (code, "metres" in text, "without_lidar" in text) == (1, True, True), text


def test_a_refiner_that_was_stopped_goes_on(recipe, run, tmp_path):
    how = load_recipe(str(recipe), ["train_student.steps=8"])
    reader = CacheReader(run / "cache")
    fits = {frame_id: torch.tensor([[0.1, 0.02]]).expand(6, 2) for frame_id in reader.frames.train}

    def job(folder: Path) -> RefinerJob:
        lidar = frozenset({"drive-00/0", "drive-00/1"})
        return refiner_job(how, reader, lidar, fits, RunFolder(folder), torch.device("cpu"))

    whole = refined_metres(job(tmp_path / "whole"), lambda: False)
    asked = iter([False, False, True, False, False, False, True])  # after two steps, then after one frame
    for _ in range(2):
        with pytest.raises(Preempted, match="kept|saved|keeps"):
            refined_metres(job(tmp_path / "stopped"), lambda: next(asked))
    stopped = refined_metres(job(tmp_path / "stopped"), lambda: False)
    assert whole.keys() == stopped.keys() == {"drive-02/0", "drive-02/1", "drive-02/2"}
    for frame_id, path in whole.items():
        assert np.array_equal(metres_of(path), metres_of(stopped[frame_id]))


def test_a_refiner_whose_states_are_damaged_is_trained_again(recipe, run, tmp_path):
    reader, how = CacheReader(run / "cache"), load_recipe(str(recipe))
    fits = {frame_id: torch.tensor([[0.1, 0.02]]).expand(6, 2) for frame_id in reader.frames.train}
    job = refiner_job(how, reader, frozenset({"drive-00/0"}), fits, RunFolder(tmp_path), torch.device("cpu"))
    files = refined_metres(job, lambda: False)
    before = metres_of(files["drive-02/1"])
    files["drive-02/1"].unlink()
    for state in (tmp_path / "refined" / job.digest / "states").glob("*.safetensors"):
        state.write_bytes(state.read_bytes()[:-100])
    with pytest.warns(SurroundWarning, match=r"is damaged.*; the refiner is trained again"):
        assert refined_metres(job, lambda: False) == files
    assert np.array_equal(metres_of(files["drive-02/1"]), before)


def test_while_another_process_refines_this_one_waits(recipe, run, tmp_path, monkeypatch):
    reader, how = CacheReader(run / "cache"), load_recipe(str(recipe))
    fits = {frame_id: torch.tensor([[0.1, 0.02]]).expand(6, 2) for frame_id in reader.frames.train}
    job = refiner_job(how, reader, frozenset({"drive-00/0"}), fits, RunFolder(tmp_path), torch.device("cpu"))
    folder = tmp_path / "refined" / job.digest
    folder.mkdir(parents=True)
    other = Claims(folder / "refiner.lock")
    assert other.take(0)
    waits = []
    clock = count(0, 5)
    monkeypatch.setattr(refining.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(refining.time, "sleep", waits.append)
    with pytest.raises(Preempted, match="another process trained the refiner"):
        refined_metres(job, lambda: True)
    assert 1 <= len(waits) <= 4  # 20 s, at 5 s a look: who works may still save
    monkeypatch.undo()
    waits.clear()

    def wait(seconds: float) -> None:
        waits.append(sorted(path.name for path in folder.glob("*.npz")))
        if len(waits) == 2:
            other.release(0)

    monkeypatch.setattr(refining.time, "sleep", wait)
    files = refined_metres(job, lambda: False)
    assert waits == [[], []]
    assert all(path.exists() for path in files.values())
    # A signal before its turn comes: nothing is begun. And how many processes there are tells no metres apart.
    files["drive-02/1"].unlink()
    with pytest.raises(Preempted, match="before the refiner"):
        refined_metres(job, lambda: True)
    digest = job.digest
    monkeypatch.setattr(refining, "process_count", lambda: 4)
    assert (job.passes, job.digest) == (4, digest)


def test_a_camera_that_motion_hardly_ever_places_is_named(recipe, run, tmp_path, monkeypatch):
    """The second camera in one of four frames, the others in all."""
    reader, fitted = CacheReader(run / "cache"), []

    def fit(disparity, moments, nearest):
        fitted.append(1)
        return torch.tensor([[0.1, 0.02]] * 6) * torch.tensor([1.0, len(fitted) == 1, *[1.0] * 4])[:, None]

    monkeypatch.setattr(module, "fit_to_motion", fit)
    asked = (reader, load_recipe(str(recipe)).bins, (0.1, 80.0), frozenset({"drive-00/0"}), tmp_path, lambda: False)
    with pytest.warns(SurroundWarning, match=r"few images of [a-z_]+ \(1 of 4 images\): motion.*are poses in metres"):
        motion_fits(*asked)
    # Two lines that got mixed up are made again, although the text of their ends is there.
    (path,) = tmp_path.iterdir()
    text = path.read_text().splitlines()
    path.write_text("\n".join([*text[:-2], text[-2][:20] + text[-1], ""]))
    with pytest.warns(SurroundWarning, match="few images"):
        assert len(motion_fits(*asked)) == 4
    assert len(fitted) == 6


def test_all_students_of_an_ablation_share_the_metres(recipe, run):
    asked = ("ablate.lidar_drives=[1]", "ablate.seeds=[0,1]", 'ablate.rows={supervised=[], KL=["losses.kl=0.3"]}')
    students = plan_students(load_recipe(str(recipe), asked), RunFolder(run))
    assert {s.shared.root for s in students} == {run}
    assert len({s.folder.root for s in students}) == 4
    # Where the metres come from is part of a student that needs them, and of no other.
    other = plan_students(load_recipe(str(recipe), [*asked, "losses.without_lidar='motion'"]), RunFolder(run))
    same = {s.row: s.folder.root == o.folder.root for s, o in zip(students, other, strict=True)}
    assert same == {"supervised": True, "KL": False}


def test_without_metres_from_motion_nothing_is_fitted(recipe, run, tmp_path):
    where = ("--run", tmp_path, "--set", f"teacher_cache.location='{run / 'cache'}'")
    assert surround("train-student", recipe, *where, *FLEET, "--set", "losses.without_lidar='student'")[0] == 0
    every = ("--set", 'data.lidar_drives=["drive-00", "drive-02"]')
    assert surround("train-student", recipe, *where, *every, "--fresh")[0] == 0
    assert not (tmp_path / "motion").exists()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ('data.lidar_drives=["drive-03"]', "data.lidar_drives: ['drive-03'] selects none of the 5 frames"),
        ('data.lidar_drives=["drive-99"]', "drive-99"),
        ("losses.without_lidar='poses'", "without_lidar: expected one of motion, refined, student, got 'poses'"),
    ],
)
def test_what_cannot_be_is_one_clear_error(recipe, run, override, message):
    code, text = surround("train-student", recipe, "--run", run, "--set", override)
    assert code in (1, 2)
    assert message in text


def test_one_rig_a_step_is_too_few(recipe, run, tmp_path):
    where = ("--set", f"teacher_cache.location='{run / 'cache'}'")
    code, text = surround("train-student", recipe, "--run", tmp_path, *where, *FLEET[:2])
    assert (code, (tmp_path / "motion").exists()) == (2, False)
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
