"""Draws the error of students of a real street over the LiDAR that taught them, with and without distillation.

`python tests/benchmarks/draw_street.py [PROOF.json] [--out PICTURE.png]`; as it stands, from
tests/benchmarks/results/proof_street.json to docs/proof_street.png.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.recipe.ablate import BASELINE

ROOT = Path(__file__).parents[2]
SHOWN = {
    BASELINE: ("supervised", "#8a8a8a"),
    "default terms, bin relation": ("five losses (today's defaults)", "#1f5fa8"),
}
"""Rows of a proof: what they are called in the picture, and their colour."""


def pairs(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, tuple[float, float]]]:
    """By setting, the one with the largest supervised error first: mean and standard deviation of each row SHOWN."""
    found: dict[str, dict[str, tuple[float, float]]] = {}
    for row in rows:
        if row["name"] in SHOWN:
            error = row["lidar_abs_rel_mean"], row["lidar_abs_rel_std"] or 0.0
            found.setdefault(row["setting"], {})[row["name"]] = error
    whole = {setting: errors for setting, errors in found.items() if errors.keys() == SHOWN.keys()}
    return dict(sorted(whole.items(), key=lambda item: -item[1][BASELINE][0]))


def draw(rows: Sequence[Mapping[str, Any]], out: Path) -> None:
    """Write the picture."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    settings = pairs(rows)
    figure, axes = pyplot.subplots(figsize=(6.4, 0.8 + 0.42 * len(settings)), dpi=150)
    places = range(len(settings))
    for place, errors in zip(places, settings.values(), strict=True):
        axes.plot([error for error, _ in errors.values()], [place, place], color="#cccccc", linewidth=1.2, zorder=0)
    for name, (label, colour) in SHOWN.items():
        errors, spreads = zip(*(found[name] for found in settings.values()), strict=True)
        axes.errorbar(errors, places, xerr=spreads, fmt="o", color=colour, capsize=3, label=label)
    axes.set_yticks(places, list(settings))
    axes.invert_yaxis()
    axes.set_xlim(left=0)
    axes.set_xlabel("AbsRel at all LiDAR returns of frames that follow; spread over seeds")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9)
    figure.tight_layout()
    figure.savefig(out, metadata={"Software": None})
    pyplot.close(figure)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("proof", type=Path, nargs="?", default=ROOT / "tests/benchmarks/results/proof_street.json")
    parser.add_argument("--out", type=Path, default=ROOT / "docs/proof_street.png")
    asked = parser.parse_args()
    draw(json.loads(asked.proof.read_text())["rows"], asked.out)
