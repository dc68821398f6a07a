"""The table of an ablation: mean and spread over seeds, gain over the supervised student."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from data_cache.files import count_text
from pipeline.recipe.ablate import BASELINE
from pipeline.report.markdown import Table, markdown_table

Metrics = Mapping[str, float | None]
HIGHER_IS_BETTER = ("d1",)
WITHOUT_GAIN = ("overlap_share",)
"""Metrics that are no error but say what another one is of; a gain in percent would mean nothing."""


@dataclass(frozen=True)
class Outcome:
    """One student, trained and measured.

    Attributes:
        row, lidar_share, seed: which one.
        metrics: by name; None where the data set cannot tell.
        lidar_drives: number of training drives whose LiDAR teaches; None for what the recipe says.
    """

    row: str
    lidar_share: float
    seed: int
    metrics: Metrics
    lidar_drives: int | None = None


def table_rows(outcomes: Sequence[Outcome]) -> list[dict[str, object]]:
    """One entry per row, LiDAR share and number of LiDAR drives: mean, spread over seeds, gain over supervised.

    `<metric>_mean` and `<metric>_std` (sample standard deviation, None of one seed). `<metric>_gain_pct` is the mean
    over seeds of 100 (supervised - row) / supervised, each against the supervised student of the same LiDAR and seed,
    with its standard deviation over seeds in `<metric>_gain_std`; positive is better for every metric. `gain_pct` and
    `gain_std` are those of abs_rel. A metric that some student of the entry lacks, because an older version measured
    it, is left out, and so is the gain of a metric WITHOUT_GAIN.
    """
    rows = []
    baseline = {(o.lidar_share, o.lidar_drives, o.seed): o.metrics for o in outcomes if o.row == BASELINE}
    for row, share, drives in dict.fromkeys((o.row, o.lidar_share, o.lidar_drives) for o in outcomes):
        found = [o for o in outcomes if (o.row, o.lidar_share, o.lidar_drives) == (row, share, drives)]
        entry: dict[str, object] = {"name": row, "lidar_share": share, "seeds": [o.seed for o in found]}
        if drives is not None:
            entry["lidar_drives"] = drives
        for metric in found[0].metrics:
            if not all(metric in o.metrics for o in found):
                continue
            values = [value for o in found if (value := o.metrics.get(metric)) is not None]
            if not values:
                continue
            entry |= _spread(metric, values)
            gains = [
                gain
                for o in found
                if (gain := _gain_pct(metric, o.metrics, baseline.get((share, drives, o.seed)))) is not None
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
    if value is None or not base or metric in WITHOUT_GAIN:
        return None
    return 100 * (value - base if metric in HIGHER_IS_BETTER else base - value) / base


COLUMNS: Mapping[str, str] = {
    "lidar_protocol": "LiDAR returns",
    "abs_rel": "AbsRel",
    "rmse": "RMSE m",
    "d1": "d1",
    "edges": "edges",
    "above_lidar": "above LiDAR",
    "at_lidar": "at LiDAR",
    "overlap": "overlap",
    "overlap_with_gross": "overlap, gross",
    "overlap_share": "compared",
    "minutes": "min",
}
"""Metrics of the printed table, with their headings.

`LiDAR returns` is AbsRel as the field measures it (the recipe's protocol); it is left out where there is no dense
truth, and `AbsRel` is the same. From `edges` to `overlap, gross` they are AbsRel, too. `overlap, gross` also counts
where a camera sees through the surface of its neighbour; `compared` is the share of points that `overlap` is of.
"""


def ablation_table(rows: Sequence[Mapping[str, object]], columns: Mapping[str, str] = COLUMNS) -> str:
    """Format the table for people: mean and spread over seeds, and gains in brackets."""
    shown = {metric: title for metric, title in columns.items() if any(f"{metric}_mean" in row for row in rows)}
    if all(row.get("lidar_protocol_mean") == row.get("abs_rel_mean") for row in rows):
        shown.pop("lidar_protocol", None)
    cells = []
    for row in rows:
        seeds, share, drives = row["seeds"], row["lidar_share"], row.get("lidar_drives")
        assert isinstance(seeds, list)
        lidar = f"{share:.0%}"
        if isinstance(drives, int):
            lidar = count_text(drives, "drive") + (f", {lidar}" if share != 1 else "")
        cells.append((str(row["name"]), lidar, str(len(seeds)), *(_cell_text(row, metric) for metric in shown)))
    return markdown_table(Table("Ablation", "", ("row", "LiDAR", "seeds", *shown.values()), tuple(cells)))


def _cell_text(row: Mapping[str, object], metric: str) -> str:
    mean, deviation, gain, spread = (row.get(f"{metric}_{what}") for what in ("mean", "std", "gain_pct", "gain_std"))
    if not isinstance(mean, float):
        return "-"
    places = {"rmse": 2, "overlap_share": 3, "minutes": 1}.get(metric, 4)
    text = f"{mean:.{places}f}"
    if isinstance(deviation, float) and metric != "minutes":
        text += f" ±{deviation:.{places}f}"
    if not isinstance(gain, float) or metric == "minutes":
        return text
    return text + (f" ({gain:+.1f} ±{spread:.1f} %)" if isinstance(spread, float) else f" ({gain:+.1f} %)")
