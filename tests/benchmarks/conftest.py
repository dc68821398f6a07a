"""Benchmarks run as a user's process does."""

import pytest


@pytest.fixture(scope="session", autouse=True)
def renderings() -> None:
    """No more frames of the synthetic drives are kept than the program keeps."""
