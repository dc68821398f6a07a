"""`surround export`: its files say what they are, and what does not say what PyTorch says is not written."""

import json
import os
import re
import shutil
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from click import Choice
from PIL import Image
from support.deploy_examples import python_example
from support.deployed import deployable
from support.fakes import CPU, NAMES, NATIVE_SIZE, STUDENT_SIZE, FakeSource, random_record, tiny_identity
from support.surround import surround
from torch.export import ExportedProgram

from data_cache.errors import SettingError
from data_cache.frames.views import rig_views
from data_cache.shards.identity import Resolved, SplitFrames
from data_cache.shards.writer import CacheWriter
from pipeline.api import load_student
from pipeline.cli.students import export as export_verb
from pipeline.release.card import NOT_MEASURED
from pipeline.runs import export as command
from pipeline.runs import splits
from stages.compute.cpu import cpu_flags, flags_text
from stages.compute.resize import depth_at
from stages.deploy import parity, quantize
from stages.deploy.export import export_program, onnx_model
from stages.deploy.quantize import INT8_TARGETS, quantized
from stages.deploy.runtimes import DeployedRigs
from stages.inference.predict import predict_rig
from stages.student.checkpoint import Calibration, CheckpointError, Lineage, save_calibration, save_student
from stages.student.model import Student

LINEAGE = Lineage("tiny", "CC-BY-NC-4.0", "c0ffee" * 10, "fake", (0.1, 80.0), 1234)
RECIPE = """
[data]
source = "fake"
train = ["d[:3]"]
test = ["d[3:]"]
[teacher_cache]
input_size = [42, 70]
[student]
input_size = [32, 64]
near_m = 1.0
far_m = 50.0
focal_px = 99.0
[train_student]
steps = 1
batch_rigs = 1
"""

SOURCE = FakeSource(6, missing={"d/4": (1,)}, broken={"d/5": "image missing: x"})


@pytest.fixture(scope="module")
def student() -> Student:
    return deployable()


@pytest.fixture(scope="module")
def program(student) -> ExportedProgram:
    return export_program(student, view_count=3, batch=None)


@pytest.fixture(scope="module")
def model(program) -> bytes:
    return onnx_model(program, {"format": "test"})


@pytest.fixture
def traced(tmp_path: Path, monkeypatch, student) -> Path:
    """A run with the student and its recipe, whose source lies in memory; each export traces it anew."""
    monkeypatch.setattr(splits, "open_source", lambda *_, **__: SOURCE)
    save_student(tmp_path / "run/student/last.safetensors", student, LINEAGE)
    (tmp_path / "run/recipe.toml").write_text(RECIPE)
    return tmp_path


@pytest.fixture
def folder(traced: Path, monkeypatch, program, model) -> Path:
    """The same; its trace is made once for all tests."""
    monkeypatch.setattr(command, "export_program", lambda *_: program)
    monkeypatch.setattr(command, "onnx_model", lambda _, told: command.with_metadata(model, told))
    return traced


def export(folder: Path, *arguments: object) -> tuple[int, str]:
    out = () if "--out" in arguments else ("--out", folder / "s.onnx")
    return surround("export", folder / "run/student/last.safetensors", *out, *arguments)


def write_cache(root: Path, frame_ids: tuple[str, ...], **changes: object) -> Path:
    frames = SplitFrames(frame_ids, ())
    identity = tiny_identity(frames, **{"image_size": STUDENT_SIZE, "shard_frames": len(frame_ids)} | changes)
    records = [random_record(identity, i) for i in range(len(frame_ids))]
    CacheWriter(root, identity, Resolved("fp32", 6, 1), frames).commit(0, records, {}, {})
    return root


