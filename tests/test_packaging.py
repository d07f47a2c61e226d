"""The package as others get it: the wheel, the examples in README and docs, and the doctests."""

from __future__ import annotations

import doctest
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hasty import make_haste

ROOT = Path(__file__).parent.parent
FOLDERS = {
    "upscale_opt": "upscale_opt",
    "solver": "upscale_opt/solver",
    "models": "upscale_opt/models",
}
"""Source folder → where its files lie in the installed package."""

NOT_SHIPPED = (
    "upscale_opt/models/generated",
    "upscale_opt/models/instances",
    "upscale_opt/solver/brute_force",
)
"""What only tests and benchmarks use; tests/test_house.py checks that nothing else imports it."""

JSON_PAGE = ROOT / "docs" / "json.md"
PROSE = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def sources() -> dict[str, Path]:
    """Every Python file by the path it shall have when installed."""
    found: dict[str, Path] = {}
    for folder, place in FOLDERS.items():
        for path in sorted((ROOT / folder).rglob("*.py")):
            found[f"{place}/{path.relative_to(ROOT / folder).as_posix()}"] = path
    return found


def modules() -> dict[str, Path]:
    """Every module by its import name."""
    found = {name.removesuffix(".py").replace("/", "."): path for name, path in sources().items()}
    return {
        name.removesuffix(".__init__"): path
        for name, path in found.items()
        if not name.endswith("__main__")
    }


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A source distribution built from a clean copy of the sources, without network."""
    copy = tmp_path_factory.mktemp("sources")
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    for folder in FOLDERS:
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / folder, copy / folder, ignore=ignored)
    target = tmp_path_factory.mktemp("sdist")
    build = "import sys, setuptools.build_meta as b; b.build_sdist(sys.argv[1])"
    run(sys.executable, "-c", build, str(target), folder=copy)
    (built,) = target.glob("*.tar.gz")
    return built


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from that."""
    target = tmp_path_factory.mktemp("wheel")
    pip("wheel", "--no-build-isolation", "--wheel-dir", str(target), str(sdist))
    (built,) = target.glob("*.whl")
    return built


def pip(command: str, *options: str) -> None:
    offline = ("--disable-pip-version-check", "--no-index", "--no-deps", "--quiet")
    run(sys.executable, "-m", "pip", command, *offline, *options)


def run(*command: str, folder: Path = Path("/"), **variables: str) -> str:
    environment = {**os.environ, **variables}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_wheel_holds_what_is_shipped_and_nothing_else(wheel: Path) -> None:
    folders = {str(Path(path).parent) for path in sources()}
    assert folders.issuperset(NOT_SHIPPED), "there is nothing to leave out"
    shipped = {path for path in sources() if not path.startswith(NOT_SHIPPED)}
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if not name.endswith("/")}
    metadata = {name for name in held if ".dist-info/" in name}
    parts = ("page.css", "page.js", "segment.js", "strips.js", "template.html")
    data = {"upscale_opt/py.typed", *(f"upscale_opt/report/{name}" for name in parts)}
    assert held - metadata == shipped | data
    assert {name.partition("/")[2] for name in metadata} >= {"licenses/LICENSE", "entry_points.txt"}


def test_every_folder_with_python_files_is_a_package() -> None:
    for path in sources().values():
        assert (path.parent / "__init__.py").is_file(), f"{path.parent} has no __init__.py"


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that the wheel is installed into, and nothing else."""
    folder = tmp_path_factory.mktemp("installed")
    pip("install", "--target", str(folder), str(wheel))
    return folder


ALONE = """
import importlib, pathlib, sys
# An editable install of the checkout would lend what the wheel lacks.
sys.meta_path[:] = [f for f in sys.meta_path if "__editable__" not in getattr(f, "__module__", "")]
"""


def run_alone(installed: Path, program: str, *arguments: object) -> str:
    """What a program prints that finds the installed wheel, and not this checkout."""
    command = (sys.executable, "-c", ALONE + program, *map(str, arguments))
    return run(*command, PYTHONPATH=str(installed))


def test_the_wheel_installs_as_one_package(installed: Path) -> None:
    """And all of it can be imported; what solves, without PyTorch."""
    tops = {path.name for path in installed.iterdir() if not path.name.endswith(".dist-info")}
    assert tops - {"bin"} == {"upscale_opt"}
    names = [name for name in modules() if not name.replace(".", "/").startswith(NOT_SHIPPED)]
    program = f"""
import upscale_opt, upscale_opt.solver, upscale_opt.cli
assert "torch" not in sys.modules
for name in {names}:
    file = importlib.import_module(name).__file__
    assert pathlib.Path(file).is_relative_to(sys.argv[1]), file
for name in {[name.replace("/", ".") for name in NOT_SHIPPED]}:
    try:
        importlib.import_module(name)
    except ModuleNotFoundError:
        continue
    raise AssertionError(f"{{name}} is there")
print("all imported")
"""
    assert run_alone(installed, program, installed) == "all imported\n"


def test_a_users_mypy_knows_our_types(installed: Path, tmp_path: Path) -> None:
    """A strict one, which finds what is wrong in a program of theirs, and nothing else."""
    program = """
import upscale_opt as uo

