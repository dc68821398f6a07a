"""The layout as a test: which wing may import which, how large a wing and a module may grow."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FLOORS = {
    "": ["data_cache", "stages", "pipeline"],
    "data_cache": ["errors stop_signals", "files", "frames storage", "sources", "shards metres", "dataset"],
    "data_cache.frames": ["rig images", "geometry undistort", "views"],
    "data_cache.storage": ["claims store", "folder_store object_store", "locations"],
    "data_cache.sources": [
        "base parsing",
        "selectors synthetic ddad nuscenes pandaset recordings",
        "rig_folder",
        "registry",
    ],
    "data_cache.sources.recordings": [
        "containers settings",
        "decoding",
        "transforms",
        "indexing",
        "cameras",
        "choices",
        "pairing",
        "source",
        "decisions",
    ],
    "data_cache.shards": [
        "errors encodings",
        "identity records",
        "schema",
        "chunks receipts",
        "writer",
        "reader",
        "staging",
    ],
    "stages": [
        "compute targets",
        "teacher student",
        "caching losses inference uncertainty",
        "training evaluation checkup",
        "deploy",
        "teacher_cache train_student evaluate",
    ],
    "pipeline": ["errors viewers api", "weights", "recipe", "report", "release", "runs", "ablation doctor", "cli"],
}
"""Of each package: its wings and front modules, lowest floor first. One may import what stands on a lower floor.

`pipeline.api` stands low although users see it first: it imports nothing of the pipeline, and `pipeline.runs` uses it.
"""
ONE_IDEA = {
    *(
        "teacher_cache",
        "fit_bins",
        "train_student",
        "evaluate",
        "predict",
        "export",
        "ablate",
    ),  # a verb, and what it does
    *("cache", "cluster"),  # a verb or a section of a recipe, and what runs for it
    "spec",  # a section of a recipe, in the wing that uses it
    "errors",  # of a package or wing
    "base",  # what each data set, or each teacher, has to offer
    "source",  # a data set as frames
    "identity",  # of a cache: what it holds, and what a recipe asks for
}
"""Names that several modules share, because each is one idea on several floors."""
MODULES_PER_FOLDER = 12
LINES_PER_MODULE = 400

PACKAGES = FLOORS[""]
TESTS = sorted(path.relative_to(ROOT) for path in (ROOT / "tests").rglob("*.py"))
MODULES = sorted(path.relative_to(ROOT) for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def module_name(path: Path) -> str:
    return ".".join(path.with_suffix("").parts).removesuffix(".__init__")


NAMES = {module_name(path): path for path in MODULES}


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse((ROOT / path).read_text())


def imported(path: Path) -> Iterator[str]:
    """Modules that a module imports, at the top, inside functions, and for types alone."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module is not None
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield full if full in NAMES else node.module


ARROWS = {name: {other for other in imported(path) if other in NAMES} - {name} for name, path in NAMES.items()}


def part_of(module: str, package: str) -> str:
    """The wing or front module of a package to which a module belongs; empty if it lies elsewhere."""
    if package and not module.startswith(f"{package}."):
        return ""
    return module.removeprefix(f"{package}." if package else "").split(".")[0]


def circle(arrows: dict[str, set[str]]) -> list[str]:
    """A way along arrows that ends where it began; empty if there is none."""
    done: set[str] = set()

    def search(name: str, way: list[str]) -> list[str]:
        if name in way:
            return [*way[way.index(name) :], name]
        if name in done:
            return []
        for other in sorted(arrows.get(name, ())):
            if found := search(other, [*way, name]):
                return found
        done.add(name)
        return []

    return next((found for name in sorted(arrows) if (found := search(name, []))), [])


def public_definitions(body: list[ast.stmt], prefix: str = "") -> Iterator[tuple[str, ast.AST]]:
    """Functions and classes whose names do not start with an underscore, and the methods of such classes."""
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            yield prefix + node.name, node
            if isinstance(node, ast.ClassDef):
                yield from public_definitions(node.body, f"{node.name}.")