def test_the_command_writes_a_file_that_says_what_it_is_and_prints_what_it_costs(folder):
    code, text = export(folder, "--batch", "dynamic", "--pt2", "--json")
    assert (code, "d/5: image missing: x" in text) == (3, True), text
    told = json.loads(text[text.index("{") : text.rindex("}") + 1])
    assert (told["dataset"], told["split"], told["frames"], told["truth"]) == ("fake", "d[3:]", 2, "LiDAR")
    assert told["files"] == [str(folder / "s.onnx"), str(folder / "s.pt2")]
    rows = {(row["runtime"], row["precision"]): row for row in told["parity"]}
    assert {("PyTorch", "fp32"), ("onnxruntime", "fp32"), ("OpenVINO", "fp32")} <= rows.keys()
    assert rows["onnxruntime", "fp32"]["file_bytes"] == (folder / "s.onnx").stat().st_size
    assert rows["onnxruntime", "fp32"]["max_relative"] < 1e-4
    assert rows["onnxruntime", "fp32"]["abs_rel"] == pytest.approx(rows["PyTorch", "fp32"]["abs_rel"], rel=1e-4)
    session = onnxruntime.InferenceSession(folder / "s.onnx")
    inside = {
        key.removeprefix("surround."): json.loads(value)
        for key, value in session.get_modelmeta().custom_metadata_map.items()
    }
    assert inside["format"] == "surround-export/1"
    assert (inside["input_size"], inside["cameras"], inside["batch"]) == ([32, 64], list(NAMES), "dynamic")
    assert inside["views_per_call"] == 3
    assert (inside["mean"], inside["std"]) == ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    assert (inside["focal_px"], inside["range_m"], inside["trained_range_m"]) == (40.0, [1.0, 65536.0], [0.1, 80.0])
    assert (inside["teacher"], inside["teacher_licence"]) == ("tiny", "CC-BY-NC-4.0")
    assert inside["student_licence"] == "Apache-2.0"  # its encoder has started from nobody's weights
    assert (inside["steps"], inside["dataset"], inside["precision"]) == (1234, "fake", "fp32")
    assert torch.export.load(folder / "s.pt2").module()(*(v.clone() for v in torch_inputs())).shape == (1, 3, 32, 64)


def torch_inputs() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.zeros(1, 3, 3, *STUDENT_SIZE, dtype=torch.uint8), torch.ones(1, 3)


def test_int8_is_calibrated_on_the_cache_of_the_run(folder, monkeypatch):
    write_cache(folder / "run/cache", ("d/0", "d/1"))
    seen: list[DeployedRigs] = []

    def spy(data: bytes, calibration: Iterable[DeployedRigs], target: str) -> bytes:
        seen.extend(calibration)
        return quantized(data, seen, target)

    monkeypatch.setattr(command, "quantized", spy)
    monkeypatch.setattr(parity, "INT8_LIMIT", 1.0)
    code, text = export(folder, "--int8", "cpu", "--set", 'data.test=["d[3:5]"]')
    assert code == 0, text
    rows = [[cell.strip() for cell in line.split("|")[1:4]] for line in text.splitlines() if "| onnxruntime" in line]
    assert rows == [
        ["onnxruntime", "fp32", "everywhere"],
        ["onnxruntime", "int8 in float", "any CPU"],
        ["onnxruntime", "int8", "any CPU"],
    ]
    assert f"of a CPU with: {flags_text(cpu_flags())}" in text
    assert f"{folder / 's.onnx'}, {folder / 's.int8.onnx'}; compared on 2 frames of fake d[3:5]" in text
    identity = tiny_identity(SplitFrames(("d/0", "d/1"), ()), image_size=STUDENT_SIZE, shard_frames=2)
    expected = [random_record(identity, i).image.transpose(0, 3, 1, 2) for i in range(2)]
    np.testing.assert_array_equal(np.concatenate([rig.image for rig in seen]), np.stack(expected))
    inside = onnxruntime.InferenceSession(folder / "s.int8.onnx").get_modelmeta().custom_metadata_map
    assert (inside["surround.precision"], inside["surround.int8_target"]) == ('"int8"', '"cpu"')
    assert inside["surround.int8_right_on"] == '"any CPU"'
    assert inside["surround.cameras"] == json.dumps(NAMES)


def test_a_file_for_tensorrt_is_neither_run_in_integers_nor_timed(folder, monkeypatch):
    write_cache(folder / "run/cache", ("d/0", "d/1"))
    monkeypatch.setattr(parity, "INT8_LIMIT", 1.0)
    code, text = export(folder, "--int8", "tensorrt", "--set", 'data.test=["d[3:5]"]', "--json")
    assert code == 0, text
    told = json.loads(text[text.index("{") : text.rindex("}") + 1])
    rows = [(row["runtime"], row["precision"], row["right_on"], row["ms_per_rig"]) for row in told["parity"]]
    assert [row for row in rows if "int8" in row[1]] == [("onnxruntime", "int8 in float", "TensorRT", None)]


