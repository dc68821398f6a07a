import errno
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from stages.student.checkpoint import (
    HEADER,
    STATE_FORMAT,
    Calibration,
    CheckpointError,
    Lineage,
    TrainingState,
    load_state,
    load_student,
    save_calibration,
    save_state,
    save_student,
    saved_states,
)
from stages.student.model import Student
from stages.student.spec import StudentSpec
from stages.targets.spec import BinSpec

SPEC = StudentSpec(input_size=(32, 64), near_m=0.5, far_m=80.0, focal_px=50.0, decoder_channels=8, attention_width=16)
LINEAGE = Lineage("t", "Apache-2.0", "c" * 64, "fake", (0.1, 80.0), 12)
RUN = {"train_student": {"steps": 4}, "cache": "abc"}


def student(seed: int = 0, **changes) -> Student:
    torch.manual_seed(seed)
    return Student(replace(SPEC, **changes), BinSpec(count=16, window=5))


def state(step: int, best: float = math.inf) -> TrainingState:
    return TrainingState(
        {"learner.w": torch.arange(3.0) + step, "optimizer.0.step": torch.tensor(7.0)}, step, best, measured=True
    )


@pytest.mark.parametrize("encoder", ["resnet-18", "efficientnet-lite0", "mobilenet-v2"])
def test_a_student_comes_back_from_its_file_alone_in_evaluation_mode(tmp_path, encoder):
    model, spec = student(encoder=encoder), replace(SPEC, encoder=encoder)
    save_student(tmp_path / "a", model, LINEAGE)
    loaded = load_student(tmp_path / "a", expected=spec)
    assert (loaded.lineage, loaded.student.spec, loaded.student.bins.count) == (LINEAGE, spec, 16)
    assert not loaded.student.training
    for name, value in model.state_dict().items():
        torch.testing.assert_close(loaded.student.state_dict()[name], value, rtol=0, atol=0)


def test_equal_students_are_equal_bytes(tmp_path):
    for name in "ab":
        save_student(tmp_path / name, student(), LINEAGE)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_calibration_is_kept_and_changes_nothing_else(tmp_path):
    path, found = tmp_path / "a", Calibration(0.19, "synthetic", "selection[::3]", 579030)
    save_student(path, student(), LINEAGE)
    before = load_student(path)
    assert before.calibration is None
    save_calibration(path, replace(found, sigma_scale=7.0))
    save_calibration(path, found)
    loaded = load_student(path)
    assert (loaded.calibration, loaded.lineage) == (found, LINEAGE)
    for name, value in before.student.state_dict().items():
        assert torch.equal(loaded.student.state_dict()[name], value)
    for wrong in (0.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="sigma_scale: expected a positive number"):
            replace(found, sigma_scale=wrong)


def test_another_architecture_is_refused_naming_each_difference(tmp_path):
    save_student(tmp_path / "a", student(), LINEAGE)
    with pytest.raises(CheckpointError) as error:
        load_student(tmp_path / "a", expected=replace(SPEC, encoder="resnet-34", far_m=90.0))
    assert "encoder: checkpoint has 'mobilenet-v2', recipe says 'resnet-34'" in str(error.value)
    assert "far_m: checkpoint has 80.0, recipe says 90.0" in str(error.value)
    assert "near_m" not in str(error.value)


def test_how_bins_were_stored_is_not_the_students_but_how_many_there_are_is(tmp_path):
    save_student(tmp_path / "a", student(), LINEAGE)
    for bins in (BinSpec(count=16, window=7), BinSpec(count=16, encoding="closed_form")):
        assert load_student(tmp_path / "a", SPEC, bins).student.bins == BinSpec(count=16, window=5)
    with pytest.raises(CheckpointError, match="count: checkpoint has 16, recipe says 32") as error:
        load_student(tmp_path / "a", SPEC, BinSpec(count=32, encoding="dense"))
    assert "encoding" not in str(error.value)
    assert "window" not in str(error.value)
    with pytest.raises(CheckpointError, match="sigma: checkpoint has 1.0, recipe says 2.0"):
        load_student(tmp_path / "a", SPEC, BinSpec(count=16, sigma=2.0))


