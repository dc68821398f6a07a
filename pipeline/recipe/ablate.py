"""The section `ablate` of a recipe: which students an ablation compares."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

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
    "KL + VRKD + completion + photometric + bin relation": (
        "losses.kl=0.3",
        "losses.relation=1.0",
        "losses.completion=1.0",
        "losses.photometric=1.0",
        "losses.bin_relation=3.0",
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


@dataclass(frozen=True, kw_only=True)
class AblateSpec:
    """Which students `surround ablate` compares.

    Attributes:
        rows: overrides `section.key=value` by name of row; gains are against the row called supervised.
        seeds: of the order of frames, the augmentation and the random parts of the student.
        lidar_shares: shares of the LiDAR pixels that teach, see `train_student.lidar_share`.
        lidar_drives: numbers of training drives whose LiDAR teaches, spread evenly over all of them; each stands for a
            value of `data.lidar_drives`. Empty, the default: what the recipe says.
        measure: the split to measure students on, test or selection.
    """

    rows: dict[str, tuple[str, ...]] = field(default_factory=lambda: dict(ROWS))
    seeds: tuple[int, ...] = (0, 1, 2)
    lidar_shares: tuple[float, ...] = (1.0,)
    lidar_drives: tuple[int, ...] = ()
    measure: str = "test"

    def __post_init__(self) -> None:
        if BASELINE not in self.rows:
            raise ValueError(f"rows: expected one called {BASELINE!r}, with which the others are compared")
        if len({slug(name) for name in self.rows}) < len(self.rows) or not all(slug(name) for name in self.rows):
            raise ValueError("rows: their names must differ in letters or digits")
        for name, values in {"seeds": self.seeds, "lidar_shares": self.lidar_shares}.items():
            if not values or len(set(values)) < len(values):
                raise ValueError(f"{name}: expected at least one value and none twice, got {list(values)}")
        if len(set(self.lidar_drives)) < len(self.lidar_drives) or min(self.lidar_drives, default=1) < 1:
            raise ValueError(f"lidar_drives: expected 1 or more and none twice, got {list(self.lidar_drives)}")
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


def slug(name: str) -> str:
    """Turn the name of a row into part of a folder name."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
