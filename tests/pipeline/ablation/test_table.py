import math

import pytest

from pipeline.ablation.table import Outcome, ablation_table, table_rows
from pipeline.recipe.ablate import BASELINE, ROWS, AblateSpec, slug


def outcome(row: str, seed: int, abs_rel: float, share: float = 1.0, **metrics: float | None) -> Outcome:
    return Outcome(row, share, seed, {"abs_rel": abs_rel, **metrics})


def test_gains_are_against_the_supervised_student_of_the_same_seed_and_density_by_hand():
    """Seed 0: .20 to .15 is 25 %; seed 1: .10 to .09 is 10 %: mean 17.5, spread 7.5 sqrt 2. At 10 %: .40 to .50."""
    rows = table_rows(
        [
            outcome("supervised", 0, 0.20),
            outcome("KL", 0, 0.15),
            outcome("supervised", 0, 0.40, 0.1),
            outcome("KL", 0, 0.50, 0.1),
            outcome("supervised", 1, 0.10),
            outcome("KL", 1, 0.09),
        ]
    )
    by_name = {(row["name"], row["lidar_share"]): row for row in rows}
    full = by_name["KL", 1.0]
    assert full["seeds"] == [0, 1]
    assert full["abs_rel_mean"] == pytest.approx(0.12)
    assert full["abs_rel_std"] == pytest.approx(0.03 * math.sqrt(2))
    assert (full["gain_pct"], full["gain_std"]) == (pytest.approx(17.5), pytest.approx(7.5 * math.sqrt(2)))
    sparse = by_name["KL", 0.1]
    assert (sparse["gain_pct"], sparse["gain_std"], sparse["abs_rel_std"]) == (pytest.approx(-25), None, None)
    assert by_name["supervised", 1.0]["gain_pct"] is None


def test_a_higher_d1_is_a_gain_and_what_a_source_cannot_tell_is_left_out():
    rows = table_rows(
        [outcome("supervised", 0, 0.2, d1=0.8, overlap=None), outcome("KL", 0, 0.2, d1=0.88, overlap=None)]
    )
    assert rows[1]["d1_gain_pct"] == pytest.approx(10)
    assert "overlap_mean" not in rows[1]


def test_gross_differences_have_a_gain_and_the_share_that_is_compared_has_none():
    agreement = ({"overlap_with_gross": 0.2, "overlap_share": 0.5}, {"overlap_with_gross": 0.15, "overlap_share": 0.75})
    rows = table_rows([outcome(BASELINE, 0, 0.2, **agreement[0]), outcome("KL", 0, 0.2, **agreement[1])])
    assert rows[1]["overlap_with_gross_gain_pct"] == pytest.approx(25)
    assert (rows[1]["overlap_share_mean"], "overlap_share_gain_pct" in rows[1]) == (0.75, False)
    lines = ablation_table(rows).splitlines()
    assert [cell.strip() for cell in lines[0].split("|")[5:-1]] == ["overlap, gross", "compared"]
    assert [cell.strip() for cell in lines[3].split("|")[5:-1]] == ["0.1500 (+25.0 %)", "0.750"]


def test_students_that_an_older_version_measured_still_make_a_table():
    """The mean of one seed of two would not be that of the row."""
    new = {"overlap": 0.1, "overlap_with_gross": 0.3}
    seeds = [("supervised", 0, {"overlap": 0.1}), ("KL", 0, new), ("KL", 1, {"overlap": 0.2}), ("CKD", 0, new)]
    rows = table_rows([outcome(row, seed, 0.2, **found) for row, seed, found in seeds])
    assert rows[1]["overlap_mean"] == pytest.approx(0.15)
    assert ["overlap_with_gross_mean" in row for row in rows] == [False, False, True]
    assert "overlap_with_gross_gain_pct" not in rows[2]
    lines = ablation_table(rows).splitlines()
    assert [cell.strip() for cell in lines[0].split("|")[5:-1]] == ["overlap", "overlap, gross"]
    assert [line.split("|")[6].strip() for line in lines[2:]] == ["-", "-", "0.3000"]


def test_a_row_whose_supervised_student_is_not_done_has_no_gain_yet():
    (row,) = table_rows([outcome("KL", 0, 0.2)])
    assert (row["abs_rel_mean"], row["gain_pct"]) == (0.2, None)


def test_the_printed_table_has_mean_spread_and_gain():
    rows = table_rows([outcome(r, s, a) for s in (0, 1) for r, a in (("supervised", 0.2), ("KL", 0.15 + 0.01 * s))])
    lines = ablation_table(rows).splitlines()
    assert [cell.strip() for cell in lines[0].split("|")[1:5]] == ["row", "LiDAR", "seeds", "AbsRel"]
    assert "| KL         |  100% |     2 | 0.1550 ±0.0071 (+22.5 ±3.5 %) |" in lines
    assert len({len(line) for line in lines}) == 1


def test_the_rows_of_the_issue_are_there_and_make_different_folders():
    names = {"supervised", "KL", "KL literal", "CKD", "VRKD", "KL + VRKD", "CKD + VRKD"}
    baselines = {"output level", "logit KD", "feature KD", "relations of all pairs"}
    assert names | baselines < {*ROWS}
    assert slug("KL + VRKD") == "kl-vrkd"
    assert len({slug(name) for name in ROWS}) == len(ROWS)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rows": {"KL": ()}}, "expected one called 'supervised'"),
        ({"rows": {"supervised": (), "KL": (), "kl ": ()}}, "names must differ"),
        ({"rows": {"supervised": (), "++": ()}}, "names must differ"),
        ({"seeds": ()}, r"seeds: expected at least one value and none twice, got \[\]"),
        ({"seeds": (4, 4)}, r"seeds: expected at least one value and none twice, got \[4, 4\]"),
        ({"seeds": (0, -1)}, "seeds: expected 0 or more, got -1"),
        ({"lidar_shares": (0.1, 0.1)}, "lidar_shares: expected at least one value and none twice"),
        ({"lidar_shares": (1.0, 0.0)}, "lidar_shares: expected more than 0 and at most 1"),
        ({"rows": {"supervised": (), "x": ("data.test=[]",)}}, "row 'x': data.test must be the same in all rows"),
        ({"rows": {"supervised": (), "x": ("train_student.seed=3",)}}, "row 'x': train_student.seed must be the same"),
        ({"measure": "train"}, "measure: expected test or selection, got 'train'"),
    ],
)
def test_an_impossible_ablation_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        AblateSpec(**changes)
