"""The study's tables on figures made up, and all of it on a network that is not trained."""

from __future__ import annotations

import statistics
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import budget_cells
import budget_clock
import budget_methods
import pytest
import study
import torch
from budget_cells import Cell, Whole
from budget_clock import BY_UPSCALE, Clock, Timed
from budget_networks import Subject, Task
from budget_pictures import draw
from budget_tables import accuracy_in, ahead, in_time, smallest, table
from torch import nn

import upscale_opt as uo
from upscale_opt.experiments.study.data import Images
from upscale_opt.experiments.study.training import recipe_of
from upscale_opt.ir.masks import Masks


def _cell(method: str, share: float, seed: int, accuracy: float) -> Cell:
    return Cell(
        net="net",
        seed=seed,
        method=method,
        share=share,
        weighting="",
        accuracy=accuracy,
        macs=share,
        copied=0,
        choosing=1.0,
        refitting=1.0,
        masks=Masks(kept={}),
    )


def test_the_best_other_is_the_best_in_the_mean_and_paired_by_seed() -> None:
    known = {
        ("joint", 0.5, 0): 0.9,
        ("joint", 0.5, 1): 0.8,
        ("greedy", 0.5, 0): 0.95,
        ("greedy", 0.5, 1): 0.6,
        ("even", 0.5, 0): 0.8,
        ("even", 0.5, 1): 0.79,
    }
    found = ahead(known, 0.5, ["greedy", "even"])
    assert found is not None
    assert found[0] == "even"
    assert found[1] == pytest.approx([0.1, 0.01])
    assert ahead(known, 0.25, ["greedy"]) is None
    del known["even", 0.5, 1]  # which was not tried with all of joint's seeds any more
    found = ahead(known, 0.5, ["greedy", "even"])
    assert found is not None
    assert found[0] == "greedy"
    assert found[1] == pytest.approx([-0.05, 0.2])
    assert ahead(known, 0.5, ["even"]) is None


def test_accuracy_at_a_time_lies_on_straight_lines() -> None:
    points = [(0.5, 0.8), (0.3, 0.6), (1.0, 0.9)]
    assert accuracy_in(0.5, points) == 0.8
    assert accuracy_in(0.4, points) == pytest.approx(0.7)
    assert accuracy_in(0.75, points) == pytest.approx(0.85)
    assert accuracy_in(0.2, points) is None


def test_the_smallest_network_within_a_point() -> None:
    assert smallest(0.9, [(0.5, 0.895), (0.25, 0.85)], 0.01) == pytest.approx(
        0.25 + 0.25 * (0.89 - 0.85) / (0.895 - 0.85)
    )
    assert smallest(0.9, [(0.5, 0.895), (0.25, 0.891)], 0.01) == 0.25
    assert smallest(0.9, [(0.5, 0.85), (0.25, 0.9)], 0.01) is None  # by luck, and not before it


def test_others_are_compared_in_the_time_that_joint_takes() -> None:
    whole = [Whole(net="net", seed=0, accuracy=1.0, macs=100)]
    found = [_cell("joint", 0.5, 0, 0.9), _cell("uniform", 0.5, 0, 0.8)]
    clock = Clock(
        net="net",
        seed=0,
        runtime="eager",
        batch=1,
        unpruned=10.0,
        exports=(
            Timed(method="joint", share=0.5, milliseconds=6.0),
            Timed(method="uniform", share=0.5, milliseconds=4.0),
            Timed(method=BY_UPSCALE, share=0.5, milliseconds=7.0),
        ),
    )
    times, reached = in_time(whole, found, [clock])
    assert times == {0.5: pytest.approx(0.6)}
    assert reached["joint", 0.5, 0] == pytest.approx(0.9)
    assert reached["uniform", 0.5, 0] == pytest.approx(0.8 + 0.2 * 2 / 6)
    assert reached[BY_UPSCALE, 0.5, 0] is None  # even its smallest network takes longer


def test_a_table_says_what_was_measured() -> None:
    whole = [Whole(net="net", seed=seed, accuracy=0.99, macs=100) for seed in (0, 1)]
    values = {("joint", 0): 0.9, ("joint", 1): 0.8, ("even", 0): 0.7, ("even", 1): 0.7}
    found = [_cell(method, 0.5, seed, value) for (method, seed), value in values.items()]
    text = "\n".join(table(whole, found))
    assert f"| joint | 85.0 ± {100 * statistics.stdev([0.9, 0.8]):.1f} |" in text
    assert "| even | 70.0 ± 0.0 |" in text
    assert "- the best of the others: 15.0 ± 7.1 at 50% (even)" in text


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Subject:
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 4),
    ).eval()
    pixels = torch.randn(50, 1, 12, 12)  # a step of training
    with torch.no_grad():
        labels = model(pixels).argmax(1)

    def right(own: nn.Module) -> float:
        with torch.no_grad():
            return float((own(pixels).argmax(1) == labels).double().mean())

    one = Subject(
        model,
        uo.trace(model, pixels[:1]),
        [pixels[:16]],
        right,
        pixels[:1],
        training=(recipe_of("digits", "resnet", 0, 1), Images(pixels, labels)),
        batch=2,
    )
    for module in (budget_cells, budget_clock):
        monkeypatch.setattr(module, "subject", lambda task: one)
    monkeypatch.setattr(budget_clock, "_CLOCKED", 0.01)
    monkeypatch.setattr(budget_methods, "SECONDS", 0.5)
    return one


def test_all_of_it(small: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net, methods = "glyphs-resnet", ["joint", "uniform"]
    options = Namespace(
        method=methods,
        share=[0.5],
        runtime=["eager", "onnxruntime"],
        clocked=[0],
        tuned=[0],
        seeds=[0],
        kept=False,
    )
    results = study.results_of(net, [Task(net, 0, tmp_path)], options)
    assert {cell.method for cell in results.found} == set(methods)
    assert all(cell.macs <= 0.5 for cell in results.found)
    assert set(results.plain) == {(method, 0.5, 0) for method in methods}
    assert set(results.later) == {(method, 0.5, 0) for method in methods}
    for runtime in results.clocks:
        (clock,) = results.clocks[runtime]
        (timed,) = results.by_time[runtime]
        assert timed.method.startswith("joint, asked for time")
        assert set(clock.took()) == {(method, 0.5) for method in (*methods, timed.method)}
        assert all(share > 0 for share in clock.took().values())
    text = "\n".join(study.page([results], {net: "study/net.svg"}))
    assert f"### {net}, at equal time in onnxruntime" in text
    assert "| joint, asked for time there |" in text
    assert "![Accuracy against multiply-adds and time, glyphs-resnet](study/net.svg)" in text
    picture = draw(results.whole, results.found, results.clocks)
    assert picture.startswith(b"<?xml")

    def never(*args: Any) -> Sequence[Any]:
        raise AssertionError("measured twice")

    monkeypatch.setattr(budget_cells, "measured", never)
    monkeypatch.setattr(budget_clock, "_clocked", never)
    again = study.results_of(net, [Task(net, 0, tmp_path)], options)
    assert again.found == results.found
    assert again.clocks == results.clocks
    assert again.by_time == results.by_time
    options.kept = True
    assert study.results_of(net, [Task(net, 0, tmp_path)], options).later == results.later
    assert study.results_of(net, [Task(net, 1, tmp_path)], options).found == []
