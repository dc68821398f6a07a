"""A student that leaves this program: what runs elsewhere says what PyTorch says, and what does not is not written."""

import io
import json
import shutil
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from support.fakes import NAMES, STUDENT_SIZE, FakeSource, random_record, tiny_identity
from support.students import opened, trained
from support.surround import surround

from data_cache.shards.identity import Resolved, SplitFrames
from data_cache.shards.writer import CacheWriter
from pipeline.runs import export as command
from pipeline.runs import splits
from stages.compute.openvino_cpu import openvino_precisions
from stages.deploy import parity
from stages.deploy.export import MEANINGS, ExportError, export_program, onnx_model, program_file
from stages.deploy.parity import Contender, MeasuredRig, Parity, compare, require_parity
from stages.deploy.quantize import quantized
from stages.deploy.runtimes import DeployedRigs, batches, onnxruntime_runner, openvino_runner, torch_runner
from stages.evaluation.latency import Timing
from stages.student.checkpoint import Lineage, save_student
from stages.student.model import Student
from stages.student.spec import StudentSpec
from stages.targets.spec import BinSpec

LINEAGE = Lineage("tiny", "CC-BY-NC-4.0", "c0ffee" * 10, "fake", (0.1, 80.0), 1234)
OPERATORS = """
Add And Cast Clip Concat Conv Div Exp Expand Gather Gemm Greater LayerNormalization MatMul Max MaxPool Mul Not
ReduceMean ReduceMin ReduceSum Relu Reshape Resize Shape Slice Softmax Split Squeeze Sub Tanh Transpose Unsqueeze Where
"""
"""A graph of these: each is in the table of operators that TensorRT 10 supports, in the types that occur here."""
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


@pytest.fixture(scope="module")
def student() -> Student:
    """Small, and as after some training: its attention speaks, its centres move, its depth differs from pixel to pixel.

    Canonical centres of even shares are 2 ** (16 - (k + 0.5)) metres, k = 0 to 15.
    """
    torch.manual_seed(0)
    spec = StudentSpec(
        encoder="resnet-10",
        pretrained=False,
        input_size=STUDENT_SIZE,
        near_m=1.0,
        far_m=2.0**16,
        focal_px=40.0,
        decoder_channels=8,
        attention_width=16,
    )
    made = trained(Student(spec, BinSpec(count=16)).eval())
    opened(made.attention)
    with torch.no_grad():
        made.classify.weight.mul_(8)
        made.centers.widths[2].weight.normal_(0, 1, generator=torch.Generator().manual_seed(3))
    return made


@pytest.fixture(scope="module")
def program(student):
    return export_program(student, view_count=3, batch=None)


@pytest.fixture(scope="module")
def model(program) -> bytes:
    return onnx_model(program, {"format": "test"})


