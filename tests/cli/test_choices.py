"""``upscale-opt compare`` and ``explain`` on budgets: from JSON documents, without PyTorch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from command_line import Output, call
from synthetic_losses import synthetic_losses

import upscale_opt as uo
from upscale_opt.ir.budget import Budget
from upscale_opt.models import catalogue
from upscale_opt.solver.choosing import ChoiceComparison, choose
from upscale_opt.solver.selection.registry import SELECTORS

WITHOUT_TORCH = """
import sys
sys.modules["torch"] = None
from upscale_opt.cli.__main__ import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("choice")
    name = "topology/residual_stage"
    graph = uo.trace(catalogue.build(name), catalogue.example_inputs(name))
    losses = synthetic_losses(graph)
    choice = choose(graph, losses, Budget(macs=0.6), time_limit=2)
    for document, file in ((graph, "graph"), (losses, "losses"), (choice, "choice")):
        document.save(place / f"{file}.json")
    return place


def options(folder: Path) -> list[str]:
    return ["--graph", str(folder / "graph.json"), "--losses", str(folder / "losses.json")]


def test_solvers_side_by_side_on_a_budget(folder: Path, tmp_path: Path, capsys: Output) -> None:
    rest = ["--budget", '{"macs": 0.6}', "--time-limit", "1", "--out", str(tmp_path)]
    assert call("compare", *options(folder), *rest) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in (*SELECTORS, "macs", "lower bound"))
    found = ChoiceComparison.load(tmp_path / "compare.json")
    assert [row.solver for row in found.rows] == list(SELECTORS)
    assert (tmp_path / "compare.csv").read_text().count("\n") == 6


def test_the_budget_of_a_choice_for_one_solver(
    folder: Path, tmp_path: Path, capsys: Output
) -> None:
    budget = str(folder / "choice.json")
    rest = ["--budget", budget, "--solver", "uniform", "--time-limit", "1", "--out", str(tmp_path)]
    assert call("compare", *options(folder), *rest) == 0
    (row,) = ChoiceComparison.load(tmp_path / "compare.json").rows
    assert row.resources[0].share <= 0.6
    assert "joint" not in capsys.readouterr().out


def test_layers_of_a_choice_are_explained_without_torch(folder: Path, capsys: Output) -> None:
    assert call("explain", str(folder / "choice.json")) == 0
    printed = capsys.readouterr().out
    assert "Name a layer" in printed
    assert "Loss at other shares of the multiply-adds, about: 90%: " in printed
    layer = next(line.split()[0] for line in printed.splitlines() if "conv" in line)
    command = [sys.executable, "-c", WITHOUT_TORCH, "explain", str(folder / "choice.json"), layer]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert f"{layer} keeps" in done.stdout
    assert "one size" in done.stdout


@pytest.mark.parametrize(
    ("rest", "said"),
    [
        (["--budget", '{"macs": 1.5}'], "at most 1"),
        (["--budget", '{"mac": 0.5}'], "unknown field"),
        (["--budget", "[1"], "cannot read budget"),
        (["--budget", "{1"], "not valid JSON"),
        ([], "go together"),
        (["--budget", '{"macs": 0.5}', "--solver", "greedy", "cp-sat"], "does not choose masks"),
        (["--budget", '{"macs": 0.5}', "--solver", "joynt"], "joynt"),
    ],
)
def test_what_makes_no_sense_is_one_clear_error(
    folder: Path, rest: list[str], said: str, capsys: Output
) -> None:
    assert call("compare", *options(folder), *rest) != 0
    assert said in capsys.readouterr().err


def test_unknown_layers_are_named(folder: Path, capsys: Output) -> None:
    assert call("explain", str(folder / "choice.json"), "blokcs") != 0
    assert "blokcs" in capsys.readouterr().err
