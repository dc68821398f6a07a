"""What computes a teacher's forward pass, resolved once from what the recipe says."""

import torch

from data_cache.errors import SettingError
from stages.compute.openvino_cpu import INFERENCE_PRECISION, openvino_precisions

RUNTIMES = ("auto", "torch", "openvino")
OPENVINO_FAMILY = "depth_anything"
"""The `model_type` that OpenVINO takes: what such a model does never depends on the image, so a trace is all of it."""


def require_known_runtime(runtime: str) -> None:
    """Check the word of a recipe, which may be written for another machine. Raises SettingError."""
    if runtime not in RUNTIMES:
        raise SettingError(f"runtime: expected one of {', '.join(RUNTIMES)}, got {runtime!r}")


def resolve_runtime(runtime: str, device: torch.device, precision: str, family: str) -> str:
    """`auto` is OpenVINO where it can compute this teacher: it was faster on both CPUs that were tried. Else torch.

    Args:
        runtime: as the recipe says.
        device, precision: resolved.
        family: `model_type` of the model's config.json, or what stands for it.

    Raises:
        SettingError: if the runtime is unknown, or OpenVINO is asked for and cannot compute this teacher.
    """
    require_known_runtime(runtime)
    if runtime == "torch":
        return "torch"
    obstacle = _obstacle(device, precision, family)
    if obstacle and runtime == "openvino":
        raise SettingError(
            f'the teacher cannot run in OpenVINO: {obstacle}, or set teacher_cache.runtime = "torch"; a cache that was'
            " begun in OpenVINO is continued in it alone: for torch take another --run"
        )
    return "torch" if obstacle else "openvino"


def _obstacle(device: torch.device, precision: str, family: str) -> str:
    """Why OpenVINO cannot compute a teacher here, with a remedy; empty if it can."""
    if device.type != "cpu":
        return f'it computes on the CPU here, and the device is {device.type}; set teacher_cache.device = "cpu"'
    if family != OPENVINO_FAMILY:
        return f"it takes models of the type {OPENVINO_FAMILY}, found {family}; choose other weights"
    if precision not in INFERENCE_PRECISION:
        return f'it computes in {" or ".join(INFERENCE_PRECISION)}, not in {precision}; set precision = "auto"'
    try:
        here = openvino_precisions()
    except SettingError as error:
        return str(error)
    if precision not in here:
        return f'it has no {precision} on this CPU; set teacher_cache.precision = "fp32"'
    return ""