def test_a_graph_of_one_camera_is_calibrated_compared_and_written(traced, monkeypatch):
    """With sigma. Frame d/4 lacks its second camera; frames of the cache lack some, too, and those do not calibrate."""
    save_student(traced / "run/student/last.safetensors", deployable(attention_width=0), LINEAGE)
    save_calibration(traced / "run/student/last.safetensors", Calibration(0.25, "fake", "d[:1]", 1234))
    write_cache(traced / "run/cache", ("d/0", "d/1"))
    seen: list[DeployedRigs] = []

    def spy(data: bytes, calibration: Iterable[DeployedRigs], target: str) -> bytes:
        seen.extend(calibration)
        return quantized(data, seen, target)

    monkeypatch.setattr(command, "quantized", spy)
    monkeypatch.setattr(parity, "INT8_LIMIT", 10.0)
    how = ("--one-camera", "--confidence", "--int8", "cpu", "--set", 'data.test=["d[3:5]"]', "--json")
    code, text = export(traced, *how)
    assert code == 0, text
    told = json.loads(text[text.index("{") : text.rindex("}") + 1])
    assert (told["frames"], told["views_per_call"]) == (2, 1)
    rows = {(row["runtime"], row["precision"]): row for row in told["parity"]}
    assert rows["onnxruntime, a core each", "fp32"]["max_relative"] < 1e-4
    assert rows["OpenVINO, a core each", "fp32"]["max_relative"] < 1e-4
    assert rows["OpenVINO, a core each", "int8"]["ms_per_rig"] is not None
    for name in ("s.onnx", "s.int8.onnx"):
        session = onnxruntime.InferenceSession(traced / name)
        assert [entry.shape for entry in session.get_inputs()] == [[1, 1, 3, 32, 64], [1, 1]]
        assert [entry.name for entry in session.get_outputs()] == ["depth_m", "sigma"]
        inside = session.get_modelmeta().custom_metadata_map
        assert (inside["surround.cameras"], inside["surround.views_per_call"]) == (json.dumps(NAMES), "1")
        assert inside["surround.sigma_scale"] == "0.25"
        assert json.loads(inside["surround.calibration"])["pixels"] == 1234
    identity = tiny_identity(SplitFrames(("d/0", "d/1"), ()), image_size=STUDENT_SIZE, shard_frames=2)
    records = [random_record(identity, i) for i in range(2)]
    there = [record.view_valid & (record.intrinsics[:, 0, 0] > 0) for record in records]
    assert 0 < sum(map(sum, there)) < 6
    expected = [record.image[valid].transpose(0, 3, 1, 2) for record, valid in zip(records, there, strict=True)]
    np.testing.assert_array_equal(np.concatenate([one.image[:, 0] for one in seen]), np.concatenate(expected))
    focal_px = [record.intrinsics[valid, 0, 0] for record, valid in zip(records, there, strict=True)]
    assert [one.focal_px.item() for one in seen] == np.concatenate(focal_px).tolist()


def test_a_graph_of_one_camera_of_a_student_with_attention_is_one_error(folder):
    code, text = export(folder, "--one-camera")
    assert (code, "expected a student without attention between views" in text) == (1, True), text
    assert not list(folder.glob("*.onnx*"))


@pytest.mark.parametrize(("flags", "named"), [({"avx2", "avx512f"}, "avx2 avx512f"), (set(), "unknown")])
def test_a_cpu_that_lacks_what_a_file_needs_is_one_error(folder, monkeypatch, flags, named):
    monkeypatch.setattr(quantize, "cpu_flags", lambda: frozenset(flags))
    code, text = export(folder, "--int8", "cpu-vnni")
    assert (code, f"expected a CPU with avx_vnni or avx512_vnni, found one with: {named}." in text) == (2, True), text
    assert "use --int8 cpu" in text
    assert not list(folder.glob("*.onnx*"))


