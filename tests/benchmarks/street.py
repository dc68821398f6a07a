"""What distillation gains on a real street where LiDAR is scarce: writes results/proof_street.json.

`PYTHONPATH=.:tests python tests/benchmarks/street.py PANDASET --run runs/street`, after the same with `--tune`; with
`--only` the rows go to RUN/proof_street.json. Each setting is a rig
folder of PandaSet sequence 002 in which the first 17 frames have what a cheaper car would record: few beams, or the
forward sensor alone, or LiDAR in few frames. The last 6 frames keep all returns of the 360-degree sensor and are what
is measured. A setting that is finished is not run again.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from benchmarks.proof import proof
from jaxtyping import Bool, Float

from data_cache.errors import SourceError
from data_cache.frames.rig import Frame, Rig, Sweep
from data_cache.sources.base import MECHANICAL, Source
from data_cache.sources.registry import open_source
from data_cache.sources.rig_folder.rig_json import RIG_FILE
from data_cache.sources.rig_folder.writing import export_rig
from pipeline.recipe.ablate import BASELINE, ROWS
from pipeline.recipe.provenance import surroundings

DRIVE = "002"
LIDAR_IN_EGO_M = (1.5, 0.0, 1.9)
"""Where the 360-degree sensor sits: there the elevations of its points fall into the sharpest lines."""
HALF_BEAM_DEG = 0.25
BEAMS_DEG = {1: (-2.0,), 4: (-8.0, -4.0, -2.0, 0.5), 16: tuple(np.linspace(-15, 5, 16))}
TERMS = ROWS["KL + VRKD + completion + photometric"]
WITH_BIN_RELATION = ROWS["KL + VRKD + completion + photometric + bin relation"]
LOCAL = "default terms, bin relation, local bins"
"""A row with a cache of its own: the same as the row before it, of a teacher that LiDAR corrects place by place."""
NO_LOSS = ("losses.relation=1e-9", "losses.without_lidar='student'")
"""A control: images without LiDAR are seen, which moves the batch statistics, and nothing is learnt from them."""
SEEDS = (0, 1, 2)
RATES = ("5e-4", "2e-3", "4e-3", "8e-3", "16e-3", "32e-3")
BEST = ("train_student.learning_rate=16e-3",)
TUNING = {
    BASELINE: (),  # 1e-3
    **{rate: (f"train_student.learning_rate={rate}",) for rate in RATES},
    "decay 0.1": ("train_student.weight_decay=0.1",),
    "no jitter": ("train_student.jitter=false",),
    "16e-3, decay 0.1": (*BEST, "train_student.weight_decay=0.1"),
    "16e-3, no jitter": (*BEST, "train_student.jitter=false"),
    "default": TERMS,
    **{f"default {rate}": (*TERMS, f"train_student.learning_rate={rate}") for rate in RATES[1:5]},
}
"""The four losses; what they are called is what they were then."""
FEW_FRAMES = {
    BASELINE: (),
    **{rate: (f"train_student.learning_rate={rate}",) for rate in RATES[2:]},
    **{f"default {rate}": (*WITH_BIN_RELATION, f"train_student.learning_rate={rate}") for rate in RATES[3:5]},
}
"""The five losses."""
RESULTS = Path(__file__).parent / "results"
SURROUND = Path(sys.executable).with_name("surround")


@dataclass(frozen=True)
class Setting:
    """LiDAR of the training frames.

    Attributes:
        name: of the row, and of the folder.
        beams: a key of BEAMS_DEG; 0 for all.
        lidar: sensor, one of LIDARS.
        lidar_frames: selectors of the training frames that have LiDAR; empty for all.
        train_frames: the first frames of the drive, which have the LiDAR of this setting.
        local_bins: also measure LOCAL, which needs LiDAR in every frame and a cache of its own.
        rate: learning rate of all rows: the supervised student's best in what is nearest among TUNED.
    """

    name: str
    beams: int = 0
    lidar: str = MECHANICAL
    lidar_frames: tuple[str, ...] = ()
    train_frames: int = 17
    local_bins: bool = False
    rate: str = "16e-3"

    @property
    def folder(self) -> str:
        """Settings that differ in `lidar_frames` alone read one folder."""
        return f"beams-{self.beams or 'all'}-{self.lidar}"


SETTINGS = (
    Setting("4 beams", beams=4, local_bins=True),
    Setting("1 beam", beams=1),
    Setting("forward sensor", lidar="forward", local_bins=True),
    Setting("16 beams", beams=16),
    Setting("all LiDAR", local_bins=True),
    Setting("frames 0 to 4", lidar_frames=("002[0:5]",)),
    Setting("frames 2, 8, 14", lidar_frames=("002[2:15:6]",), rate="8e-3"),
)
TUNED = (
    (Setting("4 beams", beams=4, train_frames=14), TUNING),
    (Setting("frames 0 to 4", lidar_frames=("002[0:5]",), train_frames=14), FEW_FRAMES),
    (Setting("frames 2, 8", lidar_frames=("002[2:9:6]",), train_frames=14), FEW_FRAMES),
)
"""What settings are chosen on, and between which: frames 14 to 16 are measured."""


def on_beams(
    points_m: Float[np.ndarray, "N 3"], lidar_from_points: Float[np.ndarray, "4 4"], beams_deg: Sequence[float]
) -> Bool[np.ndarray, "N"]:
    """Whether points lie within HALF_BEAM_DEG of an elevation in the frame of the LiDAR (z up)."""
    x, y, z = lidar_from_points[:3, :3] @ points_m.T + lidar_from_points[:3, 3:]
    elevation_deg = np.degrees(np.arctan2(z, np.hypot(x, y)))
    return (np.abs(elevation_deg[:, None] - np.asarray(beams_deg)) <= HALF_BEAM_DEG).any(1)


class CheaperCar:
    """A source whose frames to train on have the LiDAR of a setting."""

    def __init__(self, root: Path, setting: Setting):
        self._whole = open_source("pandaset", root)
        self._cheap = open_source("pandaset", root, lidar=setting.lidar)
        self._setting, self._ids = setting, frozenset(self._whole.drives[DRIVE][: setting.train_frames])
        self.name: str = self._whole.name
        self.rig: Rig = self._whole.rig
        self.drives = self._whole.drives
        self.splits = self._whole.splits

    def frame(self, frame_id: str) -> Frame:
        """The frame, its sweep thinned if it is one to train on."""
        if frame_id not in self._ids:
            return self._whole.frame(frame_id)
        frame = self._cheap.frame(frame_id)
        return replace(frame, load_sweep=lambda: self._thinned(frame)) if self._setting.beams else frame

    def _thinned(self, frame: Frame) -> Sweep:
        assert frame.load_sweep is not None
        assert frame.world_from_ego is not None
        sweep = frame.load_sweep()
        lidar_from_ego = np.eye(4)
        lidar_from_ego[:3, 3] = np.negative(LIDAR_IN_EGO_M)
        lidar_from_points = lidar_from_ego @ np.linalg.inv(frame.world_from_ego) @ sweep.world_from_lidar
        kept = on_beams(sweep.points_m, lidar_from_points, BEAMS_DEG[self._setting.beams])
        return replace(sweep, points_m=sweep.points_m[kept])


def local_bins(run: Path) -> tuple[str, str]:
    """The settings of `local` bins and of their cache."""
    return "bins.strategy='local'", f"teacher_cache.location={json.dumps(str(run / 'cache-local'))}"


def ablated(
    root: Path, setting: Setting, run: Path, rows: Mapping[str, Sequence[str]], overrides: Sequence[str]
) -> dict:
    """The table of an ablation on a setting's rig folder, run/rig; what is finished in `run` stays."""
    if not (run / "rig" / RIG_FILE).exists():
        source: Source = CheaperCar(root, setting)
        export_rig(source, source.drives[DRIVE], run / "rig")
    written = ", ".join(f'"{name}" = {json.dumps(list(terms))}' for name, terms in rows.items())
    settings = ["data.source='rig_folder'", f"ablate.rows={{{written}}}", *overrides]
    caches: list[Sequence[str]] = [(), *([local_bins(run)] if LOCAL in rows else [])]
    for verb, more in [*(("teacher-cache", cache) for cache in caches), ("ablate", ())]:
        words = [word for one in (*settings, *more) for word in ("--set", one)]
        command = [str(SURROUND), verb, "evidence_pandaset", "--data", str(run / "rig"), "--run", str(run), *words]
        subprocess.run(command, check=True)
    return json.loads((run / "ablate" / "table.json").read_text())


