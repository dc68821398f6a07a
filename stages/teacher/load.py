"""Load a teacher from a folder, whatever it holds."""

from pathlib import Path

import torch

from stages.teacher.marigold import PIPELINE_INDEX, MarigoldTeacher
from stages.teacher.transformers_depth import TransformersTeacher

LoadedTeacher = TransformersTeacher | MarigoldTeacher


def load_teacher(
    folder: Path,
    *,
    name: str,
    licence: str,
    weights_sha256: str,
    input_size: tuple[int, int],
    device: torch.device,
    precision: str,
) -> LoadedTeacher:
    """A depth model of transformers or, where the folder is a pipeline of diffusers, Marigold. Raises SettingError."""
    kind = MarigoldTeacher if (folder / PIPELINE_INDEX).is_file() else TransformersTeacher
    return kind(
        folder,
        name=name,
        licence=licence,
        weights_sha256=weights_sha256,
        input_size=input_size,
        device=device,
        precision=precision,
    )