def test_an_unknown_target_of_int8_is_one_error(folder):
    (choice,) = [option.type for option in export_verb.params if option.name == "int8"]
    assert isinstance(choice, Choice)
    assert [*choice.choices] == [*INT8_TARGETS]
    code, text = export(folder, "--int8", "gpu")
    assert (code, "'gpu' is not one of 'cpu', 'cpu-vnni', 'tensorrt'" in text) == (2, True), text
    with pytest.raises(SettingError, match="int8: expected one of cpu, cpu-vnni, tensorrt, got 'gpu'"):
        command.run_export(folder / "run/student/last.safetensors", folder / "s.onnx", int8="gpu")


def test_a_cache_that_does_not_fit_is_not_calibrated_on(folder):
    code, text = export(folder, "--int8", "cpu")
    assert (code, "no cache" in text) == (1, True), text
    seen = write_cache(folder / "seen", ("d/0", "d/3"))
    code, text = export(folder, "--int8", "cpu", "--cache", seen)
    assert (code, "1 frame both learnt from and tested on, 'd/3' among them" in text) == (2, True), text
    small = write_cache(folder / "small", ("d/0",), image_size=(4, 6))
    code, text = export(folder, "--int8", "cpu", "--cache", small)
    assert (code, "expected images of [32, 64] from 3 cameras, found [4, 6] from 3" in text) == (1, True), text
    assert not list(folder.glob("*.onnx*"))


def test_what_is_no_longer_the_student_is_not_written_and_what_was_there_stays(folder, monkeypatch):
    monkeypatch.setattr(parity, "FP32_LIMIT", 0.0)
    (folder / "s.onnx").write_text("of yesterday")
    code, text = export(folder)
    assert (code, "nothing was written" in text) == (1, True), text
    assert (folder / "s.onnx").read_text() == "of yesterday"
    assert [path.name for path in folder.glob("s*")] == ["s.onnx"]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--out", "student.pb"), 2, "expected a file name that ends in .onnx, got student.pb"),
        (("--batch", "0"), 2, "expected a number of rigs, at least 1, or dynamic, got '0'"),
        (("--on", "no-such-recipe"), 2, "no recipe 'no-such-recipe'"),
        (("--set", 'data.test=["d[2:]"]'), 2, "'d/2' among them"),
    ],
)
def test_what_cannot_be_exported_is_one_error(folder, arguments, code, message):
    found_code, text = export(folder, *arguments)
    assert (found_code, message in text) == (code, True), text


def test_where_nothing_can_be_written_nothing_is_computed(folder, monkeypatch):
    monkeypatch.setattr("pipeline.runs.export.load_student", lambda *_: pytest.fail("the student was read"))
    (folder / "file").write_text("not a folder")
    code, text = export(folder, "--out", folder / "file" / "s.onnx")
    assert (code, f"cannot write {folder / 'file' / 's.onnx'}" in text) == (1, True), text


def test_frames_of_a_data_set_that_taught_it_nothing_may_be_any(folder, student):
    save_student(folder / "run/student/last.safetensors", student, replace(LINEAGE, dataset="elsewhere"))
    code, text = export(folder, "--set", 'data.test=["d[2:5]"]')
    assert (code, "compared on 3 frames of fake d[2:5]" in text) == (0, True), text


def test_a_missing_checkpoint_package_or_frame_is_one_error(folder, monkeypatch):
    code, text = surround("export", folder / "nothing.safetensors", "--out", folder / "s.onnx")
    assert (code, "no checkpoint at" in text) == (1, True), text
    shutil.copy(folder / "run/student/last.safetensors", folder / "alone.safetensors")
    code, text = surround("export", folder / "alone.safetensors", "--out", folder / "s.onnx")
    assert (code, "--on: the checkpoint lies in no run" in text) == (2, True), text
    code, text = export(folder, "--set", 'data.test=["d[5:]"]')
    assert (code, "no test frame to compare on: image missing: x" in text) == (1, True), text
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    code, text = export(folder)
    assert (code, "export needs pip install 'surround-distill[export]'" in text) == (2, True), text


