"""The supervised baseline: the student taught by LiDAR alone, with which others are compared."""

import json
import tomllib
from dataclasses import dataclass
from pathlib import Path

from pipeline.recipe.ablate import BASELINE
from pipeline.recipe.run_folder import RunFolder
from stages.evaluation.results import EvaluateReport


@dataclass(frozen=True)
class Supervised:
    """AbsRel against LiDAR of students of the same recipe without distillation: mean and deviation over seeds."""

    abs_rel: float
    deviation: float | None
    seeds: int
    steps: int


def supervised_baseline(run: RunFolder, report: EvaluateReport) -> Supervised | None:
    """Read the supervised row, with all LiDAR, of RUN/ablate/table.json; None if it was measured in another way."""
    try:
        table = json.loads((run.ablate / "table.json").read_text(encoding="utf-8"))
        measured, spec = table["measured_on"], table["recipe"]["eval"]
        there = (
            measured["source"],
            ", ".join(measured["split"]),
            measured["frames"],
            measured["images"],
            spec["protocol"],
            spec["flip"],
        )
        if there != (report.dataset, report.split, report.frames, report.images, report.protocol, report.flip):
            return None
        rows = [row for row in table["rows"] if row["name"] == BASELINE and row["lidar_share"] == 1]
        deviation = rows[0]["lidar_protocol_std"]
        return Supervised(
            float(rows[0]["lidar_protocol_mean"]),
            float(deviation) if deviation is not None else None,
            len(rows[0]["seeds"]),
            int(table["recipe"]["train_student"]["steps"]),
        )
    except (OSError, ValueError, LookupError, TypeError):  # no table, or one of another version
        return None


def is_supervised(recipe: Path) -> bool:
    """Whether a resolved recipe teaches by LiDAR alone; False if there is no such file."""
    try:
        losses = tomllib.loads(recipe.read_text(encoding="utf-8"))["losses"]
    except (OSError, ValueError, LookupError, TypeError):
        return False
    weights = {name for name, value in losses.items() if isinstance(value, float) and value}
    return weights == {"supervised"}