def test_missing_cut_off_and_foreign_files_are_named_never_a_traceback(tmp_path):
    with pytest.raises(CheckpointError, match="no checkpoint at .*run train-student"):
        load_student(tmp_path / "none")
    save_student(tmp_path / "a", student(), LINEAGE)
    data = (tmp_path / "a").read_bytes()
    for cut in (0, 5, 200, len(data) - 1):
        (tmp_path / "a").write_bytes(data[:cut])
        with pytest.raises(CheckpointError, match="damaged or not a checkpoint"):
            load_student(tmp_path / "a")
    save_file({"x": torch.zeros(1)}, tmp_path / "b")
    with pytest.raises(CheckpointError, match="expected format surround-student/1, found None"):
        load_student(tmp_path / "b")


def test_the_newest_state_comes_back(tmp_path):
    assert load_state(tmp_path / "none", RUN) is None
    save_state(tmp_path, state(3), RUN, keep=2)
    save_state(tmp_path, state(12, 0.25), RUN, keep=2)
    found = load_state(tmp_path, RUN)
    assert found is not None
    assert (found.step, found.best) == (12, 0.25)
    assert {name: value.tolist() for name, value in found.tensors.items()} == {
        "learner.w": [12, 13, 14], "optimizer.0.step": 7,
    }  # fmt: skip


def test_so_many_states_are_kept(tmp_path):
    for step in (9, 10, 11, 100):
        save_state(tmp_path, state(step), RUN, keep=2)
    assert [path.name for path in saved_states(tmp_path)] == ["00000100.safetensors", "00000011.safetensors"]


@pytest.mark.parametrize("left", [0, 7, 60, -1])
def test_a_state_that_was_cut_off_is_never_loaded_but_the_one_before_it(tmp_path, left):
    for step in (4, 8):
        save_state(tmp_path, state(step), RUN, keep=2)
    newest = tmp_path / "00000008.safetensors"
    newest.write_bytes(newest.read_bytes()[:left])
    with pytest.warns(UserWarning, match=r"00000008.safetensors is damaged .*the state before it is used"):
        found = load_state(tmp_path, RUN)
    assert found is not None
    assert found.step == 4
    save_state(tmp_path, state(6), RUN, keep=2)
    assert [path.name for path in saved_states(tmp_path)] == ["00000006.safetensors", "00000004.safetensors"]
    (tmp_path / "00000006.safetensors").write_bytes(b"")
    (tmp_path / "00000004.safetensors").write_bytes(b"x")
    with (
        pytest.warns(match="damaged"),
        pytest.raises(CheckpointError, match="no older state is left: start again with"),
    ):
        load_state(tmp_path, RUN)


def test_a_state_of_another_run_is_refused_naming_the_difference(tmp_path):
    save_state(tmp_path, state(3), RUN, keep=2)
    with pytest.raises(CheckpointError, match="train_student.steps: state has 4, recipe says 5"):
        load_state(tmp_path, {"train_student": {"steps": 5}, "cache": "abc"})


def test_a_full_disk_leaves_the_checkpoint_before_it_untouched(tmp_path, monkeypatch):
    save_student(tmp_path / "a", student(0), LINEAGE)
    before = (tmp_path / "a").read_bytes()

    def full(path: Path, data: bytes) -> None:
        with path.open("wb") as file:
            file.write(data[: len(data) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(CheckpointError, match="the previous one is unchanged. Free some space"):
        save_student(tmp_path / "a", student(1), LINEAGE)
    assert (tmp_path / "a").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_a_flipped_bit_of_a_weight_is_found_and_the_state_before_it_is_taken(tmp_path):
    save_state(tmp_path, state(3), RUN, keep=2)
    save_state(tmp_path, state(12), RUN, keep=2)
    path = tmp_path / "00000012.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.warns(match="00000012.safetensors is damaged: its weights differ from their checksum"):
        found = load_state(tmp_path, RUN)
    assert found is not None
    assert found.step == 3


def test_a_state_that_lacks_what_it_should_tell_is_damaged(tmp_path):
    save_file(
        {"x": torch.zeros(1)},
        tmp_path / "00000001.safetensors",
        metadata={HEADER: json.dumps({"format": STATE_FORMAT})},
    )
    with pytest.raises(CheckpointError, match=r"its header cannot be read \(KeyError\('run'\)\); no older state"):
        load_state(tmp_path, RUN)
