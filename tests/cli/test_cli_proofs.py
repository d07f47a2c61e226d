"""``check`` and ``explain``: what anyone can do with a solution, without a solver or PyTorch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import Output, call

import upscale_opt as uo

NO_TORCH = (
    "import sys; sys.modules['torch'] = None; sys.modules['matplotlib'] = None; "
    "from upscale_opt.cli import main; main()"
)


@pytest.fixture(scope="module")
def solved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a ResNet-18's graph, masks and solution."""
    folder = tmp_path_factory.mktemp("solved")
    graph, masks = folder / "graph.json", folder / "masks.json"
    assert call("trace", "resnet18", "-o", graph, "--masks", masks, "--layers", "conv") == 0
    assert call("solve", graph, masks, "-o", folder / "solution.json") == 0
    return folder


def files(folder: Path) -> list[Path]:
    return [folder / name for name in ("graph.json", "masks.json", "solution.json")]


def test_check_says_what_is_proven(solved: Path, capsys: Output) -> None:
    assert call("check", *files(solved)) == 0
    printed = capsys.readouterr().out
    assert "the plan is sound, and loses nothing" in printed
    assert "copied channels: 256 is the optimum: proven by the conflicts alone" in printed


def test_check_finds_what_is_false(solved: Path, tmp_path: Path, capsys: Output) -> None:
    solution = json.loads((solved / "solution.json").read_text())
    solution["objective_value"] = solution["lower_bound"] = 255
    false = tmp_path / "solution.json"
    false.write_text(json.dumps(solution))
    assert call("check", solved / "graph.json", solved / "masks.json", false) == 1
    assert capsys.readouterr().err.splitlines()[-1] == (
        "error: the orders cost 256, not 255 as the solution says"
    )


def test_check_of_a_heuristic_claims_nothing(solved: Path, tmp_path: Path, capsys: Output) -> None:
    graph, masks, _ = files(solved)
    greedy = tmp_path / "greedy.json"
    assert call("solve", graph, masks, "-o", greedy, "--solver", "greedy") == 0
    assert call("check", graph, masks, greedy) == 0
    assert "how few could be reached is not claimed" in capsys.readouterr().out


def test_explain_every_gather_or_one(solved: Path, capsys: Output) -> None:
    solution = uo.Solution.load(solved / "solution.json")
    assert call("explain", solved / "solution.json") == 0
    everything = capsys.readouterr().out
    gathers = [read for read in solution.reads if read.plan == "gather"]
    assert everything.count("gathers") == len(gathers) > 1
    assert call("explain", solved / "solution.json", gathers[0].op) == 0
    one = capsys.readouterr().out
    assert one in everything
    assert "cannot be a view together with" in one


def test_explain_windows(solved: Path, tmp_path: Path, capsys: Output) -> None:
    out = tmp_path / "windows.json"
    graph, masks, _ = files(solved)
    assert call("solve", graph, masks, "-o", out, "--max-extra-macs", 0.5, "--time-limit", 3) == 0
    solution = uo.Solution.load(out)
    windows = [read for read in solution.reads if read.plan == "window"]
    assert windows
    capsys.readouterr()
    assert call("explain", out) == 0
    printed = capsys.readouterr().out
    explained = {e.read: e for e in uo.explain(solution)}
    kept = uo.Masks.load(masks).kept
    for read in windows:
        explanation = explained[f"{read.op}[{read.operand}]"]
        assert explanation.reason == "window"
        assert f"{explanation.read} reads a window of {read.tensor}" in printed
        assert f"reads {explanation.unwanted:,} channels more" in printed
        weight = read.op.replace("_", ".", 2) + ".weight"
        assert explanation.unwanted == len(set(read.channels) - set(kept[weight][1]))
    assert f"{solution.extra_macs:,} multiply-adds" in printed


def test_explain_names_the_gathers_if_asked_for_another(solved: Path, capsys: Output) -> None:
    assert call("explain", solved / "solution.json", "nonsense") == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: no read is called 'nonsense'; the gathers are: layer1_0_conv1")


def test_explain_where_nothing_is_copied(tmp_path: Path, capsys: Output) -> None:
    assert call("run", "topology/mlp", "-o", tmp_path) == 0
    capsys.readouterr()
    assert call("explain", tmp_path / "solution.json") == 0
    assert capsys.readouterr().out == "every read is a view: nothing is copied\n"


@pytest.mark.parametrize("command", ["check", "explain"])
def test_neither_needs_torch(solved: Path, command: str) -> None:
    given = files(solved) if command == "check" else files(solved)[2:]
    run = [sys.executable, "-c", NO_TORCH, command, *map(str, given)]
    done = subprocess.run(run, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout


@pytest.mark.parametrize("command", ["check", "explain"])
def test_missing_files_are_named(solved: Path, command: str, capsys: Output) -> None:
    missing = solved / "missing.json"
    given = [*files(solved)[:2], missing] if command == "check" else [missing]
    assert call(command, *given) == 1
    assert "missing.json" in capsys.readouterr().err.splitlines()[-1]


def test_weights_change_what_is_best(solved: Path, tmp_path: Path, capsys: Output) -> None:
    graph, masks, _ = files(solved)
    out = tmp_path / "weighted.json"
    gather = next(r for r in uo.Solution.load(solved / "solution.json").reads if r.plan == "gather")
    assert call("solve", graph, masks, "-o", out, "--weight", f"{gather.op}=1000") == 0
    weighted = uo.Solution.load(out)
    assert weighted.weights == {gather.op: 1000}
    plans = [read.plan for read in weighted.reads if read.op == gather.op and not read.optional]
    assert plans == ["view"]
    assert call("check", graph, masks, out) == 0


@pytest.mark.parametrize("weight", ["conv1", "=3", "conv1=-1", "conv1=half"])
def test_bad_weights_are_refused(solved: Path, tmp_path: Path, weight: str, capsys: Output) -> None:
    graph, masks, _ = files(solved)
    assert call("solve", graph, masks, "-o", tmp_path / "s.json", "--weight", weight) == 2
    assert "READ=FACTOR" in capsys.readouterr().err
    assert not (tmp_path / "s.json").exists()
