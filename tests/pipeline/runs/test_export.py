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
from click import Choice
from support.fakes import NAMES, STUDENT_SIZE, FakeSource, random_record, tiny_identity
from support.students import opened, trained
from support.surround import surround

from data_cache.errors import SettingError
from data_cache.shards.identity import Resolved, SplitFrames
from data_cache.shards.writer import CacheWriter
from pipeline.cli.students import export as export_verb
from pipeline.runs import export as command
from pipeline.runs import splits
from stages.compute.cpu import ISA_VARIABLE, cpu_flags, flags_text
from stages.compute.openvino_cpu import openvino_precisions
from stages.deploy import parity, quantize
from stages.deploy.export import MEANINGS, ExportError, export_program, onnx_model, program_file
from stages.deploy.parity import (
    EVERYWHERE,
    Contender,
    MeasuredRig,
    Parity,
    compare,
    int8_contenders,
    require_parity,
)
from stages.deploy.quantize import INT8_TARGETS, quantized
from stages.deploy.runtimes import (
    DeployedRigs,
    onnxruntime_runner,
    openvino_runner,
    torch_runner,
)
from stages.evaluation.latency import Timing
from stages.student.checkpoint import Lineage, save_student
from stages.student.model import Student
from stages.student.spec import StudentSpec
from stages.targets.spec import BinSpec

