import re

import pytest

from stages.compute import progress
from stages.compute.progress import QUIET, progress_bar


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    monkeypatch.setattr(progress, "_SHOWN_AFTER_S", 0.0)


def told(capfd, **options):
    with progress_bar(8, 2, "train-student", "step", **options) as bar:
        for _ in range(6):
            bar.update()
    return capfd.readouterr().err


def test_a_log_gets_whole_lines_and_no_carriage_returns(capfd):
    lines = told(capfd).split("\n")
    assert lines[-1] == ""
    assert re.fullmatch(r"train-student: 2 of 8 steps \(25 %\), 00:00 elapsed, \? left, .*", lines[0])
    assert re.fullmatch(r"train-student: 8 of 8 steps \(100 %\), 00:00 elapsed, 00:00 left, .*step/s", lines[-2])
    assert len(lines) == 3  # its beginning and its end: twenty seconds lie between lines
    assert not any("\r" in line for line in lines)


def test_what_is_quick_shows_nothing(capfd, monkeypatch):
    monkeypatch.setattr(progress, "_SHOWN_AFTER_S", 2.0)
    assert told(capfd) == ""


def test_the_user_and_processes_that_another_speaks_for_can_have_silence(capfd, monkeypatch):
    assert told(capfd, quiet=True) == ""
    monkeypatch.setenv(QUIET, "1")
    assert told(capfd) == ""
