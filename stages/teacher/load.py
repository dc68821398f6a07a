"""Choosing the teacher class for a folder of weights."""

from pathlib import Path

from stages.teacher.marigold import PIPELINE_INDEX, MarigoldTeacher
from stages.teacher.transformers_depth import TransformersTeacher

LoadedTeacher = TransformersTeacher | MarigoldTeacher


def teacher_class(folder: Path) -> type[TransformersTeacher] | type[MarigoldTeacher]:
    """Marigold if the folder is a pipeline of diffusers, else a depth model of transformers."""
    return MarigoldTeacher if (folder / PIPELINE_INDEX).is_file() else TransformersTeacher