LINEAGE = Lineage("tiny", "CC-BY-NC-4.0", "c0ffee" * 10, "fake", (0.1, 80.0), 1234)
OPERATORS = """
Add And Cast Clip Concat Conv Div Exp Expand Gather Gemm Greater LayerNormalization MatMul Max MaxPool Mul Not Pad
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


def test_the_graph_of_inverted_residuals_says_what_pytorch_says(student, rigs):
    """EfficientNet-lite has what no ResNet has: ReLU6, depthwise kernels, padding of one side."""
    torch.manual_seed(0)
    spec = replace(student.spec, encoder="efficientnet-lite0", attention_width=0)
    lite = trained(Student(spec, student.bins).eval())
    model = onnx_model(export_program(lite, view_count=3, batch=1), {"format": "test"})
    assert {node.op_type for node in onnx.load_from_string(model).graph.node} <= {*OPERATORS.split()}
    rig = one(rigs, 0)
    expected_m = torch_runner(lite, "fp32")(rig)
    assert expected_m.std() / expected_m.mean() > 0.01
    for runner in (onnxruntime_runner(model), openvino_runner(model, "fp32")):
        np.testing.assert_allclose(runner(rig), expected_m, rtol=1e-4)


def test_the_licence_of_a_student_names_each_licence_once(student):
    """Apache-2.0 is this program's, and EfficientNet-lite's too."""
    for encoder, licence in (
        ("efficientnet-lite0", "Apache-2.0"),
        ("mobilenet-v2", "Apache-2.0 AND BSD-3-Clause"),
        ("resnet-10", "Apache-2.0 AND BSD-3-Clause"),
    ):
        assert command.student_licence(replace(student.spec, encoder=encoder, pretrained=True)) == licence


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


@pytest.fixture(scope="module")
def int8(model, rigs) -> dict[str, bytes]:
    """A file for each target."""
    return {target: quantized(model, [one(rigs, i) for i in range(3)], target) for target in INT8_TARGETS}


def constants_of(proto: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {entry.name: onnx.numpy_helper.to_array(entry) for entry in proto.graph.initializer}


def pair_sums(weight: np.ndarray) -> tuple[int, int]:
    """Lowest and highest sum of two products that a convolution can meet: activations from 0 to 255, any two weights.

    Which two are summed, a kernel chooses; here it is the worst choice within an output channel.
    """
    lowest, highest = 0, 0
    for channel in weight.reshape(len(weight), -1).astype(int):
        ordered = np.sort(channel)
        lowest = min(lowest, 255 * ordered[:2].clip(max=0).sum())
        highest = max(highest, 255 * ordered[-2:].clip(min=0).sum())
    return lowest, highest


def test_pair_sums_by_hand():
    weight = np.array([[1, -3, 64, 60], [-64, 5, -60, -61]], np.int8)[:, :, None, None]
    assert pair_sums(weight) == (255 * (-64 - 61), 255 * (64 + 60))
    assert pair_sums(np.array([[127, 2]], np.int8)) == (0, 255 * 129)  # 32,895 does not fit into 16 bits


@pytest.mark.parametrize(("target", "fits"), [("cpu", True), ("cpu-vnni", False), ("tensorrt", False)])
def test_no_pair_of_products_of_the_default_file_leaves_16_bits(int8, target, fits):
    """By the weights in the file alone, so that every machine says the same.

    Kernels multiply the integers as they are; what zero points add to a sum is taken off in 32 bits.
    """
    proto = onnx.load_from_string(int8[target])
    constants = constants_of(proto)
    scaled = {node.output[0]: node for node in proto.graph.node if node.op_type == "DequantizeLinear"}
    found = []
    for node in (node for node in proto.graph.node if node.op_type == "Conv"):
        activation, weight = (scaled[name] for name in node.input[:2])
        assert constants[activation.input[2]].dtype == ("int8" if target == "tensorrt" else "uint8")
        values, zero_point = constants[weight.input[0]], constants[weight.input[2]]
        assert (values.dtype, zero_point.any()) == ("int8", False)
        found.append(pair_sums(values))
    assert len(found) == 23  # each convolution of the student
    limits = np.iinfo(np.int16)
    assert all(limits.min <= lowest and highest <= limits.max for lowest, highest in found) == fits, found


def test_an_int8_file_is_of_the_kind_that_its_target_takes(int8):
    for target, file in int8.items():
        proto = onnx.load_from_string(file)
        constants = constants_of(proto)
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
            node.output[0]
            for node in proto.graph.node
            if node.op_type == "DequantizeLinear" and node.input[0] in constants
        }
        assert {node.op_type for node in proto.graph.node if weights & {*node.input}} == {"Conv"}


def one_convolution() -> bytes:
    """Inputs of a student; out come sums of 3 x 3 pixels of three channels, times 0.5 and -0.25, times focal_px."""
    weight = np.broadcast_to(np.float32([0.5, -0.25])[:, None, None, None], (2, 3, 3, 3)).copy()
    constants = [onnx.numpy_helper.from_array(v, n) for n, v in (("weight", weight), ("axis", np.array([1])))]
    nodes = [
        onnx.helper.make_node("Squeeze", ["image", "axis"], ["view"]),
        onnx.helper.make_node("Cast", ["view"], ["pixel"], to=onnx.TensorProto.FLOAT),
        onnx.helper.make_node("Conv", ["pixel", "weight"], ["sum"], name="conv"),
        onnx.helper.make_node("Mul", ["sum", "focal_px"], ["depth_m"]),
    ]
    value = onnx.helper.make_tensor_value_info
    inputs = [
        value("image", onnx.TensorProto.UINT8, [1, 1, 3, 8, 16]),
        value("focal_px", onnx.TensorProto.FLOAT, [1, 1]),
    ]
    graph = onnx.helper.make_graph(
        nodes, "one", inputs, [value("depth_m", onnx.TensorProto.FLOAT, [1, 2, 6, 14])], constants
    )
    opsets = [onnx.helper.make_opsetid("", 18)]
    return onnx.helper.make_model(graph, opset_imports=opsets, ir_version=9).SerializeToString()


@pytest.mark.parametrize("target", INT8_TARGETS)
def test_the_largest_sums_are_right_in_every_runtime_that_judges_the_file(target):
    """255 in the left half of the image, 0 in the right: all 27 products of a sum are the largest that there are.

    Sums are 27 x 255 x 0.5 = 3442.5 and 27 x 255 x -0.25 = -1721.25 there. Unsigned, an output step is their distance
    by 255, 20.25, so that they are 170 and -85 steps; signed, it is 3442.5 / 127. All else is off by half a step at
    most, and by the rounding of float32.
    """
    if INT8_TARGETS[target].cpu_flags and not cpu_flags() & {*INT8_TARGETS[target].cpu_flags}:
        pytest.skip(f"this CPU has none of {INT8_TARGETS[target].cpu_flags}")
    image = np.zeros((1, 1, 3, 8, 16), np.uint8)
    image[..., :8] = 255
    rig = DeployedRigs(image, np.ones((1, 1), np.float32))
    white = np.minimum(3, np.maximum(0, 8 - np.arange(14)))  # columns of a sum that are white
    expected = 9 * 255 * white * np.float32([0.5, -0.25])[:, None]
    half_step = 3442.5 / 127 / 2 if target == "tensorrt" else 20.25 / 2
    file = quantized(one_convolution(), [rig], target)
    judged = [contender for contender in int8_contenders(file, target) if "bf16" not in contender.precision]
    assert len(judged) == (1 if target == "tensorrt" else 3)
    for contender in judged:
        found = contender.run(rig)[0]
        assert found.shape == (2, 6, 14)
        assert np.abs(found - expected[:, None]).max() <= half_step * 1.001, contender.runtime
        assert found[0, 0, 0] == pytest.approx(3442.5, rel=1e-6), contender.runtime


def test_a_file_for_tensorrt_is_judged_in_float(int8, monkeypatch, tmp_path):
    class Saved(onnxruntime.SessionOptions):
        def __init__(self) -> None:
            super().__init__()
            self.optimized_model_filepath = str(tmp_path / "run.onnx")

    monkeypatch.setattr(onnxruntime, "SessionOptions", Saved)

    def operators() -> set[str]:
        return {node.op_type for node in onnx.load(tmp_path / "run.onnx").graph.node}

    onnxruntime_runner(int8["tensorrt"])
    assert "QLinearConv" in operators()  # this is how it would be computed in integers
    ((only),) = int8_contenders(int8["tensorrt"], "tensorrt")
    assert (only.runtime, only.precision, only.timed) == ("onnxruntime", "int8 in float", False)
    assert (
        {"QuantizeLinear", "Conv", "DequantizeLinear"}
        <= operators()
        <= {*OPERATORS.split()}
        | {
            "QuantizeLinear",
            "DequantizeLinear",
        }
    )


def test_what_the_cpu_can_is_read_from_linux_and_unknown_elsewhere(tmp_path, monkeypatch):
    monkeypatch.delenv(ISA_VARIABLE, raising=False)
    told = tmp_path / "cpuinfo"
    told.write_text("processor: 0\nflags\t\t: fpu avx2 avx512_vnni\nflags\t\t: fpu amx_int8\n")
    assert cpu_flags(told) == {"avx2", "avx512_vnni"}
    assert flags_text(cpu_flags(told)) == "avx2 avx512_vnni"
    monkeypatch.setenv(ISA_VARIABLE, "AVX2")
    assert cpu_flags(told) == {"avx2"}
    told.write_text("processor: 0\nFeatures: asimddp\n")  # an ARM
    assert flags_text(cpu_flags(told)) == flags_text(cpu_flags(tmp_path / "none")) == "unknown"


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
        [
            Contender("a", "fp32", constant(10.0), 5, timed=False),
            Contender("b", "int8", constant(15.0), 6, "any CPU"),
        ],
        rigs,
        batch=2,
        range_m=(0.1, 80.0),
        rounds=1,
    )
    assert (same.runtime, same.precision, same.file_bytes, same.right_on) == ("a", "fp32", 5, "everywhere")
    assert (same.max_relative, same.mean_relative) == (0, 0)
    assert same.abs_rel == pytest.approx(1 / 6)
    assert (other.max_relative, other.mean_relative) == pytest.approx((0.5, 0.5 / 20))
    assert other.abs_rel == pytest.approx((1 / 4 + 1 / 6) / 2)
    assert (same.ms_per_rig, other.right_on) == (None, "any CPU")
    assert 0 < other.ms_per_rig.p50_ms <= other.ms_per_rig.p95_ms


def found(precision: str, largest: float, mean: float, runtime: str = "onnxruntime") -> Parity:
    return Parity(runtime, precision, 1, EVERYWHERE, Timing(1.0, 1.0), largest, mean, 0.1)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (
            found("fp32", 2e-4, 1e-6),
            "fp32 graph in onnxruntime: expected depths within .* 1e-04 .* found 2.0e-04 at most",
        ),
        (found("int8", 0.1, 0.031), "int8 graph in onnxruntime: expected depths within .* 0.03 .* found 0.031"),
        (found("int8 in float", 0.1, 0.031), "int8 in float graph in onnxruntime: .* found 0.031"),
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
