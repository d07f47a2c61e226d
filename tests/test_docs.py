"""The tutorial and the how-to pages run as they stand, and print what they show.

That single examples of the other pages run, and that links lead somewhere, is in
:mod:`test_packaging`.
"""

from __future__ import annotations

import doctest
import re
import shlex
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from comparing import benchmark
from hasty import make_haste
from house import modules

import upscale_opt as uo
from upscale_opt.cli import main
from upscale_opt.ir.base import Document

DOCS = Path(__file__).parent.parent / "docs"
FOREIGN = [DOCS / "howto-transformers.md", DOCS / "howto-yolo.md"]
"""Pages on frameworks that are no dependencies: :mod:`test_foreign_pages`."""

PAGES = [DOCS / "tutorial.md", *sorted({*DOCS.glob("howto-*.md")} - {*FOREIGN})]
"""What is read from top to bottom: later examples build on the earlier ones."""

ALIKE = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
"""How far what is printed may differ: blanks, and whatever the page leaves out by ``...``."""


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_pages_run(
    path: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Python in one namespace, commands of ours, and under each, in ``text``, what it prints."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    make_haste(monkeypatch)
    with uo.rules.local_rules():
        run(path, capsys)


def run(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Run a page; a block ``figures`` may have other numbers, of the same kind."""
    namespace: dict[str, Any] = {"__name__": "page"}
    printed = ""
    for line, language, text in blocks(path):
        if language == "python":
            exec(compile("\n" * (line - 1) + text, str(path), "exec"), namespace)
        elif language == "sh":
            for command in commands(text):
                with pytest.raises(SystemExit) as exited:
                    main(command)
                assert exited.value.code == 0, f"line {line}: {command}"
        elif language == "text":
            assert doctest.OutputChecker().check_output(text, printed, ALIKE), (
                f"line {line} shows\n{text}\nbut what is printed is\n{printed}"
            )
        elif language == "figures":
            assert shape_of(text) == shape_of(printed), (
                f"line {line}: run python benchmarks/recipes.py {path.name}; it prints\n{printed}"
            )
        printed = capsys.readouterr().out


def shape_of(text: str) -> str:
    """What stays of measured figures: all but numbers, blanks and rules.

    >>> shape_of("12.5 ms → 3,000 kB")
    '# ms → # kB'
    """
    unchanged = re.sub(r"(#) → #", r"\1", re.sub(r"\d[\d,.]*(e-\d+)?[kMG]?", "#", text))
    return " ".join(unchanged.replace("─", "").split())


def blocks(path: Path) -> Iterator[tuple[int, str, str]]:
    """The page's code blocks: the first line's number, the language and the text."""
    page = path.read_text(encoding="utf-8")
    for match in re.finditer(r"^```(\w*)\n(.*?)^```$", page, re.MULTILINE | re.DOTALL):
        yield page.count("\n", 0, match.start()) + 2, match[1], match[2]


def commands(text: str) -> Iterator[list[str]]:
    """What the lines of a shell block give to ``upscale-opt``; those without it are not run."""
    for line in text.replace("\\\n", " ").splitlines():
        program, *arguments = shlex.split(line, comments=True) or [""]
        if program == "upscale-opt":
            yield arguments


def test_what_is_shown_is_compared() -> None:
    """Every page has Python, and the tutorial has commands, and both have outputs."""
    for path in PAGES:
        languages = [language for _, language, _ in blocks(path)]
        assert "python" in languages, path.name
        assert {"text", "figures"} & set(languages), path.name
        assert set(languages) <= {"python", "text", "figures", "sh", "json"}, path.name
    assert any(list(commands(text)) for _, kind, text in blocks(PAGES[0]) if kind == "sh")


def test_the_index_lists_every_page() -> None:
    listed = re.findall(r"\]\(([\w-]+\.md)\)", (DOCS / "README.md").read_text(encoding="utf-8"))
    assert {path.name for path in DOCS.glob("*.md")} <= {"README.md", *listed}


def test_the_reference_is_what_the_models_say() -> None:
    written = (DOCS / "json-reference.md").read_text(encoding="utf-8")
    assert "\n".join(benchmark("json_reference").page()) + "\n" == written, (
        "run: python benchmarks/json_reference.py --out docs/json-reference.md"
    )


def test_every_document_is_in_the_reference() -> None:
    listed = {e.model for own in benchmark("json_reference").GROUPS.values() for e in own}
    found = set()
    for name, path in modules().items():
        if "(Document)" in path.read_text(encoding="utf-8"):
            known = vars(import_module(name)).values()
            own = (v for v in known if isinstance(v, type) and v.__module__ == name)
            found |= {v for v in own if issubclass(v, Document) and v.__name__[0] != "_"}
    assert found - {Document} <= listed


def test_every_field_has_a_meaning() -> None:
    assert benchmark("json_reference").lacking() == []


def test_figures_of_the_comparison_stand_in_the_pages_that_it_links() -> None:
    """These pages are written anew by their commands; then the comparison has to follow."""
    page = (DOCS / "comparison.md").read_text(encoding="utf-8")
    section = page.partition("## Figures")[2].partition("## ")[0]
    checked = 0
    for bullet in section.split("\n* ")[1:]:
        linked = "\n".join(
            (DOCS / name).read_text(encoding="utf-8")
            for name in re.findall(r"\]\(([\w-]+\.md)", bullet)
        )
        for figure in re.findall(r"(?<=[\s\[])\d[\d.,]*\d", bullet):
            assert re.search(rf"(?<![\d.]){re.escape(figure)}(?![\d.]*\d)", linked), figure
            checked += 1
    assert checked > 10


@pytest.mark.parametrize(
    "path", [DOCS.parent / "README.md", *sorted(DOCS.glob("*.md"))], ids=lambda path: path.stem
)
def test_files_that_pages_name_are_there(path: Path) -> None:
    """Folders and Python files in backticks; those without a folder anywhere in the sources."""
    root = DOCS.parent
    text = path.read_text(encoding="utf-8")
    for name in re.findall(r"`((?:solver|models|upscale_opt|tests|benchmarks)/[\w/.]*)`", text):
        assert (root / name).exists(), name
    for name in re.findall(r"`(\w+\.py)`", text):
        assert any(
            any((root / place).rglob(name)) for place in ("solver", "upscale_opt", "tests")
        ), name


def test_the_first_page_needs_no_glossary() -> None:
    """It begins with what it is good for and two commands; words of the mathematics come later."""
    text = (DOCS.parent / "README.md").read_text(encoding="utf-8")
    for word in ("bound", "window", "arena", "floor", "segment", "gather", "space"):
        assert not re.search(rf"\b{word}s?\b", text, re.IGNORECASE), word
    benefit, commands = (text.index(name) for name in ("<!-- benefit:begin -->", "make run "))
    assert benefit < commands < text.index("## ")
    table = text[benefit : text.index("<!-- benefit:end -->")]
    assert table.count("of its time |") >= 1
    assert "benchmarks/first_page.py" in table


def test_every_recipe_is_linked_from_the_first_page_or_the_index() -> None:
    index = (DOCS / "README.md").read_text(encoding="utf-8").partition("## Reference")[0]
    for path in DOCS.glob("howto-*.md"):
        assert f"({path.name})" in index, path.name
