"""Students to deploy, traced once for all tests."""

import pytest
from support.deployed import deployable, three_rigs
from support.tiny_encoder import TINY_LITE
from torch.export import ExportedProgram

from stages.deploy.export import export_program, onnx_model
from stages.deploy.runtimes import DeployedRigs
from stages.student.model import Student


@pytest.fixture(scope="session")
def student() -> Student:
    """With attention between views."""
    return deployable()


@pytest.fixture(scope="session")
def program(student) -> ExportedProgram:
    return export_program(student, view_count=3, batch=None)


@pytest.fixture(scope="session")
def model(program) -> bytes:
    return onnx_model(program, {"format": "test"})


@pytest.fixture(scope="session")
def lone_student() -> Student:
    """It sees each camera alone, through ReLUs that end at 6."""
    return deployable(TINY_LITE, attention_width=0)


@pytest.fixture(scope="session")
def lone_model(lone_student) -> bytes:
    """A graph of one camera."""
    return onnx_model(export_program(lone_student, view_count=1, batch=None), {"format": "test"})


@pytest.fixture(scope="session")
def rigs() -> DeployedRigs:
    return three_rigs()
