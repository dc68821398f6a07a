"""What the CPU of this machine can do, where its operating system tells."""

import os
from collections.abc import Mapping
from pathlib import Path

VNNI = ("avx_vnni", "avx512_vnni")
ISA_VARIABLE = "ONEDNN_MAX_CPU_ISA"
FLAGS_OF_ISA: Mapping[str, frozenset[str]] = {
    "SSE41": frozenset(),
    "AVX": frozenset(),
    "AVX2": frozenset({"avx2"}),
    "AVX2_VNNI": frozenset({"avx2", "avx_vnni"}),
    "AVX512_CORE": frozenset({"avx2", "avx512f"}),
    "AVX512_CORE_VNNI": frozenset({"avx2", "avx512f", "avx_vnni", "avx512_vnni"}),
}
"""Values of ISA_VARIABLE that keep oneDNN, and OpenVINO with it, from bf16, and the flags that each of them allows."""
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
    return found & FLAGS_OF_ISA.get(os.environ.get(ISA_VARIABLE, "").upper(), found)


def held_to_older_isa() -> bool:
    """Whether the environment keeps oneDNN and OpenVINO from bf16."""
    return os.environ.get(ISA_VARIABLE, "").upper() in FLAGS_OF_ISA


def computes_bf16() -> bool:
    """Whether the CPU multiplies bf16 and the environment allows it, as `resolve_precision` asks torch."""
    return bool(cpu_flags() & {"avx512_bf16", "amx_int8"})


def flags_text(flags: frozenset[str]) -> str:
    """What `cpu_flags` has found, for people."""
    return " ".join(flag for flag in FLAGS_FOR_SPEED if flag in flags) or "unknown"
