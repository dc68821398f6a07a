"""The layout of a run folder; light enough for commands that load no model."""

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import RecipeError

if TYPE_CHECKING:
    from pipeline.recipe.config import Recipe


@dataclass(frozen=True)
class RunFolder:
    """A run folder, and where its files lie."""

    root: Path

    @property
    def recipe(self) -> Path:
        """The resolved recipe."""
        return self.root / "recipe.toml"

    @property
    def cache(self) -> Path:
        """The cache that stage one writes, unless the recipe names another location."""
        return self.root / "cache"

    @property
    def bins(self) -> Path:
        """The bins that fit-bins has fitted."""
        return self.root / "bins.json"

    @property
    def fit_partials(self) -> Path:
        """Frames that an unfinished fit-bins has already processed."""
        return self.root / "fit-bins"

    @property
    def slurm_logs(self) -> Path:
        """Output of the SLURM jobs of stage one."""
        return self.root / "slurm"

    @property
    def student(self) -> Path:
        """Checkpoints and log of stage two."""
        return self.root / "student"

    @property
    def motion(self) -> Path:
        """Fits of the teacher in training frames without LiDAR."""
        return self.root / "motion"

    @property
    def refined(self) -> Path:
        """Metres of training frames without LiDAR, and the network that made them."""
        return self.root / "refined"

    @property
    def eval(self) -> Path:
        """Report and pictures of stage three."""
        return self.root / "eval"

    @property
    def predictions(self) -> Path:
        """Depth maps of the test images, if the recipe saves them."""
        return self.eval / "predictions"

    @property
    def doctor(self) -> Path:
        """The picture that the doctor draws."""
        return self.root / "doctor"

    @property
    def ablate(self) -> Path:
        """Students of the ablation, and its table."""
        return self.root / "ablate"

    @property
    def zero_shot(self) -> Path:
        """The table of `surround zero-shot`."""
        return self.root / "zero_shot"

    @staticmethod
    def of_checkpoint(checkpoint: Path) -> "RunFolder":
        """The run that a checkpoint belongs to; outside of a run, the folder that holds it."""
        folder = checkpoint.absolute().parent
        run = RunFolder(folder.parent)
        return run if folder == run.student else RunFolder(folder)


def cache_location(recipe: "Recipe", folder: RunFolder) -> str:
    """Where the cache of a run lies: teacher_cache.location of the recipe, else RUN/cache."""
    return recipe.teacher_cache.location or str(folder.cache.absolute())


def find_cache(target: str, run: Path | None = None) -> str:
    """Find the cache of a run folder, a cache folder, an address or a recipe.

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
    from pipeline.recipe.config import built_in_recipes, load_recipe

    if folder.root.is_dir():
        return cache_location(load_recipe(str(folder.recipe)), folder)
    known = built_in_recipes()
    if target not in known and not folder.root.exists():
        raise RecipeError(
            f"expected a run folder, a cache folder, an address or a recipe, found nothing at {target}; the built-in"
            f" recipes are {', '.join(known)}"
        )
    recipe = load_recipe(target)
    return cache_location(recipe, RunFolder(run or Path("runs") / recipe.name))


def _recorded_location(folder: RunFolder) -> str:
    """Read teacher_cache.location from a recorded recipe, without heavy imports; empty for the usual place."""
    try:
        table = tomllib.loads(folder.recipe.read_text(encoding="utf-8"))
        return str(table["teacher_cache"].get("location", ""))
    except (OSError, ValueError, KeyError, AttributeError):
        return ""
