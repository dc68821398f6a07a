import os

import pytest

from stages.compute import waiting
from stages.compute.waiting import DECIDED_BY, wait_briefly


@pytest.fixture(autouse=True)
def _untouched(monkeypatch):
    for name in DECIDED_BY:
        monkeypatch.setenv(name, "")  # so that what the test sets is taken back
        monkeypatch.delenv(name)
    monkeypatch.setattr(waiting, "computes_bf16", lambda: False)


def test_threads_spin_briefly_where_nobody_has_said_otherwise():
    wait_briefly()
    assert {name: os.environ.get(name) for name in DECIDED_BY} == {"OMP_WAIT_POLICY": None, "GOMP_SPINCOUNT": "1000"}


def test_where_a_cpu_computes_bf16_nothing_is_changed(monkeypatch):
    """The bf16 kernels of oneDNN spin whatever OpenMP does, so spinning briefly costs and gains nothing."""
    monkeypatch.setattr(waiting, "computes_bf16", lambda: True)
    wait_briefly()
    assert not {*DECIDED_BY} & {*os.environ}


@pytest.mark.parametrize(("name", "value"), [("OMP_WAIT_POLICY", "active"), ("GOMP_SPINCOUNT", "5")])
def test_what_the_user_has_set_stays_and_is_not_mixed_with_ours(monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    wait_briefly()
    assert {name: os.environ.get(name) for name in DECIDED_BY} == {n: value if n == name else None for n in DECIDED_BY}
