"""The rig folder that tests of reading and of writing one begin with."""

from pathlib import Path

import pytest
from support.data_sets.rig_folder import van


@pytest.fixture
def folder(tmp_path) -> Path:
    return van(tmp_path)
