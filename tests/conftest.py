"""Fixtures that more than one test file needs."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of real frames; without it the test is skipped, saying so."""
    folder = os.environ.get("SURROUND_REAL_DATA")
    if not folder:
        pytest.skip("real frames: set SURROUND_REAL_DATA to their folder")
    if not Path(folder).is_dir():
        pytest.skip(f"real frames: SURROUND_REAL_DATA={folder} is not a folder")
    return Path(folder)
