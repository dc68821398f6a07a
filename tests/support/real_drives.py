"""Stage one on real frames, over drives of any length."""

import os
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from data_cache.frames.rig import Frame, Rig
from pipeline.recipe.config import Recipe, load_recipe
from pipeline.runs.stage_one import StageOne, open_stage_one


@dataclass
class Repeated:
    """A drive of any length out of the frames of a short one."""

    inner: object
    count: int
    name: str = "repeated"
    splits: tuple[()] = ()

    @property
    def rig(self) -> Rig:
        return self.inner.rig

    @property
    def drives(self) -> dict[str, tuple[str, ...]]:
        return {"d": tuple(f"d/{i}" for i in range(self.count))}

    def frame(self, frame_id: str) -> Frame:
        ids = next(iter(self.inner.drives.values()))
        return replace(self.inner.frame(ids[int(frame_id[2:]) % len(ids)]), id=frame_id)


def pandaset() -> Recipe:
    """The pandaset recipe on the real frames."""
    folder = os.environ.get("SURROUND_REAL_DATA")
    if not folder:
        pytest.skip("real frames: set SURROUND_REAL_DATA to their folder")
    return load_recipe("pandaset", ["teacher_cache.shard_frames=4"], Path(folder) / "pandaset")


def repeated(recipe: Recipe, count: int) -> StageOne:
    """Stage one of a recipe over `count` frames."""
    stage = open_stage_one(recipe)
    source = Repeated(stage.source, count)
    return replace(stage, source=source, frames=replace(stage.frames, train=source.drives["d"], selection=()))