def defined(body: list[ast.stmt]) -> Iterator[str]:
    """Names that the statements of a module define, not those that it imports."""
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            yield from (part.id for target in targets for part in ast.walk(target) if isinstance(part, ast.Name))
        elif isinstance(node, ast.If | ast.Try):
            yield from defined([*node.body, *node.orelse])


def test_there_are_modules_to_look_at():
    assert {path.parts[0] for path in MODULES} == set(PACKAGES)
    assert Path("stages/student/model.py") in MODULES
    assert "stages.targets.relations" in ARROWS["stages.student.model"]


def test_a_circle_is_found_by_hand():
    assert circle({"a": {"b"}, "b": {"c"}, "c": set()}) == []
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]


@pytest.mark.parametrize("package", FLOORS, ids=lambda package: package or "packages")
def test_imports_go_down_the_floors(package):
    floor_of = {part: floor for floor, parts in enumerate(FLOORS[package]) for part in parts.split()}
    parts = {part_of(name, package) for name in NAMES if part_of(name, package)}
    assert parts == floor_of.keys(), f"{package}: the table of floors and the folder differ"
    upwards = [
        f"{name} imports {other}"
        for name, others in ARROWS.items()
        for other in others
        if (ours := part_of(name, package))
        and (theirs := part_of(other, package))
        and ours != theirs
        and floor_of[theirs] >= floor_of[ours]
    ]
    assert not upwards, f"{package or 'packages'}: imports on the same floor or upwards: {upwards}"


def test_a_folder_that_holds_wings_has_floors():
    """So that no two wings import each other: floors leave no way back up."""
    wings = {name for name, path in NAMES.items() if path.name == "__init__.py"}
    assert {name.rpartition(".")[0] for name in wings} <= FLOORS.keys()


def test_no_circle_of_files():
    assert not circle(ARROWS)


def test_folders_and_modules_stay_small():
    folders = {path.parent for path in MODULES}
    for folder in folders:
        count = sum(path.parent == folder and path.name != "__init__.py" for path in MODULES)
        assert count <= MODULES_PER_FOLDER, f"{folder} holds {count} modules; divide it by subject"
    for path in MODULES:
        lines = len((ROOT / path).read_text().splitlines())
        assert lines <= LINES_PER_MODULE, f"{path} has {lines} lines; divide it by subject"


def test_a_wing_says_what_it_holds_and_exports_nothing():
    for path in MODULES:
        if path.name == "__init__.py":
            body = tree(path).body
            assert len(body) == 1, f"{path}: expected a docstring and nothing else"
            assert ast.get_docstring(tree(path)), f"{path}: expected a docstring"


def test_no_module_hides_behind_a_wing_of_its_name():
    """Of `losses.py` beside `losses/`, Python would import the folder, and nobody the module."""
    assert [path for path in MODULES if (ROOT / path).with_suffix("").is_dir()] == []


def test_a_wing_names_the_file_to_read_first():
    for path in MODULES:
        if path.name == "__init__.py":
            text = ast.get_docstring(tree(path)) or ""
            first = re.search(r"Read `([a-z_/]+\.py)`", text)
            assert first, f"{path}: expected 'Read `FILE.py` first'"
            assert (ROOT / path.parent / first[1]).is_file(), f"{path}: there is no {first[1]}"


def test_a_name_is_imported_from_the_module_that_defines_it():
    names = {name: set(defined(tree(path).body)) for name, path in NAMES.items()}
    assert not [name for name in names if "__all__" in names[name]]
    for path in [*MODULES, *TESTS]:
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.ImportFrom) and node.module in NAMES:
                passed_on = [
                    alias.name
                    for alias in node.names
                    if f"{node.module}.{alias.name}" not in NAMES and alias.name not in names[node.module]
                ]
                assert not passed_on, f"{path}: {node.module} does not define {passed_on}"


