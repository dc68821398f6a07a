"""The pip lines of the Dockerfiles: what they ask for exists, and fits together."""

import re
import shlex
import subprocess
import sys

import pytest
from support.repository import REPOSITORY

pytestmark = pytest.mark.torture
LINES = [
    (path.name, line)
    for path in sorted((REPOSITORY / "docker").glob("*.Dockerfile"))
    for line in re.findall(r"^RUN python -m pip install (.*)$", path.read_text(), re.MULTILINE)
]


def test_there_are_lines_to_try():
    assert len(LINES) == 2


@pytest.mark.parametrize(("name", "line"), LINES, ids=[name for name, _ in LINES])
def test_the_packages_of_an_image_can_be_had_together(name, line):
    """As in an environment that holds nothing; nothing is installed."""
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", *shlex.split(line)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Would install" in done.stdout
