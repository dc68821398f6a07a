"""A sensor of few beams keeps the points that lie on them, as the sensor itself sees them; pages quote the table."""

import json
import re

import numpy as np
import pytest
from benchmarks.street import RESULTS, on_beams
from support.repository import REPOSITORY


def test_points_on_a_beam_are_seen_from_the_sensor_by_hand():
    """The sensor sits 2 m up: 10 m away, 1.65 m up is -2.00 degrees; seen from the ground it would be 9.4."""
    lidar_from_ground = np.eye(4)
    lidar_from_ground[2, 3] = -2.0
    points_m = np.array([[10.0, 0, 1.65], [0, -10.0, 1.65], [10.0, 0, 1.6], [10.0, 0, 2.0], [-20.0, 0, 2.17]])
    # elevations: -2.00, -2.00, -2.29, 0, 0.49 degrees; a beam is 0.25 degrees wide to each side
    assert on_beams(points_m, lidar_from_ground, [-2.0]).tolist() == [True, True, False, False, False]
    assert on_beams(points_m, lidar_from_ground, [-2.0, 0.5]).tolist() == [True, True, False, False, True]
    assert not on_beams(points_m, np.eye(4), [-2.0]).any()


@pytest.mark.parametrize("page", ["docs/results/street.md", "docs/RESULTS.md"])
def test_the_pages_quote_what_was_measured(page):
    """Every row of the long table, and those of the default losses in RESULTS."""
    text = (REPOSITORY / page).read_text()
    rows = json.loads((RESULTS / "proof_street.json").read_text())["rows"]
    for row in rows:
        if page.endswith("street.md") or row["name"] in ("supervised", "default terms, bin relation"):
            error = " ± ".join(f"{row[f'lidar_abs_rel_{key}']:.4f}".lstrip("0") for key in ("mean", "std"))
            gain = "" if row["gain_pct"] is None else f"{row['gain_pct']:+.1f} ± {row['gain_std']:.1f} %"
            assert re.search(re.escape(error) + r"[^|]*" + re.escape(gain), text), (
                row["setting"],
                row["name"],
                error,
                gain,
            )
