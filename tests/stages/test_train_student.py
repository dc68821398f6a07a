import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.fakes import CPU, FakeSource
from support.teacher_caches import write_teacher_cache as cache_run
from support.tiny_encoder import TINY_LITE
from support.trainings import RANGE_M, SPEC, TINY, stop_after, train

from data_cache.dataset import CachedFrames, collate
from data_cache.shards.encodings import ENCODINGS
from data_cache.shards.reader import CacheReader
from data_cache.storage.claims import Claims
from stages.compute.preemption import Preempted
from stages.losses.objective import Learner, loss_terms
from stages.losses.spec import LossSpec
from stages.student.checkpoint import CheckpointError, load_student
from stages.student.model import Student
from stages.targets.binning import AffineBinning
from stages.targets.spec import BinSpec
from stages.train_student import train_student
from stages.training.preflight import TrainingJob
from stages.training.step import Training, TrainingError


def state(folder: Path) -> bytes:
    """The newest saved state."""
    return max((folder / "states").glob("*.safetensors")).read_bytes()


@pytest.fixture(scope="module")
def straight(cache, tmp_path_factory) -> Path:
    """Where an undisturbed run has ended."""
    folder = tmp_path_factory.mktemp("straight")
    train(cache, folder)
    return folder


@pytest.mark.parametrize(("workers", "stops"), [((0, 0), (1,)), ((0, 0), (3, 1)), ((1, 2), (2,))])
def test_stop_and_resume_gives_the_same_bytes_as_a_straight_run(cache, straight, tmp_path, workers, stops):
    """With so many loader workers until it stops, and so many afterwards."""
    before, after = (replace(SPEC, workers=count) for count in workers)
    for calls in stops:
        with pytest.raises(Preempted, match="state is saved"):
            train(cache, tmp_path / "stopped", before, should_stop=stop_after(calls))
    report = train(cache, tmp_path / "stopped", after)
    assert (report.steps_skipped, report.steps_done) == (sum(stops), 6 - sum(stops))
    stopped = tmp_path / "stopped"
    assert (straight / "last.safetensors").read_bytes() == (stopped / "last.safetensors").read_bytes()
    assert state(straight) == state(stopped)


def test_a_student_of_inverted_residuals_resumes_to_the_same_bytes(cache, tmp_path):
    chosen = {"student": replace(TINY, encoder=TINY_LITE)}
    train(cache, tmp_path / "whole", **chosen)
    with pytest.raises(Preempted, match="state is saved"):
        train(cache, tmp_path / "stopped", should_stop=stop_after(3), **chosen)
    train(cache, tmp_path / "stopped", **chosen)
    assert (tmp_path / "whole/last.safetensors").read_bytes() == (tmp_path / "stopped/last.safetensors").read_bytes()
    assert state(tmp_path / "whole") == state(tmp_path / "stopped")


def test_who_is_asked_to_stop_while_it_measures_measures_when_it_goes_on(cache, tmp_path):
    """Each of six steps is a question, and each of two frames after the steps 2, 4 and 6."""
    calls, chosen = 10, {"selection": ("d/0", "d/2")}
    whole = train(cache, tmp_path / "whole", **chosen)
    with pytest.raises(Preempted, match="stopped after step 6 of 6"):
        train(cache, tmp_path / "stopped", should_stop=stop_after(calls), **chosen)
    report = train(cache, tmp_path / "stopped", **chosen)
    assert report.best_abs_rel == whole.best_abs_rel
    for name in ("best.safetensors", "last.safetensors", "states/00000006.safetensors"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "stopped" / name).read_bytes()
    scores = [
        [line for line in (tmp_path / run / "log.jsonl").read_text().splitlines() if "selection" in line]
        for run in ("whole", "stopped")
    ]
    assert scores[0] == scores[1]
    assert len(scores[0]) == 3
    assert train(cache, tmp_path / "stopped", should_stop=stop_after(0), **chosen).steps_done == 0


def test_nothing_is_staged_before_a_run_is_accepted_or_when_it_is_done(cache, straight, tmp_path):
    def never(reader: CacheReader) -> CacheReader:
        raise AssertionError

    with pytest.raises(CheckpointError, match="learning_rate"):
        train(cache, straight, replace(SPEC, learning_rate=0.1), staged=never)
    assert train(cache, straight, staged=never).steps_done == 0
    with pytest.raises(AssertionError):
        train(cache, tmp_path, staged=never)


