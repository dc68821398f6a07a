"""The cache that small students learn from."""

from pathlib import Path

import pytest
from support.fakes import FakeSource
from support.teacher_caches import write_teacher_cache


@pytest.fixture(scope="session")
def cache(tmp_path_factory, teacher_folder) -> Path:
    root = tmp_path_factory.mktemp("cache")
    write_teacher_cache(
        root, FakeSource(5, missing={"d/1": (2,)}, no_lidar=("d/3",), broken={"d/4": "x"}), teacher_folder
    )
    return root
