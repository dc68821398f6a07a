"""The provenance of numbers: program, machine, date."""

import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import torch

VERSIONED = ("surround-distill", "torch", "transformers", "zarr", "numpy")


def surroundings() -> dict[str, object]:
    """Versions, commit, machine and date of this process."""
    return {
        "versions": {name: _version(name) for name in VERSIONED} | {"python": platform.python_version()},
        "git_commit": _git_commit(),
        "machine": f"{_processor()}, {os.cpu_count()} cores"
        + (f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _version(name: str) -> str | None:
    """Of a package; None where this program runs from a checkout that is not installed."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _git_commit() -> str | None:
    """Commit of this program's checkout, with "+changes" if files differ from it; None outside a checkout."""
    here = Path(__file__).parent
    try:
        top = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=True)
        dirty = subprocess.run(["git", "status", "--porcelain"], cwd=here, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return top.stdout.strip() + ("+changes" if dirty.stdout.strip() else "")


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
