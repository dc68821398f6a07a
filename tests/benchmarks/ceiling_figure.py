"""Draws docs/teacher_ceiling.png from results/teacher_ceiling.json: `python tests/benchmarks/ceiling_figure.py`."""

import json
from pathlib import Path

from matplotlib.figure import Figure

HERE = Path(__file__).parent
AIMS = {"pandaset": 0.12, "synthetic": 0.06}
NAMES = {"pandaset": "PandaSet 002, teacher at 392 x 700", "synthetic": "synthetic test drives, teacher at 392 x 644"}
KINDS = {"points_abs_rel": ("held out: half of the pixels", "tab:blue"),
         "regions_abs_rel": ("held out: half of the 16 x 16 blocks", "tab:orange")}  # fmt: skip


def main() -> None:
    """Bars of AbsRel by fit, one panel for each data set, for the images as they are."""
    rows = json.loads((HERE / "results/teacher_ceiling.json").read_text())["rows"]
    figure = Figure(figsize=(9, 4.2), dpi=120, layout="constrained")
    for axes, (data, aim) in zip(figure.subplots(1, 2, sharey=True), AIMS.items(), strict=True):
        own = [row for row in rows if (row["data"], row["part"], row["flips"]) == (data, "test", False)]
        own.sort(key=lambda row: "LiDAR alone" in row["fit"])
        for offset, (kind, (label, colour)) in zip((-0.2, 0.2), KINDS.items(), strict=True):
            places = [i + offset for i in range(len(own))]
            bars = axes.barh(places, [row[kind] for row in own], 0.38, color=colour, label=label)
            axes.bar_label(bars, fmt="%.3f", fontsize=7, padding=2)
        axes.axvline(aim, color="0.4", linewidth=1, linestyle="--", label="aim")
        axes.set_yticks(range(len(own)), [row["fit"] for row in own], fontsize=8)
        axes.set_title(NAMES[data], fontsize=9)
        axes.set_xlabel("AbsRel at LiDAR returns that the fit has not seen", fontsize=8)
        axes.set_xlim(0, 1.15 * max(max(row[kind] for row in own) for kind in KINDS))
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].invert_yaxis()
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=8)
    figure.savefig(HERE.parents[1] / "docs/teacher_ceiling.png")


if __name__ == "__main__":
    main()
