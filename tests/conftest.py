"""Fixtures that more than one test file needs.

What takes seconds to import is imported by the fixture that needs it: the process that hands tests out needs none.
"""

import functools
import importlib.util
import os
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: the test processes share the cores

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from support.object_storage import Bucket, S3Server

settings.register_profile("any machine", deadline=None)  # how long an example takes says nothing about the code
settings.load_profile("any machine")


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of real frames; without it the test is skipped, saying so."""
    folder = os.environ.get("SURROUND_REAL_DATA")
    if not folder:
        pytest.skip("real frames: set SURROUND_REAL_DATA to their folder")
    if not Path(folder).is_dir():
        pytest.skip(f"real frames: SURROUND_REAL_DATA={folder} is not a folder")
    return Path(folder)


@pytest.fixture(scope="session", autouse=True)
def renderings() -> None:
    """Of the synthetic drives, the last twenty frames and four scenes are kept: most tests look at the same few."""
    from data_cache.sources.synthetic import source as synthetic

    synthetic._rendering = functools.lru_cache(maxsize=6 * 20)(synthetic._rendering.__wrapped__)
    synthetic._tracer = functools.lru_cache(maxsize=4)(synthetic._tracer.__wrapped__)


@pytest.fixture(scope="session")
def teacher_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny teacher of the real class with random weights."""
    from support.fakes import save_tiny_teacher

    return save_tiny_teacher(tmp_path_factory.mktemp("weights") / "tiny")


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> "Iterator[S3Server]":
    """Started once per test process."""
    for module in ("moto", "flask", "s3fs"):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"object storage: {module} is not installed; pip install 'surround-distill[dev]'")
    from support.object_storage import s3_serving

    with s3_serving(tmp_path_factory.mktemp("s3") / "log") as server:
        yield server


@pytest.fixture
def bucket(s3_server: "S3Server", monkeypatch: pytest.MonkeyPatch) -> "Bucket":
    """An empty bucket, in an environment that leads to it from this process and those that it starts."""
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_REGION"):
        monkeypatch.delenv(name, raising=False)
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    from support.object_storage import Bucket

    name = f"bucket-{uuid.uuid4().hex[:12]}"
    s3_server.client.create_bucket(Bucket=name)
    return Bucket(name, s3_server)


@pytest.fixture
def forget_connections() -> Iterator[Callable[[], None]]:
    """Have object storage opened anew in another environment, as in a new process."""
    import fsspec

    forget = fsspec.get_filesystem_class("s3").clear_instance_cache
    yield forget
    forget()