def proven(root: Path, setting: Setting, run: Path) -> list[dict]:
    """The rows of a setting, with what it is."""
    rows = {BASELINE: (), "default terms": TERMS, "default terms, bin relation": WITH_BIN_RELATION}
    if setting.lidar_frames:
        rows["no loss without LiDAR"] = NO_LOSS
    if setting.local_bins:
        rows[LOCAL] = (*WITH_BIN_RELATION, *local_bins((run / setting.folder).absolute()))
    own = [f"data.lidar_drives={json.dumps(setting.lidar_frames)}", f"ablate.seeds={list(SEEDS)}"]
    table = ablated(root, setting, run / setting.folder, rows, [*own, f"train_student.learning_rate={setting.rate}"])
    frames = {"lidar_frames": list(setting.lidar_frames)} if setting.lidar_frames else {}
    axis = {
        "setting": setting.name,
        "beams": setting.beams or "all",
        "lidar": setting.lidar,
        "rate": setting.rate,
        **frames,
    }
    return [without_dense_truth({"name": row["name"], **axis, **row}) for row in proof(table, "")["rows"]]


def tuned(root: Path, setting: Setting, run: Path, rows: Mapping[str, Sequence[str]]) -> list[dict]:
    """AbsRel of settings on the last three of the frames to train on, with all their returns: the others teach."""
    split = ['data.train=["002[:14]"]', 'data.test=["002[14:17]"]', "ablate.seeds=[0]"]
    lidar = f"data.lidar_drives={json.dumps(setting.lidar_frames)}"
    table = ablated(root, setting, run / f"tuning-{setting.folder}", rows, [*split, lidar])
    found = [row | {"setting": setting.name, "overrides": rows[row["name"]]} for row in proof(table, "")["rows"]]
    return [without_dense_truth(row) for row in found]


