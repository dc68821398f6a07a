"""The tables that docs/results quotes are those that the command wrote."""

import json

import pytest
from support.repository import REPOSITORY

from pipeline.ablation.table import Outcome, ablation_table, table_rows
from pipeline.recipe.ablate import BASELINE

RESULTS = sorted((REPOSITORY / "tests/benchmarks/results").glob("ablation_*.json"))


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_a_page_quotes_the_table_that_the_command_wrote(path):
    table = ablation_table(json.loads(path.read_text())["rows"])
    assert any(table in page.read_text() for page in (REPOSITORY / "docs/results").glob("*.md"))


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_a_result_says_where_it_comes_from_and_its_rows_follow_from_its_students(path):
    table = json.loads(path.read_text())
    assert table["provenance"]["command"].startswith("surround ablate ")
    assert all(table["provenance"][name] for name in ("git_commit", "machine", "date", "cache_id"))
    assert all(student["provenance"]["git_commit"] for student in table["students"])
    students = [
        Outcome(s["row"], s["lidar_share"], s["seed"], s["metrics"], s.get("lidar_drives")) for s in table["students"]
    ]
    assert table_rows(students) == table["rows"]
    assert BASELINE in {row["name"] for row in table["rows"]}
