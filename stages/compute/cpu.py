"""What the CPU of this machine can do, where its operating system tells."""

import os
from pathlib import Path

VNNI = ("avx_vnni", "avx512_vnni")
ISA_VARIABLE = "ONEDNN_MAX_CPU_ISA"
OLDER_ISAS = ("SSE41", "AVX", "AVX2", "AVX512_CORE")
"""Values of ISA_VARIABLE that keep oneDNN, and OpenVINO with it, from using VNNI and bf16 where the CPU has them."""
FLAGS_FOR_SPEED = ("avx2", "avx512f", "avx512_bf16", "avx_vnni", "avx512_vnni", "amx_int8")
"""Flags that decide how fast a student is, and which int8 files are right; Linux's names."""


def cpu_flags(cpuinfo: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    """Those of FLAGS_FOR_SPEED that the CPU has and ISA_VARIABLE allows; empty on other systems than Linux and x86."""
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        return frozenset()
    flags = next((line.partition(":")[2] for line in lines if line.startswith("flags")), "")
    found = frozenset(flags.split()) & {*FLAGS_FOR_SPEED}
    return found - {*VNNI, "avx512_bf16"} if held_to_older_isa() else found


def held_to_older_isa() -> bool:
    """Whether the environment keeps oneDNN and OpenVINO from VNNI and bf16."""
    return os.environ.get(ISA_VARIABLE, "").upper() in OLDER_ISAS


def computes_bf16() -> bool:
    """Whether the CPU multiplies bf16 and the environment allows it, as `resolve_precision` asks torch."""
    return bool(cpu_flags() & {"avx512_bf16", "amx_int8"}) and not held_to_older_isa()


def flags_text(flags: frozenset[str]) -> str:
    """What `cpu_flags` has found, for people."""
    return " ".join(flag for flag in FLAGS_FOR_SPEED if flag in flags) or "unknown"
