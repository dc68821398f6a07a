"""A run whose data set is the moving van, with an untrained student."""

from pathlib import Path

import pytest

from data_cache.sources.rig_folder.source import RigFolderSource
from pipeline.runs import splits
from stages.student.checkpoint import save_student
from support.data_sets.moving_van import TOUR, YARD, write_moving_van
from support.students import LINEAGE, MEMORY_RECIPE, student


def van_run(folder: Path, patch: pytest.MonkeyPatch) -> RigFolderSource:
    """Write `FOLDER/van` and `FOLDER/run`, whose test frames are those of the bend."""
    source = RigFolderSource(write_moving_van(folder / "van"))
    patch.setattr(splits, "open_source", lambda kind, root, version="", **options: source)
    save_student(folder / "run/student/last.safetensors", student(), LINEAGE)
    text = (
        MEMORY_RECIPE.format(source="near").replace('["d[1:]"]', f'["{TOUR}"]').replace('["d[:1]"]', f'["{YARD}[2:]"]')
    )
    (folder / "run/recipe.toml").write_text(text)
    return source
