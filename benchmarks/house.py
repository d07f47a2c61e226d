"""The structure of the package, measured: rooms, arrows between them, circles, lines, public names.

python benchmarks/house.py                 # this checkout
python benchmarks/house.py --at OTHER      # another one, such as a worktree of an earlier commit

A room is a folder of modules, or a module that stands directly in ``upscale_opt/``. Imports are
read from the sources, those inside of functions and for type checkers, too.
"""

from __future__ import annotations

import argparse
import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = "upscale_opt"
PLACES = {PACKAGE: PACKAGE, "solver": f"{PACKAGE}.solver", "models": f"{PACKAGE}.models"}


def modules(root: Path = ROOT) -> dict[str, Path]:
    """Dotted name → file, of every module of the package."""
    found = {}
    for folder, name in PLACES.items():
        for path in sorted((root / folder).rglob("*.py")):
            parts = path.relative_to(root / folder).with_suffix("").parts
            found[".".join((name, *(part for part in parts if part != "__init__")))] = path
    return found


def room(module: str, files: dict[str, Path]) -> str:
    """The room of a module: its folder below the package, or itself."""
    path = files[module]
    name = module if path.name == "__init__.py" else module.rpartition(".")[0]
    inner = (module if name == PACKAGE else name).removeprefix(f"{PACKAGE}.")
    return "__init__" if inner == PACKAGE else inner


def imports(path: Path, files: dict[str, Path]) -> Iterator[str]:
    """The modules of the package that one of its files imports, wherever in the file."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == PACKAGE:
            assert node.module is not None
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in files else node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == PACKAGE)


@cache
def arrows(root: Path = ROOT) -> dict[tuple[str, str], set[str]]:
    """(room, room that it imports) → the modules that do. Not to be changed."""
    files = modules(root)
    found: dict[tuple[str, str], set[str]] = {}
    for module, path in files.items():
        here = room(module, files)
        for name in imports(path, files):
            there = room(name, files)
            if there != here:
                found.setdefault((here, there), set()).add(module)
    return found


def circles(pairs: set[tuple[str, str]]) -> list[list[str]]:
    """Groups of two or more rooms that import each other, maybe through others."""
    names = sorted({name for pair in pairs for name in pair})
    reach = {name: {b for a, b in pairs if a == name} for name in names}
    for middle in names:  # Warshall (1962)
        for name in names:
            if middle in reach[name]:
                reach[name] |= reach[middle]
    groups = {
        tuple(other for other in names if other in reach[name] and name in reach[other])
        for name in names
        if name in reach[name]
    }
    return sorted(list(group) for group in groups if len(group) > 1)


def public_names(root: Path = ROOT) -> list[str]:
    """The names in ``__all__`` of the package."""
    tree = ast.parse((root / PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return list(ast.literal_eval(node.value))
    return []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--at", type=Path, default=ROOT, help="the checkout to measure")
    root: Path = parser.parse_args().at
    files = modules(root)
    found = arrows(root)
    rooms = sorted({room(module, files) for module in files})
    knots = circles(set(found))
    lines = sum(len(path.read_text(encoding="utf-8").splitlines()) for path in files.values())
    print(f"rooms                {len(rooms):6}  {', '.join(rooms)}")
    print(f"arrows               {len(found):6}")
    print(f"rooms in circles     {sum(map(len, knots)):6}  {'; '.join(map(', '.join, knots))}")
    print(f"modules              {len(files):6}")
    print(f"lines of source      {lines:6}")
    print(f"names in __all__     {len(public_names(root)):6}")


if __name__ == "__main__":
    main()
