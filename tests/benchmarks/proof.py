"""What distillation gains at LiDAR returns, from the table of an ablation: the files that are read from outside.

`python tests/benchmarks/proof.py RUN/ablate/table.json --out tests/benchmarks/results/proof_fleet.json`. Errors are
AbsRel at LiDAR returns by the recipe's protocol; gains, in percent, are against the supervised student of the same
LiDAR and seed. `lidar_abs_rel` has one value for each of `seeds`, and so has
`gains_pct`, without those of which no supervised student is there; `commits` are those
of the code that trained them.
"""

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.recipe.ablate import BASELINE

AXES = ("lidar_drives", "lidar_share")
NAMES = {
    "lidar_protocol": "lidar_abs_rel",
    "abs_rel": "dense_abs_rel",
    "overlap": "overlap_abs_rel",
    "overlap_with_gross": "overlap_gross_abs_rel",
}


def proof(table: Mapping[str, Any], command: str) -> dict[str, Any]:
    """The rows of an ablation's table under the names of a proof, the metric of the field first."""
    rows = []
    for row in table["rows"]:
        axes = {axis: row[axis] for axis in AXES if axis in row}
        own, theirs = (_by_seed(table, {"row": name, **axes}) for name in (row["name"], BASELINE))
        entry = {"name": row["name"], **axes, "seeds": row["seeds"]}
        error = {seed: one["metrics"]["lidar_protocol"] for seed, one in own.items()}
        entry |= {"lidar_abs_rel": [error[seed] for seed in row["seeds"]], "gains_pct": None}
        if row["name"] != BASELINE:
            base = {seed: one["metrics"]["lidar_protocol"] for seed, one in theirs.items()}
            entry["gains_pct"] = [100 * (1 - error[seed] / base[seed]) for seed in row["seeds"] if seed in base]
        entry["commits"] = sorted({one["provenance"]["git_commit"] for one in own.values()})
        for metric, name in NAMES.items():
            prefix = "" if metric == "lidar_protocol" else f"{name}_"
            entry |= {f"{name}_mean": row.get(f"{metric}_mean"), f"{name}_std": row.get(f"{metric}_std")}
            entry |= {
                f"{prefix}gain_pct": row.get(f"{metric}_gain_pct"),
                f"{prefix}gain_std": row.get(f"{metric}_gain_std"),
            }
        rows.append(entry)
    where = table["provenance"]
    return {
        "rows": rows,
        "measured_on": table["measured_on"],
        "command": f"{where['command']}; {command}",
        "commit": where["git_commit"],
        "machine": where["machine"],
        "date": where["date"],
    }


def _by_seed(table: Mapping[str, Any], asked: Mapping[str, Any]) -> dict[int, Mapping[str, Any]]:
    """The students of a row."""
    students = (one for one in table["students"] if all(one[key] == value for key, value in asked.items()))
    return {one["seed"]: one for one in students}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("table", type=Path, help="table.json or selection.json of `surround ablate`")
    parser.add_argument("--out", type=Path, required=True)
    asked = parser.parse_args()
    told = " ".join(["python tests/benchmarks/proof.py", *sys.argv[1:]])
    asked.out.write_text(json.dumps(proof(json.loads(asked.table.read_text()), told), indent=1) + "\n")