def test_a_run_killed_between_saves_resumes_from_the_last_one_to_the_same_bytes(cache, straight, tmp_path, monkeypatch):
    real, calls = Training.step, 0

    def dying(*arguments):
        nonlocal calls
        calls += 1
        if calls == 4:  # step 4 is under way, the state is of step 2
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(Training, "step", dying)
    with pytest.raises(KeyboardInterrupt):
        train(cache, tmp_path / "killed")
    monkeypatch.setattr(Training, "step", real)
    assert train(cache, tmp_path / "killed").steps_skipped == 2
    assert (straight / "last.safetensors").read_bytes() == (tmp_path / "killed/last.safetensors").read_bytes()


def test_what_a_killed_training_left_half_written_is_cleared_away(cache, tmp_path):
    (tmp_path / "states").mkdir()
    for name in ("last.safetensors.1a2b.partial", "states/00000002.safetensors.3c4d.partial"):
        (tmp_path / name).write_bytes(b"half")
    train(cache, tmp_path, replace(SPEC, steps=1))
    assert sorted(path.name for path in tmp_path.rglob("*.safetensors*")) == [
        "00000001.safetensors",
        "last.safetensors",
    ]


def test_two_trainings_do_not_share_a_folder(cache, tmp_path):
    lock = Claims(tmp_path / "training.lock")
    assert lock.take(0)
    with pytest.raises(TrainingError, match=r"another process is training in .*; wait for it to end"):
        train(cache, tmp_path)
    lock.release(0)
    train(cache, tmp_path, replace(SPEC, steps=1))


def test_running_it_twice_trains_once_and_fresh_starts_over(cache, tmp_path):
    train(cache, tmp_path)
    before = (tmp_path / "last.safetensors").read_bytes()
    assert train(cache, tmp_path).steps_done == 0
    assert train(cache, tmp_path, fresh=True).steps_done == 6
    assert (tmp_path / "last.safetensors").read_bytes() == before


def test_processes_that_found_different_states_are_refused(cache, tmp_path, monkeypatch):
    """As when each machine has a run folder of its own."""
    monkeypatch.setattr("stages.train_student.everybody", lambda begin: [4, begin])
    with pytest.raises(CheckpointError, match=r"found states of different steps \[4, 0\]; give --run a path on a disk"):
        train(cache, tmp_path)


def test_other_settings_do_not_continue_a_run(cache, straight):
    with pytest.raises(CheckpointError, match=r"learning_rate: state has 0.001, recipe says 0.1(.|\n)*--fresh"):
        train(cache, straight, replace(SPEC, learning_rate=0.1))
    with pytest.raises(CheckpointError, match="losses.kl"):
        train(cache, straight, weights=LossSpec(kl=0.9))


def test_training_lowers_the_loss_and_moves_every_part_of_the_student(cache, tmp_path):
    torch.manual_seed(0)
    before = Student(TINY, BinSpec(prob_stride=4)).state_dict()
    spec = replace(SPEC, steps=40, learning_rate=2e-3, checkpoint_every=100)
    train(cache, tmp_path, spec, LossSpec(kl=1.0, cross=0.3))
    log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in log] == [10, 20, 30, 40]
    assert log[-1]["supervised"] < log[0]["supervised"]
    assert log[-1]["kl"] < log[0]["kl"]
    after = load_student(tmp_path / "last.safetensors").student.state_dict()
    still = [name for name, value in before.items() if torch.equal(value, after[name])]
    assert still == []


@pytest.fixture(scope="session")
def encoded(tmp_path_factory, teacher_folder) -> dict[str, Path]:
    roots = {name: tmp_path_factory.mktemp(name) for name in ENCODINGS}
    for name, root in roots.items():
        source = FakeSource(5, missing={"d/1": (2,)})
        cache_run(root, source, teacher_folder, BinSpec(prob_stride=4, encoding=name))
    return roots


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_student_trains_on_every_encoding(encoded, tmp_path, encoding):
    torch.manual_seed(0)
    student = Student(TINY, BinSpec(prob_stride=4, encoding=encoding))
    ids, spec, weights = ("d/0", "d/1"), replace(SPEC, steps=2), LossSpec(cross=0.3)
    reader = CacheReader(encoded[encoding])
    train_student(TrainingJob(reader, student, ids, (), tmp_path, spec, weights, RANGE_M, CPU))
    (entry,) = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert entry["step"] == 2
    assert min(entry["kl"], entry["cross"]) > 0


