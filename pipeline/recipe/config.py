"""The recipe: one TOML file, read once into one tree of frozen dataclasses."""

import difflib
import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

import tomli_w

from data_cache.files import write_atomically
from data_cache.sources.base import LIDARS, MECHANICAL
from data_cache.sources.selectors import located, shown
from pipeline.errors import RecipeError
from pipeline.recipe.ablate import AblateSpec
from pipeline.recipe.cluster import ClusterSpec
from pipeline.weights.catalog import KNOWN
from stages.caching.spec import TeacherCacheSpec
from stages.evaluation.spec import EvaluateSpec
from stages.losses.spec import LossSpec
from stages.student.encoder import ENCODERS
from stages.student.spec import StudentSpec
from stages.targets.spec import BinSpec
from stages.training.spec import TrainStudentSpec

T = TypeVar("T")
READING = ("limit_scenes", "limit_frames", "lidar", "nearby_sweep_s")
PATHS = ("root", "masks")
SPLITS = ("train", "selection", "test")
SUFFIX = ".toml"


@dataclass(frozen=True, kw_only=True)
class DataSpec:
    """The section `data` of a recipe: which frames a run uses, and how they are read.

    Attributes:
        source: synthetic, synthetic_town, pandaset, nuscenes, ddad or rig_folder.
        root: data set folder; --data overrides it; empty if synthetic. This and the paths below are relative to the
            recipe file; paths of --set are relative to the current folder.
        version: which release under root (nuScenes); empty where there is only one.
        masks: folder of self-occlusion masks (DDAD); empty to look beside the data set.
        train, selection, test: selectors: a drive or split, or list:PATH, optionally sliced; see `select` in
            data_cache/sources/selectors.py.
        lidar_drives: selectors of the training frames whose LiDAR teaches; the others teach by cameras alone. Empty,
            the default: all of them.
        depth_range_m: LiDAR depths outside this range are not learnt from.
        limit_scenes, limit_frames: use only this many drives, and frames, from the beginning of each of train,
            selection and test; 0 means all. A trial run of a few minutes needs no other selectors.
        lidar: mechanical (360 degrees), forward or both. Only PandaSet has two LiDARs; the second sees farther, but
            only ahead.
        nearby_sweep_s: nuScenes keyframes without LiDAR take the nearest sweep of their scene that is at most this many
            seconds away. 0, the default, takes none: in the meantime objects have moved.
    """

    source: str
    root: str = ""
    version: str = ""
    masks: str = ""
    train: tuple[str, ...]
    selection: tuple[str, ...] = ()
    test: tuple[str, ...]
    lidar_drives: tuple[str, ...] = ()
    depth_range_m: tuple[float, float] = (0.1, 80.0)
    limit_scenes: int = 0
    limit_frames: int = 0
    lidar: str = MECHANICAL
    nearby_sweep_s: float = 0.0

    def __post_init__(self) -> None:
        near, far = self.depth_range_m
        if not 0 < near < far < math.inf:
            raise ValueError(f"depth_range_m: expected 0 < near < far, got [{near}, {far}]")
        if not self.train or not self.test:
            raise ValueError("train and test: expected at least one selector each")
        if min(self.limit_scenes, self.limit_frames) < 0:
            raise ValueError(
                f"limit_scenes, limit_frames: expected 0 or more, got {self.limit_scenes}, {self.limit_frames}"
            )
        if self.lidar not in LIDARS:
            raise ValueError(f"lidar: expected one of {', '.join(LIDARS)}, got {self.lidar!r}")
        if not 0 <= self.nearby_sweep_s < math.inf:
            raise ValueError(f"nearby_sweep_s: expected 0 or more seconds, got {self.nearby_sweep_s}")

    @property
    def reading(self) -> dict[str, object]:
        """The options of reading, by name; each of them changes what a cache holds."""
        return {name: getattr(self, name) for name in READING}

    @property
    def unusual_reading(self) -> dict[str, object]:
        """The options of reading that are not at their defaults."""
        return {name: value for name, value in self.reading.items() if value != getattr(DataSpec, name)}

    def named(self, selectors: tuple[str, ...]) -> str:
        """Name what selectors select, as a report does, with the limits that are set."""
        counts = {"scenes": self.limit_scenes, "frames": self.limit_frames}
        limits = [f"{count} {what}" for what, count in counts.items() if count]
        return ", ".join(map(shown, selectors)) + (f" (first {', '.join(limits)})" if limits else "")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything a run needs to know; each stage receives only the sections it needs."""

    name: str
    data: DataSpec
    teacher_cache: TeacherCacheSpec
    student: StudentSpec
    train_student: TrainStudentSpec
    bins: BinSpec = field(default_factory=BinSpec)
    losses: LossSpec = field(default_factory=LossSpec)
    eval: EvaluateSpec = field(default_factory=EvaluateSpec)
    cluster: ClusterSpec = field(default_factory=ClusterSpec)
    ablate: AblateSpec = field(default_factory=AblateSpec)


def built_in_recipes() -> dict[str, Path]:
    """The files of the recipes that come with the program, by name."""
    folder = Path(str(resources.files("pipeline"))) / "recipes"
    return {path.stem: path for path in sorted(folder.glob("*" + SUFFIX))}


def load_recipe(name_or_path: str, overrides: Sequence[str] = (), data: Path | None = None) -> Recipe:
    """Read a recipe, apply `section.key=value` overrides and the data folder.

    Args:
        name_or_path: a built-in name or a TOML file.
        overrides: TOML values; a bare word is a string.
        data: replaces data.root.

    Raises:
        RecipeError: if there is no such recipe, or anything in it is unknown or impossible.
    """
    known = built_in_recipes()
    path = known.get(name_or_path, Path(name_or_path))
    if not path.is_file():
        raise RecipeError(f"no recipe {name_or_path!r}: not a file, and the built-in ones are {', '.join(known)}")
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise RecipeError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path}: not valid TOML: {error}") from error
    recipe = parse_recipe(text, str(path), overrides, name=path.stem)
    said = {override.partition("=")[0].strip() for override in overrides}

    def folder(key: str) -> Path:
        return Path.cwd() if said & {"data", f"data.{key}"} else path.parent

    found: dict[str, Any] = {
        key: tuple(located(one, folder(key)) for one in getattr(recipe.data, key)) for key in SPLITS
    }
    found |= {key: str((folder(key) / value).resolve()) for key in PATHS if (value := getattr(recipe.data, key))}
    if data is not None:
        found["root"] = str(data.resolve())
    return replace(recipe, data=replace(recipe.data, **found))


def parse_recipe(text: str, where: str, overrides: Sequence[str] = (), name: str = "") -> Recipe:
    """Build a recipe from TOML text.

    Args:
        text: the TOML.
        where: file of the text, for error messages.
        overrides: `section.key=value`.
        name: of the recipe, if the text does not give one.

    Raises:
        RecipeError: if anything in it is unknown or impossible.
    """
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(f"{where}: not valid TOML: {error}") from error
    for override in overrides:
        _override(table, override)
    table.setdefault("name", name)
    recipe = parse(Recipe, table, Path(where).name)
    if recipe.student.pretrained and ENCODERS[recipe.student.encoder].weights not in KNOWN:
        raise RecipeError(
            f"{Path(where).name}[student]: no pretrained weights are known for {recipe.student.encoder};"
            ' set pretrained = false, or encoder = "mobilenet-v2"'
        )
    if recipe.bins.strategy == "local" and recipe.train_student.lidar_share < 1:
        raise RecipeError(
            f"{Path(where).name}[train_student]: lidar_share is {recipe.train_student.lidar_share:g}, but with"
            ' bins.strategy = "local" all returns have corrected the bins; set it to 1, or take another strategy'
        )
    return recipe


def recipe_toml(recipe: Recipe) -> str:
    """Write the resolved recipe as TOML; `load_recipe` reads it back equal."""
    return tomli_w.dumps(asdict(recipe))


def keep_recipe(recipe: Recipe, path: Path) -> None:
    """Write a recipe to a file, unless the file already holds the same."""
    text = recipe_toml(recipe)
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        write_atomically(path, text)


def parse(cls: type[T], table: Mapping[str, Any], where: str) -> T:
    """Build dataclass `cls` from a TOML table, recursing into nested dataclasses.

    Raises:
        RecipeError: naming the key, what was expected and the nearest known key.
    """
    known = {f.name for f in fields(cls)}  # type: ignore[arg-type]
    for key in table:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"it takes {', '.join(sorted(known))}"
            raise RecipeError(f"{where}: no key {key!r}; {hint}")
    hints = get_type_hints(cls)
    values = {key: _value(hints[key], value, f"{where}[{key}]") for key, value in table.items()}
    try:
        return cls(**values)
    except TypeError as error:
        missing = str(error).partition("argument")[2].lstrip("s: ")
        raise RecipeError(f"{where}: missing {missing}") from error
    except ValueError as error:
        raise RecipeError(f"{where}: {error}") from error


def _value(kind: Any, value: Any, where: str) -> Any:
    if is_dataclass(kind):
        if not isinstance(value, dict):
            raise RecipeError(f"{where}: expected a table, got {value!r}")
        return parse(kind, value, where)  # type: ignore[arg-type]
    if get_origin(kind) is tuple:
        return _tuple(get_args(kind), value, where)
    if get_origin(kind) is dict:
        if not isinstance(value, dict):
            raise RecipeError(f"{where}: expected a table, got {value!r}")
        return {key: _value(get_args(kind)[1], item, f"{where}[{key}]") for key, item in value.items()}
    if kind is float and type(value) is int:
        return float(value)
    # bool is an int to Python, but `steps = true` is a mistake.
    if type(value) is not kind:
        raise RecipeError(f"{where}: expected {_name(kind)}, got {value!r}")
    return value


def _tuple(kinds: tuple[Any, ...], value: Any, where: str) -> tuple[Any, ...]:
    if not isinstance(value, list):
        raise RecipeError(f"{where}: expected a list, got {value!r}")
    if kinds[-1] is not ... and len(value) != len(kinds):
        raise RecipeError(f"{where}: expected {len(kinds)} values, got {value!r}")
    each = [kinds[0]] * len(value) if kinds[-1] is ... else kinds
    return tuple(_value(kind, item, f"{where}[{i}]") for i, (kind, item) in enumerate(zip(each, value, strict=True)))


def _name(kind: Any) -> str:
    words = {str: "a string", int: "a whole number", float: "a number", bool: "true or false"}
    return words.get(kind, str(kind))


def _override(table: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    *sections, last = key.strip().split(".")
    if not equals or not last or not all(sections):
        raise RecipeError(f"--set {override!r}: expected section.key=value")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()
    for section in sections:
        table = table.setdefault(section, {})
        if not isinstance(table, dict):
            raise RecipeError(f"--set {override!r}: {section} is not a section")
    table[last] = value
