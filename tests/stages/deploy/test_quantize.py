"""int8 files: of the kind that their target takes, and right on the machines that they are for."""

import numpy as np
import onnx
import onnxruntime
import pytest
from support.deployed import OPERATORS, one
from torch import nn

from stages.compute.cpu import cpu_flags
from stages.deploy.parity import int8_contenders
from stages.deploy.quantize import INT8_TARGETS, quantized
from stages.deploy.runtimes import DeployedRigs, cameras, onnxruntime_runner


@pytest.fixture(scope="module")
def int8(model, rigs) -> dict[str, bytes]:
    """A file for each target."""
    return {target: quantized(model, [one(rigs, i) for i in range(3)], target) for target in INT8_TARGETS}


@pytest.fixture(scope="module")
def lone_int8(lone_model, rigs) -> dict[str, bytes]:
    """Of the graph of one camera."""
    return {target: quantized(lone_model, cameras(one(rigs, 0)), target) for target in INT8_TARGETS}


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
@pytest.mark.parametrize(("files", "of"), [("int8", "student"), ("lone_int8", "lone_student")])
def test_no_pair_of_products_of_the_default_file_leaves_16_bits(files, of, target, fits, request):
    """By the weights in the file alone, so that every machine says the same.

    Kernels multiply the integers as they are; what zero points add to a sum is taken off in 32 bits.
    """
    proto = onnx.load_from_string(request.getfixturevalue(files)[target])
    constants = constants_of(proto)
    scaled = {node.output[0]: node for node in proto.graph.node if node.op_type == "DequantizeLinear"}
    found = []
    for node in (node for node in proto.graph.node if node.op_type == "Conv" and node.input[1] in scaled):
        activation, weight = (scaled[name] for name in node.input[:2])
        assert constants[activation.input[2]].dtype == ("int8" if target == "tensorrt" else "uint8")
        values, zero_point = constants[weight.input[0]], constants[weight.input[2]]
        assert (values.dtype, zero_point.any()) == ("int8", False)
        found.append(pair_sums(values))
    assert len(found) == sum(isinstance(module, nn.Conv2d) for module in request.getfixturevalue(of).modules())
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


@pytest.mark.parametrize("files", ["int8", "lone_int8"])
def test_depth_in_metres_is_not_quantised(files, request):
    """The convolution that upsamples it is the only one in float, and nothing is rounded between it and the output."""
    for file in request.getfixturevalue(files).values():
        proto = onnx.load_from_string(file)
        makes = {name: node for node in proto.graph.node for name in node.output}
        convolutions = [node for node in proto.graph.node if node.op_type == "Conv"]
        (upsampling,) = [node for node in convolutions if node.input[1] not in makes]
        assert makes[upsampling.input[0]].op_type == "Pad"
        way = [makes["depth_m"]]
        while way[-1] is not upsampling:
            way.append(makes[way[-1].input[0]])
        assert "DepthToSpace" in {node.op_type for node in way}
        assert not {"QuantizeLinear", "DequantizeLinear"} & {node.op_type for node in way}


def test_a_convolution_and_its_relu_are_rounded_once(int8, lone_int8, lone_model, lone_student):
    """The steps of an unsigned file, from 0 to 6 at most, imply the ReLU6 of the encoder, so that it has no ReLUs."""
    for target in ("cpu", "cpu-vnni"):
        proto = onnx.load_from_string(lone_int8[target])
        assert not [node for node in proto.graph.node if node.op_type == "Clip"]
        constants = constants_of(proto)
        clipped = {node.output[0] for node in onnx.load_from_string(lone_model).graph.node if node.op_type == "Clip"}
        rounded = [node for node in proto.graph.node if node.input[0] in clipped]
        assert len(rounded) == len(clipped) == sum(isinstance(m, nn.ReLU6) for m in lone_student.modules())
        for node in rounded:
            assert node.op_type == "QuantizeLinear"
            assert constants[node.input[2]] == 0
            assert constants[node.input[1]] * 255 <= 6 * (1 + 1e-6)
        proto = onnx.load_from_string(int8[target])
        makes = {name: node.op_type for node in proto.graph.node for name in node.output}
        assert {makes[node.input[0]] for node in proto.graph.node if node.op_type == "Relu"} <= {"Add", "Gemm"}


