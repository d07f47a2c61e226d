"""The rules between rooms, read from the imports, those inside of functions, too."""

from __future__ import annotations

import ast
import subprocess
import sys

import pytest
from house import ROOT, arrows, circles, imports, modules, public_names
from tiers import SLOW

FLOORS = (
    ("errors", "version", "shown", "disjoint_sets", "child_process"),
    ("runtime",),
    ("ir",),
    ("solver.problem",),
    ("solver.algorithms", "solver.network", "solver.brute_force"),
    ("solver.checking",),
    ("solver.selection",),
    ("solver",),
    ("models.instances", "models"),
    ("models.generated", "models.topologies"),
    ("models.catalogue",),
    ("tracing",),
    ("masking",),
    ("importance",),
    ("reconstruction",),
    ("materializing",),
    ("saving", "verifying"),
    ("measuring",),
    ("deploying",),
    ("in_runtimes",),
    ("pruning",),
    ("managers",),
    ("report", "rules"),
    ("experiments",),
    ("experiments.coverage", "experiments.bench", "experiments.study"),
    ("__init__",),
    ("service",),
    ("cli",),
)
"""A room imports rooms of the floors before its own, and of its own floor those left of it."""

PLACE = {room: at for at, room in enumerate(room for floor in FLOORS for room in floor)}
NO_TORCH = ("errors", "disjoint_sets", "child_process", "ir", "service")
FILES = modules()


def test_every_room_has_its_place() -> None:
    assert {room for arrow in arrows() for room in arrow} <= PLACE.keys()


@pytest.mark.parametrize("room", PLACE)
def test_rooms_import_what_stands_before_them(room: str) -> None:
    for (importing, imported), who in arrows().items():
        if importing == room:
            assert PLACE[imported] < PLACE[room], f"{', '.join(who)} must not import {imported}"


def test_there_are_no_circles() -> None:
    assert circles(set(arrows())) == []
    assert circles({("a", "b"), ("b", "c"), ("c", "a"), ("c", "d")}) == [["a", "b", "c"]]


def test_models_import_little() -> None:
    allowed = {"errors", "solver.problem"}
    for room, imported in arrows():
        if room.startswith("models"):
            assert imported in allowed or imported.startswith("models"), f"{room}: {imported}"


def test_documents_and_solvers_never_import_torch() -> None:
    for module, path in FILES.items():
        inner = module.removeprefix("upscale_opt.")
        if inner.split(".")[0] in ("solver", *NO_TORCH):
            tree = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            for node in tree:
                names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
                names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
                assert "torch" not in {name.split(".")[0] for name in names}, module


def test_nothing_shipped_imports_what_is_not() -> None:
    files = modules()
    left_out = ("solver.brute_force", "models.generated", "models.instances")
    for module, path in files.items():
        if not module.removeprefix("upscale_opt.").startswith(left_out):
            for name in imports(path, FILES):
                inner = name.removeprefix("upscale_opt.")
                assert not inner.startswith(left_out), f"{module} imports {name}"


VERBLESS = ("What", "Whether", "How", "Which", "Why", "Who", "Where", "When")


def string_statements(source: str) -> list[str]:
    """Docstrings, and the strings behind assignments that say what these are."""
    return [
        node.value.value
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    ]


def starts_verbless(text: str) -> bool:
    return text.split(maxsplit=1)[0].strip(",.:") in VERBLESS if text.strip() else False


@pytest.mark.parametrize("module", sorted(FILES))
def test_docstrings_start_with_a_noun_or_a_verb(module: str) -> None:
    source = FILES[module].read_text(encoding="utf-8")
    found = [text for text in string_statements(source) if starts_verbless(text)]
    assert not found, f"{module}: {found}"


def test_verbless_docstrings_are_found_wherever_they_stand() -> None:
    """Those of modules, classes, functions and methods, and those behind assignments."""
    source = '''"""What it is."""
N = 1
"""How many."""
class A:
    """Tell whether."""
    def f(self):
        """
        Whether it is."""
        self.x = 1
        """Which."""
        return "Why not"
'''
    texts = string_statements(source)
    assert len(texts) == 5
    assert [text.split()[0] for text in texts if starts_verbless(text)] == [
        "What", "How", "Whether", "Which."
    ]  # fmt: skip


def test_the_surface_is_small() -> None:
    names = public_names(ROOT)
    assert names == sorted(set(names))
    assert len([name for name in names if not name.endswith("Error")]) <= 27


LISTED = """
import sys, types
import upscale_opt as uo
rooms = {"errors", "importance", "measuring", "models", "report", "rules", "solver"}
def listed():
    return {name for name in dir(uo) if not name.startswith("__")}
assert "torch" not in sys.modules
before = listed()
assert before == {*uo.__all__, *rooms}, before ^ {*uo.__all__, *rooms}
assert "torch" not in sys.modules
for name in dir(uo):
    assert getattr(uo, name) is not None or name.startswith("__"), name
    if name in rooms:
        assert isinstance(getattr(uo, name), types.ModuleType), name
assert "torch" in sys.modules
assert listed() == before
for room in ("measuring", "rules", "solver"):
    module = getattr(uo, room)
    for name in module.__all__:
        assert not isinstance(getattr(module, name), types.ModuleType), name
"""


def test_what_is_listed_is_there_before_and_after_it_is_loaded() -> None:
    done = subprocess.run([sys.executable, "-c", LISTED], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_slow_tests_are_named_as_they_are() -> None:
    for name in SLOW:
        file, _, test = name.partition("::")
        path = ROOT / "tests" / file
        assert path.exists(), name
        assert not test or f"def {test}(" in path.read_text(encoding="utf-8"), name
