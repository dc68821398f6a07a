import os

import pytest

from stages.compute.waiting import PASSIVE, wait_passively


@pytest.fixture(autouse=True)
def _untouched(monkeypatch):
    for name in PASSIVE:
        monkeypatch.setenv(name, "")  # so that what the test sets is taken back
        monkeypatch.delenv(name)


def test_threads_wait_passively_where_nobody_has_said_otherwise():
    wait_passively()
    assert (os.environ["OMP_WAIT_POLICY"], os.environ["GOMP_SPINCOUNT"]) == ("passive", "0")


@pytest.mark.parametrize(("name", "value"), [("OMP_WAIT_POLICY", "active"), ("GOMP_SPINCOUNT", "1000")])
def test_what_the_user_has_set_stays_and_is_not_mixed_with_ours(monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    wait_passively()
    assert {name: os.environ.get(name) for name in PASSIVE} == {n: value if n == name else None for n in PASSIVE}
