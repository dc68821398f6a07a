"""Choosing the teacher class for a folder of weights, and its runtime."""

import json
from pathlib import Path

import torch

from stages.teacher.marigold import PIPELINE_INDEX, MarigoldTeacher
from stages.teacher.openvino_depth import OpenVinoTeacher
from stages.teacher.runtime import resolve_runtime
from stages.teacher.transformers_depth import TransformersTeacher

LoadedTeacher = TransformersTeacher | MarigoldTeacher | OpenVinoTeacher


def teacher_class(folder: Path) -> type[TransformersTeacher] | type[MarigoldTeacher]:
    """Marigold if the folder is a pipeline of diffusers, else a depth model of transformers."""
    return MarigoldTeacher if (folder / PIPELINE_INDEX).is_file() else TransformersTeacher


def load_teacher(
    folder: Path,
    *,
    name: str,
    licence: str,
    weights_sha256: str,
    input_size: tuple[int, int],
    device: torch.device,
    precision: str,
    runtime: str,
) -> LoadedTeacher:
    """Load the teacher of a folder in the runtime that `stages.teacher.runtime.resolve_runtime` chooses.

    Raises:
        SettingError: if the folder holds none, or it cannot run so.
    """
    in_openvino = resolve_runtime(runtime, device, precision, _family(folder)) == "openvino"
    teacher = teacher_class(folder)(
        folder,
        name=name,
        licence=licence,
        weights_sha256=weights_sha256,
        input_size=input_size,
        device=device,
        precision="fp32" if in_openvino else precision,
    )
    if in_openvino and isinstance(teacher, TransformersTeacher):
        return OpenVinoTeacher(teacher, precision)
    return teacher


def _family(folder: Path) -> str:
    """The `model_type` of a model; `unknown` if its config does not name one, which loading it will report."""
    if teacher_class(folder) is MarigoldTeacher:
        return "marigold"
    try:
        return str(json.loads((folder / "config.json").read_text(encoding="utf-8"))["model_type"])
    except (OSError, ValueError, KeyError, TypeError):
        return "unknown"