def without_dense_truth(row: Mapping[str, object]) -> dict[str, object]:
    """A street has none; an ablation then calls AbsRel at LiDAR returns by both names."""
    return {key: value for key, value in row.items() if not key.startswith("dense_")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pandaset", type=Path, help="folder that holds the sequences")
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--tune", action="store_true", help="choose a learning rate: writes results/street_tuning.json")
    names = [one.name for one in SETTINGS]
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="SETTING", help=f"of {names}")
    asked = parser.parse_args()
    if asked.tune and asked.only != names:
        parser.error("--tune chooses for all settings, so it takes no --only")
    try:
        open_source("pandaset", asked.pandaset)
    except SourceError as error:
        parser.error(str(error))
    rows: list[dict] = []
    for setting, choices in TUNED if asked.tune else ():
        rows += tuned(asked.pandaset, setting, asked.run, choices)
    for setting in (one for one in SETTINGS if one.name in asked.only and not asked.tune):
        rows += proven(asked.pandaset, setting, asked.run)
    here, every = surroundings(), set(asked.only) == set(names)
    only = [] if every else ["--only", *(f"'{name}'" for name in asked.only)]
    content = {
        "rows": rows,
        "measured_on": "frames 14 to 16"
        if asked.tune
        else "the last 6 of 23 frames, all returns of the 360-degree sensor",
        "command": " ".join(
            [
                "PYTHONPATH=.:tests python tests/benchmarks/street.py PANDASET --run RUN",
                *(["--tune"] if asked.tune else only),
            ]
        ),
        "commit": here["git_commit"],
        "machine": here["machine"],
        "date": here["date"],
    }
    path = (RESULTS if every else asked.run) / ("street_tuning.json" if asked.tune else "proof_street.json")
    path.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
