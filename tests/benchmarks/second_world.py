"""Students of the first synthetic world, measured in the second one, which nothing was trained or chosen on.

`python tests/benchmarks/second_world.py RUN/ablate STUDENT ... --out
tests/benchmarks/results/zero_shot_second_world.json`, each STUDENT a folder of the ablation. The frames are those of
the recipe `synthetic_town`; errors are AbsRel of the metric depth and after a fit of scale and shift of disparity per
image, at LiDAR returns by the protocol `zero-shot` and against dense truth; gains, in percent, are against the
supervised student of the same seed.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from data_cache.sources.base import Source
from data_cache.sources.synthetic.town import WEATHERS
from pipeline.ablation.student import kept_frames
from pipeline.ablation.table import Outcome, ablation_table, table_rows
from pipeline.recipe.config import load_recipe
from pipeline.recipe.provenance import surroundings
from pipeline.recipe.run_folder import RunFolder
from pipeline.runs.evaluate import own_checkpoint
from pipeline.runs.splits import frames_to_test, open_data
from pipeline.runs.zero_shot import measure_zero_shot
from stages.evaluation.results import EvaluateReport, against_lidar
from stages.student.checkpoint import load_student
from stages.student.fold import folded

TARGET = "synthetic_town"
LEFT_OUT = ("gain_pct", "gain_std")
"""Of a table of an ablation: its rows name the metric of each gain."""
METRICS = {
    "lidar_abs_rel": "LiDAR returns",
    "lidar_affine": "LiDAR returns, affine-invariant",
    "dense_abs_rel": "dense truth",
    "dense_affine": "dense truth, affine-invariant",
}
"""With their headings."""


def errors(report: EvaluateReport) -> dict[str, float]:
    """The METRICS of a report."""
    lidar, dense, aligned = against_lidar(report), report.dense_truth, report.dense_affine_invariant
    assert dense is not None and aligned is not None
    scores = lidar.metric, lidar.affine_invariant, dense["all"], aligned
    return {name: score.mean.abs_rel for name, score in zip(METRICS, scores, strict=True)}


def by_weather(frame_ids: Sequence[str]) -> dict[str, list[str]]:
    """The frames in each weather; drives have one after the other."""
    found: dict[str, list[str]] = {name: [] for name in WEATHERS}
    for frame_id in frame_ids:
        number = int(frame_id.partition("/")[0].removeprefix("drive-"))
        found[tuple(WEATHERS)[number % len(WEATHERS)]].append(frame_id)
    return found


def second_world(outcomes: Sequence[Outcome], where: Mapping[str, Any], command: str) -> dict[str, Any]:
    """The JSON: one row per kind of student, and every student."""
    rows = [{key: value for key, value in row.items() if key not in LEFT_OUT} for row in table_rows(outcomes)]
    students = [{"row": o.row, "lidar_share": o.lidar_share, "seed": o.seed, "metrics": o.metrics} for o in outcomes]
    told = {"commit": where["git_commit"], "machine": where["machine"], "date": where["date"]}
    return {"rows": rows, "students": students, "command": command, **told}


def page_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The table of docs/results/second_world.md: all weathers together, then one after the other."""
    parts = [
        {"name": f"{row['name']}, {weather}", **{key: row[key] for key in ("seeds", "lidar_share")}}
        | {key.removeprefix(f"{weather}_"): value for key, value in row.items() if key.startswith(f"{weather}_")}
        for weather in WEATHERS
        for row in rows
    ]
    return ablation_table([*rows, *parts], METRICS)


def measured(folder: Path, source: Source, frame_ids: Sequence[str]) -> Outcome | None:
    """One student in the second world, under the row and seed that it has in the first; None if it is unfinished."""
    result = next(folder.glob("measured-*.json"), None)
    if result is None:
        print(f"left out: {folder.name} has no measured-*.json, so it is not finished", flush=True)
        return None
    told = json.loads(result.read_text())
    target, own = load_recipe(TARGET, [], None), load_recipe(str(folder / "recipe.toml"), [], None)
    student = folded(load_student(own_checkpoint(own, RunFolder(folder))).student)
    reports = {name: measure_zero_shot(student, target, source, ids) for name, ids in by_weather(frame_ids).items()}
    parts = {name: errors(report) for name, report in reports.items()}
    # Each camera has as many images in each weather, so the mean of the four is that of the whole split.
    assert len({(report.frames, report.images) for report in reports.values()}) == 1
    metrics = {name: fmean(part[name] for part in parts.values()) for name in METRICS}
    metrics |= {f"{weather}_{name}": value for weather, part in parts.items() for name, value in part.items()}
    print(told["row"], told["seed"], {name: round(value, 4) for name, value in metrics.items()}, flush=True)
    return Outcome(told["row"], told["lidar_share"], told["seed"], metrics)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("ablate", type=Path, help="folder of an ablation's students")
    parser.add_argument("students", nargs="+", help="folders in it")
    parser.add_argument("--out", type=Path, required=True)
    asked = parser.parse_args()
    recipe = load_recipe(TARGET, [], None)
    town = kept_frames(open_data(recipe.data))
    told = " ".join(["python tests/benchmarks/second_world.py RUN/ablate", *sys.argv[2:]])
    here = surroundings()
    ids = frames_to_test(recipe, town)
    found = [outcome for name in asked.students if (outcome := measured(asked.ablate / name, town, ids)) is not None]
    asked.out.write_text(json.dumps(second_world(found, here, told), indent=1) + "\n")