@pytest.fixture(scope="module")
def rigs() -> DeployedRigs:
    """Three rigs of three cameras with a lens each; the second rig lacks its second camera."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (3, 3, 3, 4, 8), dtype=np.uint8).repeat(8, 3).repeat(8, 4)
    focal_px = np.array([[40, 50, 60], [41, 0, 61], [42, 52, 62]], np.float32)
    image[1, 1] = 0
    return DeployedRigs(image, focal_px)


def one(rigs: DeployedRigs, i: int) -> DeployedRigs:
    return DeployedRigs(rigs.image[i : i + 1], rigs.focal_px[i : i + 1])


def test_the_graph_says_what_pytorch_says_of_one_rig_and_of_three(student, model, rigs):
    expected_m = torch_runner(student, "fp32")(rigs)
    assert expected_m[expected_m > 0].std() / expected_m.max() > 0.01
    for runner in (onnxruntime_runner(model), openvino_runner(model, "fp32")):
        np.testing.assert_allclose(runner(rigs), expected_m, rtol=1e-4)
        for i in range(3):
            np.testing.assert_allclose(runner(one(rigs, i))[0], expected_m[i], rtol=1e-4)
    assert (expected_m[1, 1] == 0).all()
    assert (expected_m[[0, 0, 0, 1, 1], [0, 1, 2, 0, 2]] > 0).all()


def test_the_graph_tells_what_goes_in_and_comes_out_and_nothing_of_the_sources(model):
    proto = onnx.load_from_string(model)
    assert [(entry.domain, entry.version) for entry in proto.opset_import if not entry.domain] == [("", 18)]
    shapes = {
        value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*proto.graph.input, *proto.graph.output)
    }
    assert shapes == {"image": ["batch", 3, 3, 32, 64], "focal_px": ["batch", 3], "depth_m": ["batch", 3, 32, 64]}
    assert {value.name: value.doc_string for value in (*proto.graph.input, *proto.graph.output)} == MEANINGS
    assert proto.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.UINT8
    assert {node.op_type for node in proto.graph.node} <= {*OPERATORS.split()}
    assert not any(node.metadata_props or node.doc_string for node in proto.graph.node)
    assert b".py" not in model


def test_turning_the_ring_turns_the_depth(model, rigs):
    """Cameras 0 1 2 become 1 2 0: each has the same neighbours on the same sides. Exchanged, they have not."""
    run, rig = onnxruntime_runner(model), one(rigs, 0)
    depth_m = run(rig)
    turned = [1, 2, 0]
    again_m = run(DeployedRigs(rig.image[:, turned], rig.focal_px[:, turned]))
    np.testing.assert_allclose(again_m, depth_m[:, turned], rtol=1e-4)
    exchanged = [1, 0, 2]
    other_m = run(DeployedRigs(rig.image[:, exchanged], rig.focal_px[:, exchanged]))
    assert not np.allclose(other_m, depth_m[:, exchanged], rtol=1e-3)


def test_depth_follows_the_focal_length_of_its_own_camera(model, rigs):
    run, rig = onnxruntime_runner(model), one(rigs, 0)
    longer = run(DeployedRigs(rig.image, rig.focal_px * np.float32([[1, 2, 1]])))
    np.testing.assert_array_equal(longer, run(rig) * np.float32([1, 2, 1])[None, :, None, None])


def test_metres_by_hand(program, rigs):
    """All probability in bin 3 of even shares: 2 ** (16 - 3.5) m at f0 = 40, 1.25 and 1.5 times that at 50 and 60."""
    inner = program.module().student
    before = {name: value.clone() for name, value in inner.state_dict().items()}
    try:
        with torch.no_grad():
            for tensor in (
                inner.classify.weight,
                inner.classify.bias,
                *inner.centers.widths.get_submodule("2").parameters(),
            ):
                tensor.zero_()
            inner.classify.bias[3] = 100.0
            rig = one(rigs, 0)
            depth_m = program.module()(torch.from_numpy(rig.image), torch.from_numpy(rig.focal_px))
    finally:
        inner.load_state_dict(before)
    expected_m = torch.tensor([1, 1.25, 1.5])[None, :, None, None] * 2**12.5
    torch.testing.assert_close(depth_m, expected_m.expand_as(depth_m), rtol=1e-5, atol=0)


@pytest.mark.skipif("bf16" not in openvino_precisions(), reason="this CPU has no bf16")
def test_openvino_in_bf16_is_near(student, model, rigs):
    expected_m = torch_runner(student, "fp32")(rigs)
    there = expected_m > 0
    relative = openvino_runner(model, "bf16")(rigs)[there] / expected_m[there] - 1
    assert abs(relative.mean()) < 0.01, relative.mean()


@pytest.mark.parametrize("target", ["cpu", "tensorrt"])
def test_int8_is_near_and_of_the_kind_that_the_target_takes(student, model, rigs, target):
    data = quantized(model, list(batches([one(rigs, i) for i in range(3)], 1)), target)
    expected_m = torch_runner(student, "fp32")(rigs)
    there = expected_m > 0
    for runner in (onnxruntime_runner(data), openvino_runner(data, "fp32")):
        relative = np.abs(runner(rigs)[there] / expected_m[there] - 1)
        assert 1e-4 < relative.mean() < 0.15, relative.mean()
    proto = onnx.load_from_string(data)
    constants = {entry.name: onnx.numpy_helper.to_array(entry) for entry in proto.graph.initializer}
    activations = {constants[node.input[2]].dtype for node in proto.graph.node if node.op_type == "QuantizeLinear"}
    assert activations == {np.dtype("int8" if target == "tensorrt" else "uint8")}
    if target == "tensorrt":
        pairs = [node for node in proto.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
        assert all((constants[node.input[2]] == 0).all() for node in pairs)
    per_channel = [
        constants[node.input[1]].size for node in proto.graph.node if node.input[0].endswith("weight_quantized")
    ]
    assert max(per_channel) == 512  # a scale for each channel of the deepest convolutions
    weights = {
        node.output[0] for node in proto.graph.node if node.op_type == "DequantizeLinear" and node.input[0] in constants
    }
    assert {node.op_type for node in proto.graph.node if weights & {*node.input}} == {"Conv"}


def test_the_saved_program_of_torch_export_runs_alone(student, program, rigs):
    extra = {"surround.json": ""}
    loaded = torch.export.load(io.BytesIO(program_file(program, {"input_size": [32, 64]})), extra_files=extra)
    assert json.loads(extra["surround.json"]) == {"input_size": [32, 64]}
    depth_m = loaded.module()(torch.from_numpy(rigs.image), torch.from_numpy(rigs.focal_px))
    np.testing.assert_allclose(depth_m.detach().numpy(), torch_runner(student, "fp32")(rigs), rtol=1e-4)


def constant(value: float):
    """Says that everything is so many metres away, except one pixel of the last camera of the first rig."""

    def run(inputs: DeployedRigs) -> np.ndarray:
        depth_m = np.full((len(inputs.image), 2, 1, 4), 10.0, np.float32)
        depth_m[inputs.focal_px == 0] = 0
        depth_m[inputs.image[:, :, 0, :, :] == 7] = value
        return depth_m

    return run


def test_differences_and_errors_by_hand():
    """15 m for 10 m at one of 20 pixels that are there, in the second of three rigs, two of them at a time.

    Truth: 12 m at the pixel that is 15 (25 % off) and at its neighbour (10 m, 1/6 off); nothing elsewhere but 100 m,
    out of range. Camera 1 has one image with an error of (1/4 + 1/6) / 2; in PyTorch 1/6.
    """
    images = np.zeros((3, 1, 2, 3, 1, 4), np.uint8)
    images[1, 0, 1, 0, 0, 2] = 7
    focal_px = np.array([[[1, 1]], [[1, 1]], [[0, 1]]], np.float32)
    truth_m = np.zeros((3, 2, 1, 4), np.float32)
    truth_m[1, 1, 0, 2:] = 12
    truth_m[0, 0] = 100
    rigs = [MeasuredRig(DeployedRigs(i, f), t, dense=False) for i, f, t in zip(images, focal_px, truth_m, strict=True)]
    same, other = compare(
        constant(10.0),
        [Contender("a", "fp32", constant(10.0), 5), Contender("b", "int8", constant(15.0), 6)],
        rigs,
        batch=2,
        range_m=(0.1, 80.0),
        rounds=1,
    )
    assert (same.runtime, same.precision, same.file_bytes) == ("a", "fp32", 5)
    assert (same.max_relative, same.mean_relative) == (0, 0)
    assert same.abs_rel == pytest.approx(1 / 6)
    assert (other.max_relative, other.mean_relative) == pytest.approx((0.5, 0.5 / 20))
    assert other.abs_rel == pytest.approx((1 / 4 + 1 / 6) / 2)
    assert 0 < other.ms_per_rig.p50_ms <= other.ms_per_rig.p95_ms


def found(precision: str, largest: float, mean: float, runtime: str = "onnxruntime") -> Parity:
    return Parity(runtime, precision, 1, Timing(1.0, 1.0), largest, mean, 0.1)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (
            found("fp32", 2e-4, 1e-6),
            "fp32 graph in onnxruntime: expected depths within .* 1e-04 .* found 2.0e-04 at most",
        ),
        (found("int8", 0.1, 0.031), "int8 graph in onnxruntime: expected depths within .* 0.03 .* found 0.031"),
        (found("int8", float("nan"), float("nan")), "int8 graph in onnxruntime: depth is not finite"),
    ],
)
def test_a_graph_that_says_something_else_is_refused(entry, message):
    fine = [
        found("fp32", 9e-5, 1e-6),
        found("int8", 0.9, 0.029),
        found("bf16", 0.5, 0.2),
        found("fp32", 1.0, 1.0, "PyTorch"),
    ]
    require_parity(fine)
    with pytest.raises(ExportError, match=message):
        require_parity([*fine, entry])


SOURCE = FakeSource(6, missing={"d/4": (1,)}, broken={"d/5": "image missing: x"})


@pytest.fixture
def folder(tmp_path: Path, monkeypatch, student, program, model) -> Path:
    """A run with the student and its recipe, whose source lies in memory and whose trace is made once for all tests."""
    monkeypatch.setattr(splits, "open_source", lambda *_, **__: SOURCE)
    monkeypatch.setattr(command, "export_program", lambda *_: program)
    monkeypatch.setattr(command, "onnx_model", lambda _, told: command.with_metadata(model, told))
    save_student(tmp_path / "run/student/last.safetensors", student, LINEAGE)
    (tmp_path / "run/recipe.toml").write_text(RECIPE)
    return tmp_path


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
    assert [line.split("|")[2].strip() for line in text.splitlines() if "| onnxruntime" in line] == ["fp32", "int8"]
    assert f"{folder / 's.onnx'}, {folder / 's.int8.onnx'}; compared on 2 frames of fake d[3:5]" in text
    identity = tiny_identity(SplitFrames(("d/0", "d/1"), ()), image_size=STUDENT_SIZE, shard_frames=2)
    expected = [random_record(identity, i).image.transpose(0, 3, 1, 2) for i in range(2)]
    np.testing.assert_array_equal(np.concatenate([rig.image for rig in seen]), np.stack(expected))
    inside = onnxruntime.InferenceSession(folder / "s.int8.onnx").get_modelmeta().custom_metadata_map
    assert (inside["surround.precision"], inside["surround.int8_target"]) == ('"int8"', '"cpu"')
    assert inside["surround.cameras"] == json.dumps(NAMES)


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
