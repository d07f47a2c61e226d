"""``upscale-opt pareto``: copies against extra multiply-adds."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from command_line import Output, Refuses, call

import upscale_opt as uo
from upscale_opt.cli.front_picture import draw
from upscale_opt.cli.fronts import Front, FrontPoint, Fronts, tidied

NETWORK = "topology/four_consumers"
OPTIONS = ("--time-limit", 3)


def point(budget: float, value: int, bound: int, macs: int = 0) -> FrontPoint:
    return FrontPoint(
        budget=budget,
        objective_value=value,
        lower_bound=bound,
        extra_macs=macs,
        views=1,
        windows=macs > 0,
        gathers=value > 0,
        seconds=budget,
    )


def test_a_larger_budget_is_never_worse() -> None:
    points = tidied([point(0.2, 9, 1, 50), point(0, 10, 10), point(0.1, 7, 2, 30)])
    assert [p.budget for p in points] == [0, 0.1, 0.2]
    assert [p.objective_value for p in points] == [10, 7, 7]
    assert [p.extra_macs for p in points] == [0, 30, 30]
    assert [p.seconds for p in points] == [0, 0.1, 0.2]


def test_more_multiply_adds_for_nothing_are_not_taken() -> None:
    points = tidied([point(0.1, 5, 0, 30), point(0.2, 5, 0, 40)])
    assert [p.extra_macs for p in points] == [30, 30]


def test_a_bound_holds_for_smaller_budgets() -> None:
    points = tidied([point(0, 10, 3), point(0.1, 8, 5), point(0.2, 8, 4)])
    assert [p.lower_bound for p in points] == [5, 5, 4]


def test_front_of_a_network(tmp_path: Path, capsys: Output) -> None:
    out, plot = tmp_path / "sub/front.json", tmp_path / "front.svg"
    budgets = ("--budgets", 1, 0, 0.05, 0)
    assert call("pareto", *budgets, NETWORK, *OPTIONS, "-o", out, "--plot", plot) == 0
    printed = capsys.readouterr()
    fronts = Fronts.load(out)
    (front,) = fronts.networks
    assert (front.name, fronts.amount, fronts.selection) == (NETWORK, 0.5, "tensor")
    assert [p.budget for p in front.points] == [0, 0.05, 1]
    first = front.points[0]
    assert first.windows == first.extra_macs == 0
    assert first.objective_value > front.points[-1].objective_value
    assert front.points[-1].windows
    for p in front.points:
        assert p.lower_bound <= p.objective_value
        assert p.extra_macs <= p.budget * front.macs
        assert f"{100 * p.budget:g} %" in printed.out
        assert f"{p.extra_macs:,}" in printed.out
    values = [p.objective_value for p in front.points]
    assert values == sorted(values, reverse=True)
    assert "lower bound" in printed.out
    assert "solve topology/four_consumers" in printed.err
    text = plot.read_text()
    assert text.startswith("<?xml")
    assert NETWORK in text
    assert draw(fronts, "svg") == plot.read_bytes()


def test_bytes_and_arenas(tmp_path: Path, capsys: Output) -> None:
    out = tmp_path / "front.json"
    options = ("--objective", "copied_bytes", "--selection", "arena", "--side", "both")
    files = ("--budgets", 0, "-o", out)
    assert call("pareto", "topology/dense_block", *options, *OPTIONS, *files) == 0
    fronts = Fronts.load(out)
    assert (fronts.objective, fronts.selection, fronts.side) == ("copied_bytes", "arena", "both")
    assert len(fronts.networks[0].points) == 1
    assert "copied bytes" in capsys.readouterr().out


def test_interrupted_keeps_the_points_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Output
) -> None:
    def interrupted(*arguments: Any) -> Iterator[tuple[float, uo.Solution]]:
        for number, found in enumerate(really(*arguments)):
            if number == 1:
                raise KeyboardInterrupt
            yield found

    command = import_module("upscale_opt.cli.pareto")
    really = command.solutions
    monkeypatch.setattr(command, "solutions", interrupted)
    out = tmp_path / "front.json"
    assert call("pareto", NETWORK, "--budgets", 0, 0.1, *OPTIONS, "-o", out) == 130
    assert [p.budget for p in Fronts.load(out).networks[0].points] == [0]
    printed = capsys.readouterr()
    assert "Written" in printed.out
    assert printed.err.splitlines()[-1].startswith("error: interrupted")


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--budgets", "-0.1"], 2, ["--budgets", "share", "-0.1"]),
        (["--budgets", "inf"], 2, ["--budgets", "inf"]),
        (["--objective", "latency"], 2, ["--objective", "latency", "copied_bytes"]),
        (["--selection", "segment"], 2, ["--selection", "segment", "arena"]),
        (["--plot", "front.pdf"], 2, ["--plot", ".svg", "front.pdf"]),
        (["resnet81"], 1, ["resnet81", "did you mean"]),
    ],
    ids=str,
)
def test_bad_arguments(arguments: list[str], code: int, words: list[str], refuses: Refuses) -> None:
    refuses("pareto", NETWORK, *arguments, code=code, words=words)


def test_pictures_of_several_networks() -> None:
    points = (point(0, 10, 8), point(0.5, 0, 0, 40))
    networks = tuple(Front(name=f"n{i}", macs=100 * (i > 0), points=points) for i in range(4))
    fronts = Fronts(
        amount=0.5,
        side="input",
        layers="all",
        objective="copied_channels",
        selection="tensor",
        seed=0,
        time_limit=1,
        networks=networks,
    )
    assert Fronts.from_json(fronts.to_json()) == fronts
    assert draw(fronts, "png").startswith(b"\x89PNG")