graph = uo.ChannelGraph.load("graph.json")
solution = uo.solve(graph, uo.Masks.load("masks.json"), time_limit=1.0)
left: int = solution.objective_value
budget = uo.Budget(latency=0.6, round_to=8)
wrong: str = solution.objective_value
"""
    (tmp_path / "user.py").write_text(program)
    run(sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "theirs"))
    (site,) = (tmp_path / "theirs" / "lib").glob("python3*/site-packages")
    (site / "ours.pth").write_text(f"{installed}\n")
    python = str(tmp_path / "theirs" / "bin" / "python")
    checks = ("--strict", "--ignore-missing-imports", "--python-executable", python)  # no PyTorch
    command = (sys.executable, "-m", "mypy", *checks, "user.py")
    environment = {**os.environ, "MYPYPATH": ""}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    lines = done.stdout.splitlines()
    assert lines[0].startswith("user.py:8: error: Incompatible types in assignment"), done.stdout
    assert lines[1:] == ["Found 1 error in 1 file (checked 1 source file)"]


def test_the_default_install_prunes_solves_and_reports(installed: Path, tmp_path: Path) -> None:
    """Prunes, solves once more from the files, and shows it, where no extra can be imported."""
    program = """
extras = (
    "dask distributed easyocr_en_models efficientnet_lite_pytorch fastapi highspy huey joblib "
    "matplotlib mlxtend onnx onnxruntime onnxscript prometheus_client redis scipy sklearn "
    "timm uvicorn"
)
sys.modules.update(dict.fromkeys(extras.split()))  # None: not to be found
import upscale_opt
from upscale_opt.cli import main

assert pathlib.Path(upscale_opt.__file__).is_relative_to(sys.argv[1]), upscale_opt.__file__
out = sys.argv[2]
for arguments in (
    "run topology/dense_block --amount 0.5 --side input --layers conv --out OUT",
    "solve OUT/graph.json OUT/masks.json --out OUT/again.json",
    "report OUT/again.json -o OUT/report.html",
):
    try:
        main([argument.replace("OUT", out) for argument in arguments.split()])
    except SystemExit as stopped:
        assert not stopped.code, arguments
"""
    printed = run_alone(installed, program, installed, tmp_path)
    assert "computes what the masked network computes" in " ".join(printed.split())
    assert json.loads((tmp_path / "again.json").read_text())["status"] == "optimal"
    assert (tmp_path / "report.html").stat().st_size > 1000


MINE = """
import torch
from torch import nn

batches = [torch.randn(16, 3, 16, 16) for _ in range(2)]

class Network(nn.Sequential):
    def __init__(self):
        super().__init__(
            nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU(), nn.Conv2d(16, 4, 3)
        )

def accuracy(network):
    return float(network(batches[0]).argmax(1).eq(0).float().mean())
"""
"""A reader's own network, test and inputs."""


def snippets() -> list[tuple[Path, int, str]]:
    """The Python examples in README and docs: file, first line, code."""
    found = []
    for path in PROSE:
        if path.name == "tutorial.md" or path.name.startswith("howto-"):
            continue  # test_docs.py runs these from top to bottom
        text = path.read_text(encoding="utf-8")
        for match in re.finditer(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
            found.append((path, text.count("\n", 0, match.start()) + 2, match[1]))
    return found


@pytest.mark.parametrize(
    ("path", "line", "code"), [pytest.param(*s, id=f"{s[0].name}:{s[1]}") for s in snippets()]
)
def test_snippets_run(
    path: Path, line: int, code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each stands for itself, as a reader would paste it; what is the reader's own is there."""
    monkeypatch.chdir(tmp_path)
    if "from mine import" in code:
        (tmp_path / "mine.py").write_text(MINE)
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.delitem(sys.modules, "mine", raising=False)
        mine = importlib.import_module("mine")
        torch.save(mine.Network().state_dict(), "best.pt")
    make_haste(monkeypatch)
    exec(compile("\n" * (line - 1) + code, str(path), "exec"), {"__name__": "snippet"})


def test_json_in_the_docs_is_what_is_written() -> None:
    """Every excerpt is a part of a document that the page's own Python example makes."""
    (code,) = (code for path, _, code in snippets() if path.name == "json.md")
    made: dict[str, Any] = {}
    exec(code.partition("graph.save")[0], made)
    written = [json.loads(made[name].to_json()) for name in ("graph", "masks", "solution")]
    excerpts = re.findall(r"^```json\n(.*?)^```", JSON_PAGE.read_text("utf-8"), re.M | re.S)
    assert excerpts
    for excerpt in excerpts:
        assert any(holds(document, json.loads(excerpt)) for document in written), excerpt


def holds(document: Any, excerpt: Any) -> bool:
    """Whether ``excerpt`` can be had from ``document`` by leaving out keys and list items."""
    if isinstance(excerpt, dict):
        return isinstance(document, dict) and all(
            key in document and holds(document[key], value) for key, value in excerpt.items()
        )
    if isinstance(excerpt, list):
        rest: Iterator[Any] = iter(document if isinstance(document, list) else ())
        return all(any(holds(item, part) for item in rest) for part in excerpt)
    return bool(document == excerpt)


@pytest.mark.parametrize("path", PROSE, ids=lambda path: path.name)
def test_links_lead_somewhere(path: Path) -> None:
    """Relative links name a file, and its heading where they name one."""
    for link in re.findall(r"\]\(([^)\s]+)\)", path.read_text(encoding="utf-8")):
        if "://" in link:
            continue
        name, _, heading = link.partition("#")
        target = path.parent / name if name else path
        assert target.exists(), link
        if heading:
            titles = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), re.MULTILINE)
            assert heading in {anchor(title) for title in titles}, link


def anchor(title: str) -> str:
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


@pytest.mark.parametrize(
    "name", [name for name, path in modules().items() if ">>> " in path.read_text("utf-8")]
)
def test_doctests(name: str) -> None:
    result = doctest.testmod(importlib.import_module(name))
    assert result.attempted > 0
    assert result.failed == 0
