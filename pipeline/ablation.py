"""What an ablation compares, rows by LiDAR densities by seeds, and the table that it ends in. Nothing runs here."""

import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from pipeline.tables import Table, markdown_table

BASELINE = "supervised"
ROWS: Mapping[str, tuple[str, ...]] = {
    BASELINE: (),
    "KL": ("losses.kl=0.3",),
    "KL literal": ("losses.kl=0.3", "losses.frame=literal"),
    "KL student frame": ("losses.kl=0.3", "losses.frame=student"),
    "CKD": ("losses.kl=0.3", "losses.cross=0.3"),
    "VRKD": ("losses.relation=1.0",),
    "KL + VRKD": ("losses.kl=0.3", "losses.relation=1.0"),
    "CKD + VRKD": ("losses.kl=0.3", "losses.cross=0.3", "losses.relation=1.0"),
    "output level": ("losses.output=1.0",),
    "logit KD": ("losses.logit=0.02",),
    "feature KD": ("losses.feature=1.0",),
    "relations of all pairs": ("losses.all_relation=1.0",),
    "KL + VRKD + completion": ("losses.kl=0.3", "losses.relation=1.0", "losses.completion=1.0"),
    "KL + VRKD + photometric": ("losses.kl=0.3", "losses.relation=1.0", "losses.photometric=1.0"),
    "KL + VRKD + completion + photometric": (
        "losses.kl=0.3",
        "losses.relation=1.0",
        "losses.completion=1.0",
        "losses.photometric=1.0",
    ),
    "agreement": ("losses.agreement=1.0",),
    "KL + VRKD + completion + photometric + agreement": (
        "losses.kl=0.3",
        "losses.relation=1.0",
        "losses.completion=1.0",
        "losses.photometric=1.0",
        "losses.agreement=1.0",
    ),
    "supervised, views alone": ("student.attention_width=0",),
}
"""Overrides of each row. A row starts from the recipe with every loss but the supervised one at 0."""
SHARED = ("data.", "eval.", "ablate.", "cluster.", "train_student.seed", "train_student.lidar_share",
          "train_student.steps", "train_student.batch_rigs", "train_student.select_every")  # fmt: skip
"""What a row may not override: rows are compared on the same data, budget and seeds."""

Metrics = Mapping[str, float | None]
HIGHER_IS_BETTER = ("d1",)


@dataclass(frozen=True, kw_only=True)
class AblateSpec:
    """Which students `surround ablate` compares.

    Attributes:
        rows: overrides by name of row, `section.key=value` each; gains are against the one called supervised.
        seeds: of the order of frames, the augmentation and the random parts of the student.
        lidar_shares: shares of the LiDAR pixels that teach, see `train_student.lidar_share`.
        measure: the split that students are measured on, test or selection.
    """

    rows: dict[str, tuple[str, ...]] = field(default_factory=lambda: dict(ROWS))
    seeds: tuple[int, ...] = (0, 1, 2)
    lidar_shares: tuple[float, ...] = (1.0,)
    measure: str = "test"

    def __post_init__(self) -> None:
        if BASELINE not in self.rows:
            raise ValueError(f"rows: expected one called {BASELINE!r}, which the others are compared with")
        if len({slug(name) for name in self.rows}) < len(self.rows) or not all(slug(name) for name in self.rows):
            raise ValueError("rows: their names must differ in letters or digits")
        for name, values in {"seeds": self.seeds, "lidar_shares": self.lidar_shares}.items():
            if not values or len(set(values)) < len(values):
                raise ValueError(f"{name}: expected at least one, each once, got {list(values)}")
        if min(self.seeds) < 0:
            raise ValueError(f"seeds: expected 0 or more, got {min(self.seeds)}")
        if not all(0 < share <= 1 for share in self.lidar_shares):
            raise ValueError(f"lidar_shares: expected more than 0 and at most 1, got {list(self.lidar_shares)}")
        for row, override in ((row, o.strip()) for row, overrides in self.rows.items() for o in overrides):
            if override.startswith(SHARED):
                raise ValueError(
                    f"row {row!r}: {override.partition('=')[0]} must be the same in all rows; set it outside"
                )
        if self.measure not in ("test", "selection"):
            raise ValueError(f"measure: expected test or selection, got {self.measure!r}")


