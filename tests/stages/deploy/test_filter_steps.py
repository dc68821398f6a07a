"""Depthwise filters are rounded as well as their largest weights and pairs allow."""

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.deploy.filter_steps import finer_steps, refine_filters


@pytest.mark.parametrize(
    ("weights", "step"),
    [
        ((100, 28, -3), 1.0),  # exact, and the pair is 128
        ((100, -100, -28), 1.0),  # signs do not add up
        ((64, 64, 1), 1.0),  # 7 bits are the most that two equal weights can have
        ((0, 0, 0), 1 / 64),
    ],
)
def test_steps_by_hand(weights, step):
    assert finer_steps(np.float32([weights]), 128).tolist() == [step]


def test_a_pair_that_is_too_large_has_a_coarser_step():
    """100 and 29 in steps of 1 are exact, but their sum is 129; with 254 allowed nothing is against it."""
    weight = np.float32([[100, 29, -3]])
    assert finer_steps(weight, 128) > 1
    assert finer_steps(weight, 254) == 1


@given(st.lists(st.lists(st.floats(-1, 1, width=32), min_size=9, max_size=9), min_size=1, max_size=3))
def test_no_filter_is_rounded_worse_than_by_its_largest_weight(weights):
    """Or has a weight beyond 127, or a pair beyond the limit."""
    weight = np.float32(weights) + np.float32(0.25)  # no weight is so small that its step is not a number
    step = finer_steps(weight, 128)[:, None]
    rounded = np.round(weight / step)
    assert np.abs(rounded).max() <= 127
    ordered = np.sort(rounded, axis=1)
    assert ordered[:, -2:].clip(min=0).sum(1).max() <= 128
    assert ordered[:, :2].clip(max=0).sum(1).min() >= -128
    before = np.abs(weight).max(1, keepdims=True) / 64
    before = np.where(before > 0, before, 1)
    errors = [((np.round(weight / s) * s - weight) ** 2).sum(1) for s in (step, before)]
    assert (errors[0] <= errors[1] + 1e-6 * (weight**2).sum(1)).all()


def test_a_depthwise_convolution_is_rounded_again_and_no_other():
    """Steps of 100 / 64 before, of 1 after; the other convolution keeps 100 / 64."""
    value, helper = onnx.numpy_helper.from_array, onnx.helper
    weight = np.float32([100, 28, -3, 0]).reshape(1, 1, 2, 2)
    weights = {"depthwise": weight, "dense": weight.repeat(2, axis=1)}
    step = np.float32([100 / 64])
    floats, integers, nodes, quantised = [], [], [], []
    for name, kernel in weights.items():
        floats.append(value(kernel, name))
        integers += [value(np.round(kernel / step).astype(np.int8), f"{name}_int"), value(step, f"{name}_step")]
        nodes.append(helper.make_node("Conv", ["x", name], [f"y_{name}"], name=name))
        quantised.append(helper.make_node("DequantizeLinear", [f"{name}_int", f"{name}_step"], [f"{name}_back"]))
        quantised.append(helper.make_node("Conv", ["x", f"{name}_back"], [f"y_{name}"], name=name))
    graph = helper.make_model(helper.make_graph(nodes, "float", [], [], floats))
    file = helper.make_model(helper.make_graph(quantised, "int8", [], [], integers))
    refine_filters(file, graph, 128)
    found = {constant.name: onnx.numpy_helper.to_array(constant) for constant in file.graph.initializer}
    assert found["depthwise_int"].flatten().tolist() == [100, 28, -3, 0]
    assert found["depthwise_step"].tolist() == [1.0]
    assert found["dense_int"].flatten().tolist() == [64, 18, -2, 0] * 2
    assert found["dense_step"] == step
