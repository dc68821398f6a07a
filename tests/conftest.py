"""Fixtures that more than one test file needs."""

import os
from pathlib import Path

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported: the test processes share the cores

import pytest
from fakes import save_tiny_teacher


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of real frames; without it the test is skipped, saying so."""
    folder = os.environ.get("SURROUND_REAL_DATA")
    if not folder:
        pytest.skip("real frames: set SURROUND_REAL_DATA to their folder")
    if not Path(folder).is_dir():
        pytest.skip(f"real frames: SURROUND_REAL_DATA={folder} is not a folder")
    return Path(folder)


@pytest.fixture(scope="session")
def teacher_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny teacher of the real class with random weights."""
    return save_tiny_teacher(tmp_path_factory.mktemp("weights") / "tiny")
