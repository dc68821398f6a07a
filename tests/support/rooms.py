"""Counts what a reader of the layout has to keep in mind: `python tests/support/rooms.py [FOLDER OF A CHECKOUT]`.

A room is a module or a folder that stands directly in a package. An arrow leads from a room to another one that one of
its modules imports, at the top or inside a function. `largest folder` counts the modules of one folder.
"""

import ast
import sys
from pathlib import Path


def rooms_and_arrows(root: Path, package: str) -> tuple[set[str], set[tuple[str, str]]]:
    """The rooms of a package, and the pairs (importing room, imported room)."""
    rooms = {path.stem for path in (root / package).iterdir() if path.suffix == ".py" or list(path.glob("*.py"))}
    rooms -= {"__init__"}
    arrows = set()
    for path in (root / package).rglob("*.py"):
        here = path.relative_to(root / package).parts[0].removesuffix(".py")
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module:
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            for name in names:
                parts = name.split(".")
                if parts[0] == package and len(parts) > 1 and parts[1] in rooms and here in rooms and parts[1] != here:
                    arrows.add((here, parts[1]))
    return rooms, arrows


if __name__ == "__main__":
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parents[2]
    print("package      rooms  arrows  modules  largest folder  longest module")
    for name in ("data_cache", "stages", "pipeline"):
        found, arrows = rooms_and_arrows(folder, name)
        modules = [path for path in (folder / name).rglob("*.py") if path.name != "__init__.py"]
        most = max(sum(path.parent == other.parent for other in modules) for path in modules)
        lines = {path: len(path.read_text().splitlines()) for path in modules}
        longest = max(lines, key=lambda path: lines[path])
        where = f"{lines[longest]} {longest.relative_to(folder)}"
        print(f"{name:<12} {len(found):>5}  {len(arrows):>6}  {len(modules):>7}  {most:>14}  {where}")
