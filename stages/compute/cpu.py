"""What the CPU of this machine can do, where its operating system tells."""

from pathlib import Path

FLAGS_FOR_SPEED = ("avx2", "avx512f", "avx512_bf16", "avx_vnni", "avx512_vnni", "amx_int8")
"""Flags that decide how fast a student is, and which int8 files are right; Linux's names."""


def cpu_flags(cpuinfo: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    """Those of FLAGS_FOR_SPEED that the CPU has; empty where nobody tells: another system than Linux, or not an x86."""
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        return frozenset()
    flags = next((line.partition(":")[2] for line in lines if line.startswith("flags")), "")
    return frozenset(flags.split()) & {*FLAGS_FOR_SPEED}


def flags_text(flags: frozenset[str]) -> str:
    """What `cpu_flags` has found, for people."""
    return " ".join(flag for flag in FLAGS_FOR_SPEED if flag in flags) or "unknown"
