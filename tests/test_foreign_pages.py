"""Pages on frameworks that are no dependencies: run where these are, and else held to our names.

Their figures are written by ``benchmarks/recipes.py``, with a folder that has the frameworks on
PYTHONPATH.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from comparing import benchmark
from test_docs import FOREIGN, blocks, run

import upscale_opt as uo
from upscale_opt.solver.options import SolveOptions


def code(path: Path) -> str:
    """The page's Python, with the page's line numbers."""
    text = ""
    for line, language, block in blocks(path):
        if language == "python":
            text += "\n" * (line - 1 - text.count("\n")) + block
    return text


def checked(source: str) -> Iterator[tuple[int, str]]:
    """Each use of one of our names; and of what it makes, the attributes and arguments.

    Raises:
        AssertionError: naming the line of the first that does not exist.
    """
    tree = ast.parse(source)
    kinds: dict[str, Any] = {}
    made = {uo.prune: uo.Pruned, uo.PruningManager: uo.PruningManager}
    returned = {  # by functions of the page
        function.name: made.get(named(one.value.func, kinds))
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef)
        for one in function.body
        if isinstance(one, ast.Return) and isinstance(one.value, ast.Call)
    }
    for node in sorted(ast.walk(tree), key=lambda n: getattr(n, "lineno", 0)):
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call):
            kind = made.get(named(node.value.func, kinds)) or returned.get(
                ast.unparse(node.value.func)
            )
            for target in node.targets:
                if isinstance(target, ast.Name):
                    kinds.pop(target.id, None)
                    kinds.update({target.id: kind} if kind else {})
        if isinstance(node, ast.Attribute) and named(node, kinds) is not None:
            yield node.lineno, ast.unparse(node)
        if isinstance(node, ast.Call) and callable(named(node.func, kinds)):
            accepts(node, named(node.func, kinds))


def named(node: ast.expr, kinds: dict[str, Any]) -> Any:
    """What an expression means, if it is ours."""
    if isinstance(node, ast.Name):
        return uo if node.id == "uo" else kinds.get(node.id)
    if isinstance(node, ast.Call) and inspect.isclass(named(node.func, kinds)):
        return named(node.func, kinds)
    if not isinstance(node, ast.Attribute):
        return None
    owner = named(node.value, kinds)
    if owner is None:
        return None
    fields = getattr(owner, "__annotations__", {}) if inspect.isclass(owner) else {}
    known = hasattr(owner, node.attr) or node.attr in fields
    assert known, f"line {node.lineno}: {ast.unparse(node)} does not exist"
    return getattr(owner, node.attr, None) if owner is uo or inspect.isclass(owner) else None


def accepts(call: ast.Call, function: Any) -> None:
    """Assert that a function of ours has the arguments that it is given by name."""
    parameters = inspect.signature(function).parameters
    open_ended = any(one.kind is one.VAR_KEYWORD for one in parameters.values())
    known = {*parameters, *(SolveOptions.model_fields if open_ended else ())}
    for keyword in call.keywords:
        assert keyword.arg is None or keyword.arg in known, (
            f"line {call.lineno}: {ast.unparse(call.func)} has no argument {keyword.arg!r}"
        )


@pytest.mark.parametrize("path", FOREIGN, ids=lambda path: path.stem)
def test_what_they_use_of_ours_exists(path: Path) -> None:
    compile(code(path), str(path), "exec")
    uses = {use for _, use in checked(code(path))}
    assert {"uo.prune", "result.into"} <= uses


@pytest.mark.parametrize(
    "wrong",
    [
        "uo.prun(model)",
        "uo.prune(model, inputs, amonut=0.5)",
        "result = uo.prune(model, inputs)\nresult.onto(model)",
        "def narrower():\n    return uo.prune(model, x)\nresult = narrower()\nresult.onto(model)",
        "uo.load(model, path, inplace=True)",
        "uo.PruningManager(model).computed(inputs)",
    ],
)
def test_wrong_names_are_found(wrong: str) -> None:
    with pytest.raises(AssertionError, match="line"):
        list(checked(wrong))


@pytest.mark.parametrize("path", FOREIGN, ids=lambda path: path.stem)
def test_they_run_where_their_packages_are(
    path: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    recipes = benchmark("recipes")
    lacking = recipes.lacking(path.read_text(encoding="utf-8"))
    if lacking:
        pytest.skip(f"needs {', '.join(lacking)}; python benchmarks/recipes.py {path.name} runs it")
    monkeypatch.chdir(tmp_path)
    recipes.quieten()
    run(path, capsys)


def test_packages_that_lack_are_named() -> None:
    page = "import nothing_called_so\nfrom pathlib import Path\n"
    assert benchmark("recipes").lacking(page) == ["nothing_called_so"]
