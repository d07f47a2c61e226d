"""``upscale-opt inspect``, and the examples at the end of every command's help."""

from __future__ import annotations

import os
import re
import shlex
import sys
from pathlib import Path

import pytest
import typer
from command_line import Output, call
from test_own_model import SHOP

import upscale_opt as uo
from upscale_opt import cli
from upscale_opt.cli.examples import EXAMPLES

RUN = (
    *("models", "inspect", "trace", "solve", "check", "explain", "removed", "report"),
    *("compare", "run"),
)
"""Examples that are quick, in an order in which each finds what it reads."""


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "own_shop.py").write_text(
        SHOP
        + """
class Running(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3)
        self.left = nn.Conv2d(8, 6, 1)
        self.right = nn.Conv2d(8, 6, 1)

    def forward(self, x):
        x = torch.relu(self.first(x))
        return (self.left(x) + self.right(x)).cummax(dim=-1).values
"""
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "own_shop", raising=False)
    return tmp_path


def test_it_says_what_could_go_and_what_stays(shop: Path, capsys: Output) -> None:
    options = ("--input", "2x3x9x9", "--no-measure", "--out", "graph.json")
    assert call("inspect", "own_shop:Running", *options) == 0
    printed = capsys.readouterr().out
    lines = [" ".join(line.split()) for line in printed.splitlines()]
    assert lines[0].startswith("own_shop:Running: 4 layers, 332 parameters, ")
    assert any(line.startswith("first conv 3x3 3 8 224") for line in lines)
    assert "8 first left, right" in lines
    assert "2 of 3 layers may lose input channels" in lines
    assert "1 may not: network input" in lines
    assert "cummax: aten.cummax is not understood" in lines
    assert "measured" not in printed
    shares = [float(share) for share in re.findall(r"([\d.]+) %$", printed, re.MULTILINE)]
    assert sum(shares) == pytest.approx(100, abs=0.3)
    assert uo.ChannelGraph.load(shop / "graph.json").parameters["left.weight"] == (6, 8, 1, 1)


def test_the_clock_is_read_where_it_is_wanted(shop: Path, capsys: Output) -> None:
    assert call("inspect", "own_shop:Net", "--input", "2x3x9x9", "--cost-model", "gpu") == 0
    printed = capsys.readouterr().out
    assert re.search(r"Time: [\d.]+ ms estimated; measured [\d.]+ ms", printed)
    assert "Everything is understood" in printed


def test_couplings_are_listed_when_all_are_asked_for(capsys: Output) -> None:
    name = "topology/dense_block"
    assert call("inspect", name, "--no-measure") == 0
    some = capsys.readouterr().out
    assert call("inspect", name, "--no-measure", "--all") == 0
    every = capsys.readouterr().out
    assert len(every.splitlines()) >= len(some.splitlines())
    assert "more; --all lists them" not in every


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("own_shop:Net",), "--input"),
        (("resnet18", "--cost-model", "nowhere.json"), "no such file"),
        (("no_such_network",), "no_such_network"),
        (("resnet18", "--weights", "nowhere.pt"), "nowhere.pt"),
    ],
    ids=["inputs", "prices", "name", "weights"],
)
def test_what_is_wrong_is_one_line(
    shop: Path, capsys: Output, options: tuple[str, ...], words: str
) -> None:
    assert call("inspect", *options) in (1, 2)
    said = capsys.readouterr().err
    assert words in said
    assert "Traceback" not in said


def names() -> list[str]:
    return sorted(info.callback.__name__ for info in cli.app.registered_commands if info.callback)


def test_every_command_has_an_example() -> None:
    assert sorted(EXAMPLES) == names()
    assert set(RUN) <= set(EXAMPLES)


@pytest.mark.parametrize("name", names())
def test_help_ends_with_an_example_that_is_understood(
    name: str, capsys: Output, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(tmp_path)
    assert call(name, "--help") == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert shown.endswith(f"For example: {EXAMPLES[name]}")
    program, command, *arguments = shlex.split(EXAMPLES[name])
    assert (program, command) == ("upscale-opt", name)
    _, *arguments = cli.spread_for([command, *arguments])
    parser = typer.main.get_command(cli.app)
    with parser.make_context("upscale-opt", [command]) as context:
        found = parser.get_command(context, command)  # type: ignore[attr-defined]
        found.make_context(name, arguments, parent=context).close()


def test_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Output) -> None:
    """One after the other, in one folder."""
    monkeypatch.chdir(tmp_path)
    for name in RUN:
        _, *arguments = shlex.split(EXAMPLES[name])
        assert call(*arguments) == 0, name
        assert capsys.readouterr().out, name
    assert os.path.getsize("report.html") > 10_000