def test_no_module_is_imported_by_a_text():
    """Nobody would see an import upwards in it."""
    for path in MODULES:
        called = {getattr(node, "attr", getattr(node, "id", "")) for node in ast.walk(tree(path))}
        assert not called & {"import_module", "__import__"}, path


def test_modules_of_one_name_are_one_idea():
    stems = [path.stem for path in MODULES if path.name != "__init__.py"]
    assert {stem for stem in stems if stems.count(stem) > 1} == ONE_IDEA


def test_names_do_not_repeat_their_folder():
    verbs = {"pipeline/ablation/ablate.py"}  # a verb, its module and its recipe section have one name
    for path in MODULES:
        words, folder = set(re.split("_", path.stem)), path.parent.name
        assert (path.stem != folder and not {folder, folder.removesuffix("s")} & words) or str(path) in verbs, path


def test_tests_stand_where_their_subject_stands():
    """tests/stages/losses/test_terms.py is about stages/losses/terms.py, or about the wing."""
    folders = {path.parent for path in MODULES}
    for path in (ROOT / "tests").rglob("test_*.py"):
        folder = path.parent.relative_to(ROOT / "tests")
        if folder.parts and folder.parts[0] not in ("torture", "support", "benchmarks"):
            assert folder in folders, f"{path.relative_to(ROOT)}: there is no folder {folder}"


def test_tests_of_a_package_need_none_above_it():
    for path in TESTS:
        if path.parts[1] in PACKAGES:
            above = PACKAGES[PACKAGES.index(path.parts[1]) + 1 :]
            assert not [name for name in imported(path) if name.split(".")[0] in above], f"{path} imports of {above}"
            if "pipeline" in above:
                ran = [
                    alias.name
                    for node in ast.walk(tree(path))
                    if isinstance(node, ast.ImportFrom) and node.module in ("support.surround", "support.commands")
                    for alias in node.names
                ]
                assert not ran, f"{path} runs the command ({ran}); such a test belongs to tests/pipeline"


def test_no_test_file_imports_another():
    """What several of them share is in tests/support."""
    for path in TESTS:
        shared = [name for name in imported(path) if re.search(r"(^|\.)(test_|bench_|conftest)", name)]
        assert not shared, f"{path} imports {shared}; put what it shares into tests/support"


def test_the_cache_can_be_read_without_torch():
    users = [name for name, path in NAMES.items() if name.startswith("data_cache") and imports_package(path, "torch")]
    assert users == ["data_cache.dataset"]
    importers = [name for name in NAMES if name.startswith("data_cache") and "data_cache.dataset" in ARROWS[name]]
    assert importers == []


def imports_package(path: Path, package: str) -> bool:
    return any(name.split(".")[0] == package for name in imported(path))


def test_only_the_pipeline_talks_to_the_command_line():
    users = {path.parent for path in MODULES if imports_package(path, "click")}
    assert users == {Path("pipeline/cli")}


def test_libraries_that_take_long_to_import_wait_until_something_needs_them():
    """What is imported at the top of a module is paid for by each command, and by each worker."""
    waiting = {"dask", "dask_jobqueue", "diffusers", "distributed", "matplotlib", "rerun", "transformers", "trimesh"}
    waiting |= {"onnx", "onnxruntime", "onnxscript", "openvino"}
    for path in MODULES:
        top = tree(path).body
        named = {alias.name for node in top if isinstance(node, ast.Import) for alias in node.names}
        named |= {node.module for node in top if isinstance(node, ast.ImportFrom) and node.module}
        early = {name for name in named if name.split(".")[0] in waiting or name == "torch.utils.tensorboard"}
        assert not early, f"{path} imports {early} at its top"


def test_nothing_imports_torchvision():
    assert [path for path in MODULES if imports_package(path, "torchvision")] == []


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_modules_and_what_they_offer_are_described(path):
    module = tree(path)
    assert ast.get_docstring(module), f"{path} has no docstring"
    undescribed = [name for name, node in public_definitions(module.body) if not ast.get_docstring(node)]
    assert not undescribed, f"{path}: no docstring on {undescribed}"
