"""What docs/results/second_world.md says of the second world is what was measured there."""

import json

from benchmarks.second_world import METRICS, by_weather, page_table, second_world
from support.repository import REPOSITORY

from pipeline.ablation.table import Outcome

FOUND = json.loads((REPOSITORY / "tests/benchmarks/results/zero_shot_second_world.json").read_text())


def test_the_page_quotes_the_table_and_its_rows_follow_from_the_students():
    outcomes = [Outcome(s["row"], s["lidar_share"], s["seed"], s["metrics"]) for s in FOUND["students"]]
    where = {"git_commit": FOUND["commit"], "machine": FOUND["machine"], "date": FOUND["date"]}
    assert second_world(outcomes, where, FOUND["command"]) == FOUND
    assert page_table(FOUND["rows"]) in (REPOSITORY / "docs/results/second_world.md").read_text()


def test_a_gain_by_hand():
    """0.15 instead of 0.20 is 25 %, 0.12 instead of 0.10 is -20 %."""
    metrics = [
        dict.fromkeys(METRICS, 0.2) | {"dense_affine": 0.1},
        dict.fromkeys(METRICS, 0.15) | {"dense_affine": 0.12},
    ]
    outcomes = [Outcome(name, 1.0, 0, found) for name, found in zip(("supervised", "small"), metrics, strict=True)]
    row = second_world(outcomes, {"git_commit": "c", "machine": "m", "date": "d"}, "x")["rows"][1]
    assert (round(row["lidar_abs_rel_gain_pct"], 9), round(row["dense_affine_gain_pct"], 9)) == (25, -20)


def test_drives_have_one_weather_after_the_other():
    assert by_weather(["drive-00/0", "drive-03/0", "drive-05/0"]) == {
        "day": ["drive-00/0"], "fog": ["drive-05/0"], "rain": [], "night": ["drive-03/0"]
    }  # fmt: skip
