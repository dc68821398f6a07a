"""The exported graph: what it takes, what it gives, and that it says what PyTorch says."""

import io
import json

import numpy as np
import onnx
import pytest
import torch
from support.deployed import OPERATORS, one

from stages.compute.openvino_cpu import openvino_precisions
from stages.deploy.export import MEANINGS, ExportError, export_program, onnx_model, program_file, require_views_alone
from stages.deploy.parity import require_sigma
from stages.deploy.runtimes import DeployedRigs, onnxruntime_runner, openvino_runner, torch_runner


def test_a_graph_of_a_rig_says_what_pytorch_says_of_one_rig_and_of_three(student, model, rigs):
    expected_m = torch_runner(student, "fp32")(rigs)
    assert expected_m[expected_m > 0].std() / expected_m.max() > 0.01
    for runner in (onnxruntime_runner(model), openvino_runner(model, "fp32")):
        np.testing.assert_allclose(runner(rigs), expected_m, rtol=1e-4)
        for i in range(3):
            np.testing.assert_allclose(runner(one(rigs, i))[0], expected_m[i], rtol=1e-4)
    assert (expected_m[1, 1] == 0).all()
    assert (expected_m[[0, 0, 0, 1, 1], [0, 1, 2, 0, 2]] > 0).all()


@pytest.mark.parametrize(("graph", "views"), [("model", 3), ("lone_model", 1)])
def test_the_graph_tells_what_goes_in_and_comes_out_and_nothing_of_the_sources(graph, views, request):
    model = request.getfixturevalue(graph)
    proto = onnx.load_from_string(model)
    assert [(entry.domain, entry.version) for entry in proto.opset_import if not entry.domain] == [("", 18)]
    shapes = {
        value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*proto.graph.input, *proto.graph.output)
    }
    assert shapes == {
        "image": ["batch", views, 3, 32, 64],
        "focal_px": ["batch", views],
        "depth_m": ["batch", views, 32, 64],
    }
    told = {value.name: value.doc_string for value in (*proto.graph.input, *proto.graph.output)}
    assert told == {name: MEANINGS[name] for name in ("image", "focal_px", "depth_m")}
    assert proto.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.UINT8
    assert {node.op_type for node in proto.graph.node} <= {*OPERATORS.split()}
    assert not any(node.metadata_props or node.doc_string for node in proto.graph.node)
    for constant in proto.graph.initializer:
        constant.ClearField("raw_data")  # where any three bytes may occur
    assert b".py" not in proto.SerializeToString()


def test_sigma_is_a_second_output_where_it_is_asked_for(student, model, rigs):
    """Runners read depth, the first output, as ever; where a camera is missing, sigma is 0, too."""
    sure = onnx_model(export_program(student, 3, 1, sigma_scale=0.5), {"format": "test"})
    require_sigma(sure, student, 0.5, one(rigs, 1), one_camera=False)
    with pytest.raises(ExportError, match=r"sigma in onnxruntime: expected .*, found 0\.[45]\d*; nothing was written"):
        require_sigma(sure, student, 1.0, one(rigs, 1), one_camera=False)
    graph = onnx.load_from_string(sure).graph
    assert [value.name for value in graph.output] == ["depth_m", "sigma"]
    assert graph.output[1].doc_string == MEANINGS["sigma"]
    assert {node.op_type for node in graph.node} <= {*OPERATORS.split(), "Log", "Pow", "Sqrt"}
    expected_m = onnxruntime_runner(model)(one(rigs, 1))
    for runner in (onnxruntime_runner(sure), openvino_runner(sure, "fp32")):
        np.testing.assert_allclose(runner(one(rigs, 1)), expected_m, rtol=1e-4)


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


def test_the_saved_program_of_torch_export_runs_alone(student, program, rigs):
    extra = {"surround.json": ""}
    loaded = torch.export.load(io.BytesIO(program_file(program, {"input_size": [32, 64]})), extra_files=extra)
    assert json.loads(extra["surround.json"]) == {"input_size": [32, 64]}
    depth_m = loaded.module()(torch.from_numpy(rigs.image), torch.from_numpy(rigs.focal_px))
    np.testing.assert_allclose(depth_m.detach().numpy(), torch_runner(student, "fp32")(rigs), rtol=1e-4)


def test_only_who_sees_each_camera_alone_has_a_graph_of_one(student, lone_student):
    require_views_alone(lone_student)
    with pytest.raises(ExportError, match=r"without attention .* = 0\), found attention of 16 .* without --one-camera"):
        require_views_alone(student)
