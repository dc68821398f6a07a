"""OpenVINO on the CPU (an optional extra): what it computes in here, always told and never left to its own choice."""

INFERENCE_PRECISION = {"fp32": "f32", "bf16": "bf16"}
"""Our names of number formats, and those of its setting INFERENCE_PRECISION_HINT."""


def openvino_precisions() -> tuple[str, ...]:
    """What OpenVINO computes in on this CPU; where bf16 is there, it takes that unless it is told otherwise."""
    import openvino

    capable = "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return ("fp32", "bf16") if capable else ("fp32",)