def one_convolution(weights: tuple[float, float] = (0.5, -0.25), ceiling: float | None = None) -> bytes:
    """Inputs of a student; out come sums of 3 x 3 pixels of three channels, times weights, times focal_px.

    With a ceiling, sums are clipped to [0, ceiling] before they are multiplied by focal_px.
    """
    weight = np.broadcast_to(np.float32(weights)[:, None, None, None], (2, 3, 3, 3)).copy()
    values = {"weight": weight, "axis": np.array([1]), "zero": np.float32(0), "ceiling": np.float32(ceiling or 0)}
    constants = [onnx.numpy_helper.from_array(np.asarray(value), name) for name, value in values.items()]
    clip = [onnx.helper.make_node("Clip", ["sum", "zero", "ceiling"], ["kept"], name="clip")] if ceiling else []
    nodes = [
        onnx.helper.make_node("Squeeze", ["image", "axis"], ["view"]),
        onnx.helper.make_node("Cast", ["view"], ["pixel"], to=onnx.TensorProto.FLOAT),
        onnx.helper.make_node("Conv", ["pixel", "weight"], ["sum"], name="conv"),
        *clip,
        onnx.helper.make_node("Mul", ["kept" if ceiling else "sum", "focal_px"], ["depth_m"]),
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


def activation_steps(file: bytes) -> dict[str, float]:
    """Steps of unsigned activations, by name."""
    proto = onnx.load_from_string(file)
    constants = constants_of(proto)
    nodes = [node for node in proto.graph.node if node.op_type == "QuantizeLinear"]
    return {node.input[0]: constants[node.input[1]].item() for node in nodes if node.input[0] not in constants}


def test_of_single_images_the_extremes_are_kept():
    """White images sum up to 3442.5 and -1721.25, grey ones of 51 to a fifth: a step is the range of white by 255."""
    white, grey = (
        DeployedRigs(np.full((1, 1, 3, 8, 16), level, np.uint8), np.ones((1, 1), np.float32)) for level in (255, 51)
    )
    for order in ([white, grey], [grey, white]):
        assert activation_steps(quantized(one_convolution(), order, "cpu"))["sum"] == pytest.approx(20.25)


def test_of_rigs_the_ranges_are_averaged(model, rigs):
    alone = [activation_steps(quantized(model, [one(rigs, i)], "cpu")) for i in (0, 1)]
    both = activation_steps(quantized(model, [one(rigs, i) for i in (0, 1)], "cpu"))
    assert len(both) > 10
    for name, step in both.items():
        assert step == pytest.approx((alone[0][name] + alone[1][name]) / 2, rel=1e-4), name
    assert any(alone[0][name] != pytest.approx(alone[1][name], rel=1e-3) for name in both)


@pytest.mark.parametrize("target", ["cpu", "cpu-vnni"])
def test_a_clipped_sum_is_off_by_half_a_step_of_what_is_kept(target):
    """255 in the left half of the image, times 0.001: sums of 9, 18 and 27 white products of 0.255.

    They are 2.295, 4.59 and 6.885, of which 6 is kept, and 0 of the negative ones. A step is 6 / 255. Were the sum
    rounded before it is clipped, 2.295 would be 42.5 steps of 2 x 6.885 / 255, and off by 0.027.
    """
    if INT8_TARGETS[target].cpu_flags and not cpu_flags() & {*INT8_TARGETS[target].cpu_flags}:
        pytest.skip(f"this CPU has none of {INT8_TARGETS[target].cpu_flags}")
    image = np.zeros((1, 1, 3, 8, 16), np.uint8)
    image[..., :8] = 255
    rig = DeployedRigs(image, np.ones((1, 1), np.float32))
    white = np.minimum(3, np.maximum(0, 8 - np.arange(14)))
    expected = (9 * 0.255 * white * np.float32([1, -1])[:, None]).clip(0, 6)
    file = quantized(one_convolution((0.001, -0.001), 6.0), [rig], target)
    for contender in int8_contenders(file, target):
        if "bf16" not in contender.precision:
            found = contender.run(rig)[0]
            assert np.abs(found - expected[:, None]).max() <= 6 / 255 / 2 * 1.001, contender.runtime
            assert (found[1] == 0).all(), contender.runtime


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