@dataclass(frozen=True)
class Outcome:
    """One student, trained and measured.

    Attributes:
        row, lidar_share, seed: which one.
        metrics: by name; None where the source cannot tell.
    """

    row: str
    lidar_share: float
    seed: int
    metrics: Metrics


def slug(name: str) -> str:
    """The name of a row as part of a folder name."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def table_rows(outcomes: Sequence[Outcome]) -> list[dict[str, object]]:
    """One entry per row and density: mean and spread of each metric over seeds, and the gain over supervised.

    `<metric>_mean` and `<metric>_std` (sample standard deviation, None of one seed). `<metric>_gain_pct` is the mean
    over seeds of 100 (supervised - row) / supervised, each against the supervised student of the same density and seed,
    with its standard deviation over seeds in `<metric>_gain_std`; positive is better for every metric. `gain_pct` and
    `gain_std` are those of abs_rel.
    """
    rows = []
    baseline = {(o.lidar_share, o.seed): o.metrics for o in outcomes if o.row == BASELINE}
    for row, share in dict.fromkeys((o.row, o.lidar_share) for o in outcomes):
        found = [o for o in outcomes if (o.row, o.lidar_share) == (row, share)]
        entry: dict[str, object] = {"name": row, "lidar_share": share, "seeds": [o.seed for o in found]}
        for metric in found[0].metrics:
            values = [value for o in found if (value := o.metrics.get(metric)) is not None]
            if not values:
                continue
            entry |= _spread(metric, values)
            gains = [
                gain for o in found if (gain := _gain_pct(metric, o.metrics, baseline.get((share, o.seed)))) is not None
            ]
            if gains and row != BASELINE:
                mean, deviation = statistics.fmean(gains), statistics.stdev(gains) if len(gains) > 1 else None
                entry |= {f"{metric}_gain_pct": mean, f"{metric}_gain_std": deviation}
        entry |= {"gain_pct": entry.get("abs_rel_gain_pct"), "gain_std": entry.get("abs_rel_gain_std")}
        rows.append(entry)
    return rows


def _spread(metric: str, values: Sequence[float]) -> dict[str, object]:
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return {f"{metric}_mean": statistics.fmean(values), f"{metric}_std": deviation}


def _gain_pct(metric: str, ours: Metrics, theirs: Metrics | None) -> float | None:
    value, base = ours.get(metric), (theirs or {}).get(metric)
    if value is None or not base:
        return None
    return 100 * (value - base if metric in HIGHER_IS_BETTER else base - value) / base


COLUMNS: Mapping[str, str] = {
    "abs_rel": "AbsRel",
    "rmse": "RMSE m",
    "d1": "d1",
    "edges": "edges",
    "above_lidar": "above LiDAR",
    "at_lidar": "at LiDAR",
    "overlap": "overlap",
    "minutes": "min",
}
"""Metrics of the printed table, with their headings; AbsRel where nothing else is said."""


def ablation_table(rows: Sequence[Mapping[str, object]]) -> str:
    """The table for people: mean and spread over seeds, and gains in brackets."""
    shown = {metric: title for metric, title in COLUMNS.items() if any(f"{metric}_mean" in row for row in rows)}
    cells = []
    for row in rows:
        seeds, share = row["seeds"], row["lidar_share"]
        assert isinstance(seeds, list)
        cells.append((str(row["name"]), f"{share:.0%}", str(len(seeds)), *(_cell(row, metric) for metric in shown)))
    return markdown_table(Table("Ablation", "", ("row", "LiDAR", "seeds", *shown.values()), tuple(cells)))


def _cell(row: Mapping[str, object], metric: str) -> str:
    mean, deviation, gain, spread = (row.get(f"{metric}_{what}") for what in ("mean", "std", "gain_pct", "gain_std"))
    if not isinstance(mean, float):
        return "-"
    places = {"rmse": 2, "minutes": 1}.get(metric, 4)
    text = f"{mean:.{places}f}"
    if isinstance(deviation, float) and metric != "minutes":
        text += f" ±{deviation:.{places}f}"
    if not isinstance(gain, float) or metric == "minutes":
        return text
    return text + (f" ({gain:+.1f} ±{spread:.1f} %)" if isinstance(spread, float) else f" ({gain:+.1f} %)")
