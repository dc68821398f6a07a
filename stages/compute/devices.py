"""Device and precision of a computation, resolved once from the recipe."""

from contextlib import AbstractContextManager

import torch

from data_cache.errors import SettingError
from stages.compute.cpu import held_to_older_isa

DEVICES = ("auto", "cpu", "cuda")
PRECISIONS = ("auto", "fp32", "bf16", "fp16")


def require_known(device: str, precision: str) -> None:
    """Check that device and precision are known words; the recipe may be written for another machine.

    Raises:
        SettingError: if one of them is unknown.
    """
    if device not in DEVICES:
        raise SettingError(f"device: expected one of {', '.join(DEVICES)}, got {device!r}")
    if precision not in PRECISIONS:
        raise SettingError(f"precision: expected one of {', '.join(PRECISIONS)}, got {precision!r}")


def resolve_device(device: str) -> torch.device:
    """The torch device of a name; `auto` is the GPU if there is one, else the CPU.

    Raises:
        SettingError: if the device is unknown or not available.
    """
    require_known(device, "auto")
    if device == "cuda" and not torch.cuda.is_available():
        raise SettingError("device: cuda asked for, but torch sees no GPU; use device = 'auto' or install a CUDA build")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(device)


def resolve_precision(precision: str, device: torch.device) -> str:
    """The precision of a name; `auto` is bf16 if the hardware multiplies it, else fp32.

    Hardware with bf16: GPUs from Ampere on, CPUs with AMX or AVX512-BF16.

    Raises:
        SettingError: if the precision is unknown.
    """
    require_known("auto", precision)
    if precision != "auto":
        return precision
    if device.type == "cuda":
        fast = torch.cuda.get_device_capability(device) >= (8, 0)
    else:
        able = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
        fast = able and not held_to_older_isa()
    return "bf16" if fast else "fp32"


def dtype_of(precision: str) -> torch.dtype:
    """The torch dtype of a resolved precision."""
    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]


def autocast(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """Mixed precision for a forward pass; a no-op in fp32."""
    return torch.autocast(device.type, dtype_of(precision), enabled=precision != "fp32")


def place(module: torch.nn.Module, device: torch.device) -> None:
    """Move a convolutional model to a device, in channels-last layout, which its kernels prefer."""
    module.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]


def synchronize(device: torch.device) -> None:
    """Wait until the device has finished its work, so that timings are correct."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
