"""OpenVINO on the CPU (an optional extra): what it computes in here, always told and never left to its own choice."""

from functools import cache
from typing import Any

from data_cache.errors import SettingError
from stages.compute.cpu import held_to_older_isa

INFERENCE_PRECISION = {"fp32": "f32", "bf16": "bf16"}
"""Our names of number formats, and those of its setting INFERENCE_PRECISION_HINT."""


@cache
def openvino_core() -> Any:
    """The one `openvino.Core` of this process, never given up.

    Its CPU plugin gives the thread that loads it another stack for signal handlers and frees that stack when the last
    user of the plugin is gone. If that happens in another thread, the next signal that Python handles (SIGTERM, or
    the SIGCHLD of torch's loaders) ends the process without a word. With a Core that stays, the plugin stays.
    """
    import openvino

    return openvino.Core()


def openvino_precisions() -> tuple[str, ...]:
    """What OpenVINO computes in on this CPU; where bf16 is there, it takes that unless it is told otherwise.

    Raises:
        SettingError: if it is not installed, or cannot be used.
    """
    try:
        able = openvino_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        capable = "BF16" in able and not held_to_older_isa()
    except ModuleNotFoundError as error:
        raise SettingError(f"OpenVINO is not installed ({error}); pip install 'surround-distill[openvino]'") from error
    except Exception as error:  # a library that does not load, a broken plugin: it has no base class for its errors
        raise SettingError(f"OpenVINO cannot be used ({error!r}); install it again, or remove it") from error
    return ("fp32", "bf16") if capable else ("fp32",)
