"""Draws what distillation gains at LiDAR returns over the number of drives with LiDAR.

`python tests/benchmarks/draw_proof.py [PROOF.json] [--out PICTURE.png]`; as it stands, from
tests/benchmarks/results/proof_fleet.json to docs/proof_fleet.png.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.recipe.ablate import BASELINE

ROOT = Path(__file__).parents[2]
AIMS_PCT = {3: 12.0, 12: 6.0}
"""What was asked for, by number of drives with LiDAR."""
COLOURS = ("#1f5fa8", "#c8501e", "#2e8b57", "#7a4fa3", "#8a6d1d")


class Point(NamedTuple):
    """Gain in percent and its standard deviation over seeds, 0 of one seed."""

    drives: int
    gain_pct: float
    gain_std: float
    seeds: int


def lines(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Point]]:
    """The gain of each kind of student over the number of drives with LiDAR, which grows; LiDAR thinned is left out."""
    found: dict[str, list[Point]] = {}
    for row in rows:
        if row["name"] == BASELINE or row.get("lidar_drives") is None or row.get("lidar_share", 1.0) != 1.0:
            continue
        if row["gain_pct"] is not None:
            point = Point(row["lidar_drives"], row["gain_pct"], row["gain_std"] or 0.0, len(row["seeds"]))
            found.setdefault(row["name"], []).append(point)
    return {name: sorted(points) for name, points in found.items()}


def draw(rows: Sequence[Mapping[str, Any]], out: Path) -> None:
    """Write the picture."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    series = lines(rows)
    counts = sorted({point.drives for points in series.values() for point in points} | set(AIMS_PCT))
    figure, axes = pyplot.subplots(figsize=(6.4, 3.6), dpi=150)
    axes.axhline(0, color="#888888", linewidth=0.8)
    for (name, points), colour in zip(series.items(), COLOURS * len(series), strict=False):
        drives, gains, spreads, seeds = zip(*points, strict=True)
        label = f"{name}, {min(seeds)} seed{'' if max(seeds) == 1 else 's'}"
        label = label if min(seeds) == max(seeds) else f"{name}, {min(seeds)} to {max(seeds)} seeds"
        axes.errorbar(drives, gains, yerr=spreads, color=colour, marker="o", capsize=4, linewidth=1.6, label=label)
    aimed, wanted = zip(*AIMS_PCT.items(), strict=True)
    axes.scatter(aimed, wanted, marker="_", s=220, color="#444444", label="aim")
    axes.set_xscale("log", base=2)
    axes.set_xticks(counts, [str(count) for count in counts])
    axes.set_xlim(min(counts) / 1.4, max(counts) * 1.4)
    axes.minorticks_off()
    axes.set_xlabel("training drives with LiDAR")
    axes.set_ylabel("gain at LiDAR returns, %")
    axes.set_title("AbsRel against the supervised student of the same LiDAR and seed", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9)
    figure.tight_layout()
    figure.savefig(out, metadata={"Software": None})
    pyplot.close(figure)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("proof", type=Path, nargs="?", default=ROOT / "tests/benchmarks/results/proof_fleet.json")
    parser.add_argument("--out", type=Path, default=ROOT / "docs/proof_fleet.png")
    asked = parser.parse_args()
    draw(json.loads(asked.proof.read_text())["rows"], asked.out)
