"""Where a run keeps its things; light enough for commands that load no model."""

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.recipe.config import Recipe


@dataclass(frozen=True)
class RunFolder:
    """Where a run keeps its things."""

    root: Path

    @property
    def recipe(self) -> Path:
        """The resolved recipe."""
        return self.root / "recipe.toml"

    @property
    def cache(self) -> Path:
        """Stage one."""
        return self.root / "cache"

    @property
    def bins(self) -> Path:
        """What fit-bins has fitted."""
        return self.root / "bins.json"

    @property
    def fit_partials(self) -> Path:
        """Frames that an unfinished fit-bins has looked at."""
        return self.root / "fit-bins"

    @property
    def slurm_logs(self) -> Path:
        """Output of the SLURM jobs of stage one."""
        return self.root / "slurm"

    @property
    def student(self) -> Path:
        """Stage two."""
        return self.root / "student"

    @property
    def eval(self) -> Path:
        """Stage three."""
        return self.root / "eval"

    @property
    def predictions(self) -> Path:
        """Depth maps of the test images, where the recipe says that they are kept."""
        return self.eval / "predictions"

    @property
    def doctor(self) -> Path:
        """What the doctor has drawn."""
        return self.root / "doctor"

    @property
    def ablate(self) -> Path:
        """Students of the ablation, and its table."""
        return self.root / "ablate"

    @property
    def zero_shot(self) -> Path:
        """Stage three on other data sets."""
        return self.root / "zero_shot"

    @staticmethod
    def of_checkpoint(checkpoint: Path) -> "RunFolder":
        """The run whose student this is; the folder that holds it where it lies in no run."""
        folder = checkpoint.absolute().parent
        run = RunFolder(folder.parent)
        return run if folder == run.student else RunFolder(folder)


def cache_location(recipe: "Recipe", folder: RunFolder) -> str:
    """Where the cache of a run lies: the recipe's own place for it, else RUN/cache."""
    return recipe.teacher_cache.location or str(folder.cache.absolute())


def find_cache(target: str, run: Path | None = None) -> str:
    """Location of the cache that a run or cache folder, an address or a recipe means.

    Raises:
        RecipeError: if it is none of these.
    """
    if "://" in target:
        return target
    folder = RunFolder(Path(target))
    if folder.recipe.is_file() and (recorded := _recorded_location(folder)):
        return recorded
    if folder.cache.is_dir():
        return str(folder.cache.absolute())
    if folder.root.is_dir() and not folder.recipe.is_file():
        return str(folder.root.absolute())
    from pipeline.recipe.config import load_recipe

    if folder.root.is_dir():
        return cache_location(load_recipe(str(folder.recipe)), folder)
    recipe = load_recipe(target)
    return cache_location(recipe, RunFolder(run or Path("runs") / recipe.name))


def _recorded_location(folder: RunFolder) -> str:
    """Where the recipe of a run has put its cache, empty for its usual place; nothing heavy is imported for it."""
    try:
        table = tomllib.loads(folder.recipe.read_text(encoding="utf-8"))
        return str(table["teacher_cache"].get("location", ""))
    except (OSError, ValueError, KeyError, AttributeError):
        return ""