def test_every_encoding_says_the_same_and_a_missing_camera_says_nothing(encoded):
    torch.manual_seed(0)
    student = Student(TINY, BinSpec(prob_stride=4)).eval()
    weights = LossSpec(cross=0.3)

    def terms(encoding: str, **changes) -> torch.Tensor:
        frames = CachedFrames(CacheReader(encoded[encoding]), ["d/0", "d/1"])
        rigs = replace(collate([frames[0], frames[1]]), **changes)
        t = loss_terms(Learner(student), AffineBinning(), rigs, rigs.image.float() / 255, weights, RANGE_M, "fp32")
        return torch.stack([t.kl, t.cross])

    with torch.no_grad():
        dense = terms("dense")
        assert (dense > 0.01).all()
        for encoding in ("window", "closed_form"):
            torch.testing.assert_close(terms(encoding), dense, rtol=2e-3, atol=0)
        # d/1 lacks its third camera; what its bins say there must not matter.
        bins = collate([CachedFrames(CacheReader(encoded["closed_form"]), ["d/0", "d/1"])[i] for i in (0, 1)]).bins
        assert not bins.bin_map[1, 2].any()
        noise = bins.bin_map.clone()
        noise[1, 2] = torch.arange(8 * 16).view(8, 16) * 500
        torch.testing.assert_close(terms("closed_form", bins=replace(bins, bin_map=noise)), terms("closed_form"))


def test_the_log_of_a_resumed_run_has_every_step_once(cache, tmp_path):
    spec = replace(SPEC, steps=20, checkpoint_every=10)
    with pytest.raises(Preempted):
        train(cache, tmp_path, spec, should_stop=stop_after(15))
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"step": 2')  # cut off by a kill
    train(cache, tmp_path, spec)
    log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in log] == [10, 20]
    assert list((tmp_path / "tensorboard").iterdir())


def test_best_is_kept_where_there_is_a_selection_split(cache, straight, tmp_path):
    report = train(cache, tmp_path, selection=("d/2",))
    scores = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    found = {e["step"]: e["selection_abs_rel"] for e in scores if "selection_abs_rel" in e}
    assert list(found) == [2, 4, 6]
    best_step = min(found, key=lambda step: found[step])
    assert report.best_abs_rel == found[best_step]
    assert load_student(tmp_path / "best.safetensors").lineage.steps == best_step
    assert not (straight / "best.safetensors").exists()


def test_quarantined_frames_are_skipped_and_counted(cache, tmp_path):
    assert train(cache, tmp_path).quarantined_count == 1


def test_nothing_but_quarantined_frames_is_an_error(tmp_path, teacher_folder):
    cache_run(tmp_path / "cache", FakeSource(5, broken={f"d/{i}": "x" for i in range(5)}), teacher_folder)
    with pytest.raises(TrainingError, match="all 5 training frames are quarantined"):
        train(tmp_path / "cache", tmp_path)


def test_a_loss_that_is_not_finite_stops_naming_term_and_frames(cache, tmp_path, monkeypatch):
    monkeypatch.setattr("stages.losses.terms.bin_kl", lambda *_: torch.tensor(math.nan, requires_grad=True))
    with pytest.raises(TrainingError, match=r"step 1: loss is not finite: .*'kl': nan.*frames d/\d, d/\d"):
        train(cache, tmp_path)
    assert not (tmp_path / "last.safetensors").exists()


def test_lidar_that_is_all_out_of_range_is_an_error_and_not_a_metric_student(cache, tmp_path):
    torch.manual_seed(0)
    student = Student(TINY, BinSpec(prob_stride=4))
    ids, spec, range_m = ("d/0", "d/3"), replace(SPEC, steps=1), (70.0, 80.0)
    with pytest.raises(TrainingError, match=r"no training frame has a LiDAR return between 70.0 and 80.0 m"):
        train_student(TrainingJob(CacheReader(cache), student, ids, (), tmp_path, spec, LossSpec(), range_m, CPU))
    lidar_off = LossSpec(supervised=0.0)
    train_student(TrainingJob(CacheReader(cache), student, ids, (), tmp_path, spec, lidar_off, range_m, CPU))


def test_a_state_without_its_student_writes_it_again(cache, tmp_path):
    train(cache, tmp_path)
    before = (tmp_path / "last.safetensors").read_bytes()
    (tmp_path / "last.safetensors").unlink()
    (tmp_path / "states/00000006.safetensors.123.partial").write_text("left by a kill")
    assert train(cache, tmp_path).steps_done == 0
    assert (tmp_path / "last.safetensors").read_bytes() == before
    assert not list(tmp_path.rglob("*.partial"))
