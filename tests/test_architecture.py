import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAY_IMPORT = {
    "data_cache": set(),
    "stages": {"data_cache"},
    "pipeline": {"data_cache", "stages"},
}
MODULES = sorted(path.relative_to(ROOT) for package in MAY_IMPORT for path in (ROOT / package).rglob("*.py"))


def imported(path: Path) -> Iterator[str]:
    """Top-level names of all that a module imports, at the top and inside functions."""
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module is not None
            yield node.module.split(".")[0]


def public_definitions(body: list[ast.stmt], prefix: str = "") -> Iterator[tuple[str, ast.AST]]:
    """Functions and classes whose names do not start with an underscore, and the methods of such classes."""
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            yield prefix + node.name, node
            if isinstance(node, ast.ClassDef):
                yield from public_definitions(node.body, f"{node.name}.")


def test_there_are_modules_to_look_at():
    assert {path.parts[0] for path in MODULES} == MAY_IMPORT.keys()
    assert Path("stages/student/model.py") in MODULES


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_packages_depend_downwards_only(package):
    for path in MODULES:
        if path.parts[0] == package:
            forbidden = set(imported(path)) & (MAY_IMPORT.keys() - MAY_IMPORT[package] - {package})
            assert not forbidden, f"{path} imports {forbidden}"


def test_the_cache_can_be_read_without_torch():
    users = [path for path in MODULES if path.parts[0] == "data_cache" and "torch" in imported(path)]
    assert users == [Path("data_cache/dataset.py")]
    importers = [
        path for path in MODULES if path.parts[0] == "data_cache" and "data_cache.dataset" in (ROOT / path).read_text()
    ]
    assert importers == []


def test_only_the_pipeline_talks_to_the_command_line():
    users = {path.parts[0] for path in MODULES if "click" in imported(path)}
    assert users == {"pipeline"}


def test_libraries_that_take_long_to_import_wait_until_something_needs_them():
    """What is imported at the top of a module is paid for by each command, and by each worker."""
    waiting = {"dask", "dask_jobqueue", "diffusers", "distributed", "matplotlib", "rerun", "transformers", "trimesh"}
    waiting |= {"onnx", "onnxruntime", "onnxscript", "openvino"}
    for path in MODULES:
        top = ast.parse((ROOT / path).read_text()).body
        named = {alias.name for node in top if isinstance(node, ast.Import) for alias in node.names}
        named |= {node.module for node in top if isinstance(node, ast.ImportFrom) and node.module}
        early = {name for name in named if name.split(".")[0] in waiting or name == "torch.utils.tensorboard"}
        assert not early, f"{path} imports {early} at its top"


def test_nothing_imports_torchvision():
    assert [path for path in MODULES if "torchvision" in imported(path)] == []


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_modules_and_what_they_offer_are_described(path):
    text = (ROOT / path).read_text()
    if not text:  # an empty __init__.py offers nothing
        return
    module = ast.parse(text)
    assert ast.get_docstring(module), f"{path} has no docstring"
    undescribed = [name for name, node in public_definitions(module.body) if not ast.get_docstring(node)]
    assert not undescribed, f"{path}: no docstring on {undescribed}"
