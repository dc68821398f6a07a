"""Post-training int8 quantisation of a deployed student, calibrated on training frames."""

import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from data_cache.errors import SettingError
from stages.compute.cpu import VNNI, cpu_flags, flags_text
from stages.deploy.export import quiet_exporters
from stages.deploy.filter_steps import refine_filters
from stages.deploy.runtimes import DeployedRigs, feeds

if TYPE_CHECKING:
    from onnx import ModelProto


@dataclass(frozen=True)
class Int8Target:
    """What an int8 file is made for, and what makes it right there.

    An x86 CPU without VNNI multiplies activations of 8 bits (as 0 to 255) by weights of 8 bits and sums two products in
    16 bits, where a sum above 32,767 becomes 32,767. With weights of 7 bits (-64 to 64) no sum of two is above
    2 * 255 * 64 = 32,640; with 8 bits it is up to 2 * 255 * 127 = 64,770. A depthwise filter may have larger weights
    than 64 where no two of them have a sum above 2 * 64.

    Attributes:
        right_on: where the file says what the student says, in words; it goes into the file.
        weight_bits: 7 or 8.
        signed: activations are signed with zero point 0, the only ones that TensorRT takes; else unsigned with a zero
            point, which onnxruntime computes twice as fast on x86.
        on_cpu: a CPU runs it, so that it is judged in integers here as well.
        cpu_flags: a CPU that runs it needs one of these; empty if it needs none.
    """

    right_on: str
    weight_bits: int
    signed: bool
    on_cpu: bool
    cpu_flags: tuple[str, ...] = ()


INT8_TARGETS = {
    "cpu": Int8Target("any CPU", weight_bits=7, signed=False, on_cpu=True),
    "cpu-vnni": Int8Target("CPUs with VNNI", weight_bits=8, signed=False, on_cpu=True, cpu_flags=VNNI),
    "tensorrt": Int8Target("TensorRT", weight_bits=8, signed=True, on_cpu=False),
}


def require_cpu_for(target: str) -> None:
    """Check that `target` is a key of INT8_TARGETS, and that this CPU can judge a file for it.

    Raises:
        SettingError: if it is none, or if the CPU lacks what the file needs, or does not tell.
    """
    if target not in INT8_TARGETS:
        raise SettingError(f"int8: expected one of {', '.join(INT8_TARGETS)}, got {target!r}")
    needed, found = INT8_TARGETS[target].cpu_flags, cpu_flags()
    if needed and not found & {*needed}:
        raise SettingError(
            f"int8 for {target}: expected a CPU with {' or '.join(needed)}, found one with: {flags_text(found)}."
            " Without them sums of products with 8-bit weights overflow; use --int8 cpu, which is right on any CPU, or"
            " export on a machine that has them"
        )


def quantized(model: bytes, calibration: Iterable[DeployedRigs], target: str) -> bytes:
    """Quantise the convolutions of an ONNX file: weights with one scale per channel, activations with one per tensor.

    The ReLU after a convolution is quantised with it, so that its output is rounded once. An unsigned file has none of
    these ReLUs: steps from 0 to the largest value that the ReLU let through end where it ends.

    All else stays float: the attention between views, the upsampling, and the head from bin scores to metres. With
    additions, products and softmax in int8, too, AbsRel of a student on synthetic drives rose from .088 to .161, and
    OpenVINO refused the file.

    Args:
        model: an ONNX file made by `stages.deploy.export.onnx_model`.
        calibration: batches of the model's size, at least one. Activations range from their minimum to their maximum.
            Over batches of rigs both are averaged, so that one unusual frame does not make the steps of all others
            coarse. Single images differ too much for that: their averages would cut off what many of them hold (AbsRel
            +3.4 % instead of +0.5 %, docs/EXPORT.md), so a graph of one camera gets the extremes.
        target: a key of INT8_TARGETS.

    Returns:
        An ONNX file with QuantizeLinear and DequantizeLinear; biases stay float.
    """
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    seen = list(calibration)

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._left = iter(seen)

        def get_next(self) -> dict[str, object] | None:
            rigs = next(self._left, None)
            return None if rigs is None else feeds(rigs)

    kind, graph = INT8_TARGETS[target], onnx.load_from_string(model)
    with quiet_exporters(), tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "int8.onnx"
        quantize_static(
            onnx.load_from_string(model),  # it empties what it is given
            path,
            Reader(),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["Conv", "Relu", "Clip"],
            nodes_to_exclude=_convolutions_of_depth(graph),
            per_channel=True,
            reduce_range=kind.weight_bits == 7,
            activation_type=QuantType.QInt8 if kind.signed else QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            extra_options={
                "ActivationSymmetric": kind.signed,
                "WeightSymmetric": True,
                "QuantizeBias": False,
                "CalibMovingAverage": seen[0].image.shape[1] > 1,
            },
        )
        file = onnx.load(path)
    if kind.weight_bits == 7:
        refine_filters(file, graph, pair_limit=2 * 64)
    data: bytes = file.SerializeToString()
    return data


def _convolutions_of_depth(graph: "ModelProto") -> list[str]:
    """Names of the convolutions whose input is a map of one channel: only depth is one, and it would lose its metres.

    The weights of a depthwise convolution have one input channel, too, but a group for each channel.
    """
    dims = {constant.name: constant.dims for constant in graph.graph.initializer}
    groups = {node.name: [a.i for a in node.attribute if a.name == "group"] for node in graph.graph.node}
    return [
        node.name
        for node in graph.graph.node
        if node.op_type == "Conv" and dims[node.input[1]][1] == 1 and groups[node.name] in ([], [1])
    ]