def test_a_program_without_torch_says_what_predict_says(folder):
    """Within what one may derive: the stretches differ by two grey levels at most, so by D = |student(its images) -
    student(ours)| in metres, which is computed; the graph by FP32_LIMIT from the student; and resizing depth, which
    takes averages, adds only the rounding of coordinates (below 2^6 px, three float32 operations) times the largest
    difference of neighbours, no more than the largest depth.
    """
    code, text = export(folder, "--batch", "dynamic", "--set", 'data.test=["d[3:4]"]')
    assert code == 0, text
    # d/3 has all cameras, d/4 lacks the second one.
    settings = ("--set", 'data.test=["d[3:5]"]', "--set", 'eval.precision="fp32"', "--write", "npy")
    code, text = surround("predict", folder / "run/student/last.safetensors", "--out", folder / "said", *settings)
    assert code == 0, text
    example = python_example()
    opened = example.open_student(folder / "s.onnx")
    student = load_student(folder / "run/student/last.safetensors", "cpu", "fp32")
    for frame_id in ("d/3", "d/4"):
        frame = SOURCE.frame(frame_id)
        photos, images = {}, []
        for view in frame.views:
            images.append(None)
            if view is not None:
                path = folder / f"{view.camera.name}.png"
                Image.fromarray(view.load_image()).save(path)
                photos[view.camera.name] = example.Photo(view.camera.K_px[0, 0], path)
                images[-1] = example.stretched(path, STUDENT_SIZE)[0]
        found = example.look(opened, photos)
        theirs_m = predict_rig(student.network, rig_views(frame, tuple(images), None, STUDENT_SIZE), CPU, "fp32")
        ours_m = student.look(frame).depth_m
        assert found.keys() == photos.keys()
        for i, name in enumerate(NAMES):
            if name in found:
                apart_m = depth_at(np.abs(theirs_m[i] - ours_m[i]) + parity.FP32_LIMIT * theirs_m[i], NATIVE_SIZE)
                said_m = np.load(folder / f"said/npy/{name}/{frame_id}.npy")
                assert (np.abs(found[name] - said_m) <= apart_m + 3 * 2**-18 * ours_m[i].max()).all()


def test_a_card_makes_a_folder_that_others_can_use(folder):
    """The folder is checkpoint and card, as a repository of a model hub."""
    out = folder / "release/van.onnx"
    code, text = export(folder, "--out", out, "--card", "--set", 'data.test=["d[3:5]"]', "--json")
    assert code == 0, text
    names = ["van.onnx", "README.md", "van.safetensors"]
    assert json.loads(text[text.index("{") : text.rindex("}") + 1])["files"] == [
        str(out.parent / name) for name in names
    ]
    card = (out.parent / "README.md").read_text()
    assert NOT_MEASURED in card
    assert re.search(r"\| drives +\| d\[:3\] +\|", card)
    assert re.search(r"\| onnxruntime \| +fp32 \| everywhere \|", card)
    assert load_student(out.parent).lineage == LINEAGE
    photos = ("--on", folder / "run/recipe.toml", "--set", 'data.test=["d[3:4]"]', "--write", "npy")
    code, text = surround("predict", out.parent, "--out", folder / "said", *photos)
    assert (code, "1 frame written" in text) == (0, True), text
    assert surround("predict", out.parent, "--out", folder / "said")[0] == 2  # it lies in no run


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda folder: shutil.copy(folder / "a.safetensors", folder / "b.safetensors"),
            "a.safetensors, b.safetensors",
        ),
        (lambda folder: (folder / "a.safetensors").unlink(), r"found none"),
        (lambda folder: os.truncate(folder / "a.safetensors", 999), r"a\.safetensors"),
    ],
)
def test_a_folder_without_exactly_one_whole_student_is_one_error(tmp_path, student, change, message):
    save_student(tmp_path / "a.safetensors", student, LINEAGE)
    change(tmp_path)
    with pytest.raises(CheckpointError, match=message):
        load_student(tmp_path)
    code, text = surround("predict", tmp_path, "--out", tmp_path / "out", "--on", "demo")
    assert (code, text.count("Error: "), re.search(message, text) is not None) == (1, 1, True), text
