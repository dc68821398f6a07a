"""A proof holds the gains at LiDAR returns, not those on dense truth."""

from benchmarks.proof import proof

from pipeline.ablation.table import Outcome, table_rows


def test_a_proof_by_hand():
    """0.08 instead of 0.10 at LiDAR is 20 %, of dense truth 0.06 instead of 0.12 is 50 %."""
    outcomes = [
        Outcome("supervised", 1.0, 0, {"lidar_protocol": 0.10, "abs_rel": 0.12, "overlap": 0.05}, 3),
        Outcome("motion", 1.0, 0, {"lidar_protocol": 0.08, "abs_rel": 0.06, "overlap": 0.04}, 3),
    ]
    where = {"command": "surround ablate evidence", "git_commit": "abc", "machine": "m", "date": "d"}
    found = proof({"rows": table_rows(outcomes), "measured_on": {}, "provenance": where}, "proof")
    assert found["command"] == "surround ablate evidence; proof"
    base, row = found["rows"]
    assert (base["gain_pct"], row["name"], row["lidar_drives"], row["seeds"]) == (None, "motion", 3, [0])
    assert (row["lidar_abs_rel_mean"], round(row["gain_pct"], 9)) == (0.08, 20)
    assert (row["dense_abs_rel_mean"], round(row["dense_abs_rel_gain_pct"], 9)) == (0.06, 50)
