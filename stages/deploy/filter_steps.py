"""Steps of quantised depthwise filters: few weights, whose rounding does not average out, so that each step counts."""

from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float32

if TYPE_CHECKING:
    from onnx import ModelProto

LEVELS = np.arange(127, 31.5, -0.5)
"""What the largest weight of a filter may become, before it is rounded; fewer levels than 32 are never better."""


def finer_steps(weight: Float32[np.ndarray, "C n"], pair_limit: int) -> Float32[np.ndarray, " C"]:
    """The step of each filter that rounds its weights with the least squared error.

    Args:
        weight: n weights for each of C filters.
        pair_limit: no two rounded weights of a filter may have a sum beyond it, in either direction.

    Returns:
        One step for each filter, with rounded weights from -127 to 127.
    """
    largest = np.abs(weight).max(1)
    largest = np.where(largest > 0, largest, 1).astype(np.float32)
    best, least = largest, np.full(len(weight), np.inf)
    for level in (pair_limit // 2, *LEVELS):
        step = largest / np.float32(level)  # in the precision of the file, because rounding has ties
        rounded = np.round(weight / step[:, None])
        ordered = np.sort(rounded, axis=1)
        highest, lowest = ordered[:, -2:].clip(min=0).sum(1), ordered[:, :2].clip(max=0).sum(1)
        error = ((rounded * step[:, None] - weight) ** 2).sum(1)
        better = (highest <= pair_limit) & (lowest >= -pair_limit) & (error < least)
        best, least = np.where(better, step, best), np.where(better, error, least)
    return best


def refine_filters(file: "ModelProto", graph: "ModelProto", pair_limit: int) -> None:
    """Round the depthwise filters of a quantised file again, by `finer_steps`.

    Args:
        file: QuantizeLinear and DequantizeLinear with one step per filter; changed.
        graph: the graph that it was made of.
        pair_limit: see `finer_steps`.
    """
    from onnx import numpy_helper

    weights = {constant.name: constant for constant in graph.graph.initializer}
    weight_of = {node.name: weights[node.input[1]] for node in graph.graph.node if node.op_type == "Conv"}
    constants = {constant.name: constant for constant in file.graph.initializer}
    scaled = {node.output[0]: node.input[:2] for node in file.graph.node if node.op_type == "DequantizeLinear"}
    for node in file.graph.node:
        if node.op_type != "Conv" or node.input[1] not in scaled or weight_of[node.name].dims[1] != 1:
            continue
        weight = numpy_helper.to_array(weight_of[node.name])
        step = finer_steps(weight.reshape(len(weight), -1), pair_limit)
        rounded = np.round(weight / step[:, None, None, None]).astype(np.int8)
        for name, value in zip(scaled[node.input[1]], (rounded, step), strict=True):
            constants[name].CopyFrom(numpy_helper.from_array(value, name))
