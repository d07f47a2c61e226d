"""The objective latency: gathers and windows at the prices of a cost model."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from cat_networks import cat_network, image
from comparing import EXACT, call, complaint, deviation
from sample_networks import random_masks
from torch import nn
from window_networks import X, dense, posed, stream

import upscale_opt as uo
from upscale_opt.errors import SchemaError, SolverError, UpscaleError
from upscale_opt.ir.cost_model import KINDS, CostModel, KernelCost
from upscale_opt.solver.brute_force import brute_force
from upscale_opt.solver.network.planning import lay_out_windows
from upscale_opt.solver.network.posing import pose
from upscale_opt.solver.network.prices import Pricing
from upscale_opt.solver.problem.instance import (
    cost,
    read_cost,
    satisfied,
    window_costs,
)
from upscale_opt.solver.progress import Progress


def model_of(form: Any = "contiguous", **prices: tuple[float, float, float]) -> CostModel:
    """A cost model: launch, per byte, per multiply-add; kinds that are not named cost nothing."""
    kernels = {
        kind: KernelCost(launch=p[0], ns_per_byte=p[1], ns_per_mac=p[2])
        for kind in KINDS
        for p in [prices.get(kind, (0, 0, 0))]
    }
    return CostModel(device="cpu", device_name="a test", memory_format=form, kernels=kernels)


CHEAP_WINDOWS = model_of(gather=(1000, 1, 0), conv=(0, 0, 1e-3), conv1x1=(0, 0, 1e-3))
DEAR_WINDOWS = model_of(gather=(1, 0.001, 0), conv=(0, 0, 1e3), conv1x1=(0, 0, 1e3))
FREE_GATHERS = model_of()


def checked(seed: int, make: Callable[[int], nn.Module], **options: Any) -> uo.Solution:
    """A solution that was checked, and whose export was run at several batches."""
    model, graph, masks = posed(seed, make)
    solution = uo.solve(graph, masks, objective="latency", **options)
    assert uo.Solution.from_json(solution.to_json()) == solution
    report = uo.check(solution, graph, masks)
    assert report.objective_value == solution.objective_value >= solution.lower_bound
    pruned = uo.materialize(model, solution)
    for x in (X, X[:1], torch.cat([X, X, X]), X.contiguous(memory_format=torch.channels_last)):
        assert deviation(call(model, x), call(pruned, x)) < EXACT
    return solution


@pytest.mark.parametrize("make", [stream, dense])
@pytest.mark.parametrize("form", ["contiguous", "channels_last"])
def test_lossless(make: Callable[[int], nn.Module], form: Any) -> None:
    cost_model = model_of(
        form,
        gather=(8500, 0.044, 0),
        copy=(100, 0.041, 0),
        conv=(0, 0.2, 0.018),
        conv1x1=(0, 0.1, 0.019),
        norm=(0, 0.04, 0),
        elementwise=(0, 0.01, 0),
    )
    for seed in (1, 2):
        for selection in ("arena", "tensor"):
            solution = checked(seed, make, selection=selection, cost_model=cost_model)
            assert solution.cost_model == cost_model
            assert bool(solution.arenas) == (selection == "arena" and make is dense)


def test_arenas_where_they_pay() -> None:
    """Dear copies speak for arenas, which write every tensor once; dear calls against them."""
    _, graph, masks = posed(1, dense)
    for copy, pays in {(0, 5.0, 0): True, (100_000, 0.0, 0): False}.items():
        cost_model = model_of("contiguous", gather=(10, 0.01, 0), copy=copy)
        chosen = checked(1, dense, cost_model=cost_model)
        assert bool(chosen.arenas) == pays
        pricing = Pricing(graph, cost_model)
        shared, apart = (
            pricing.of_plan(
                uo.solve(
                    graph, masks, objective="latency", selection=selection, cost_model=cost_model
                )
            )
            for selection in ("arena", "tensor")
        )
        assert (shared < 0.85 * apart) == pays
        assert pricing.of_plan(chosen) == (shared if pays else apart)


def test_moves_by_hand() -> None:
    """Where every kernel that moves data takes a nanosecond, moves are counted."""
    _, graph, masks = posed(1, dense)
    cost_model = model_of("contiguous", gather=(1, 0, 0), copy=(1, 0, 0))
    solution = uo.solve(
        graph, masks, objective="latency", selection="tensor", cost_model=cost_model
    )
    cats = ["cat", "cat_1", "cat_2", "cat_3"]
    gathers = [read.op for read in solution.reads if read.plan == "gather"]
    assert gathers == ["n2", "head"]
    assert Pricing(graph, cost_model).of_plan(solution) == len(cats + gathers)


def test_the_best_of_view_gather_and_window() -> None:
    """Every read costs what the cheapest way to serve it does, and is served that way."""
    _, graph, masks = posed(2, stream)
    seen = set()
    for cost_model in (CHEAP_WINDOWS, DEAR_WINDOWS, FREE_GATHERS):
        solution = checked(2, stream, cost_model=cost_model)
        problem = pose(graph, masks, "latency", selection="arena", cost_model=cost_model)
        instance = problem.formulation.instance
        assert solution.objective_value == cost(instance, solution.orders)
        plans = {(read.op, read.operand): read.plan for read in solution.reads}
        held = satisfied(instance, solution.orders)
        windows = window_costs(instance, solution.orders)
        for read, edge, window in zip(
            instance.reads, problem.formulation.reads, windows, strict=True
        ):
            gathered = read_cost(read, held)
            if window is not None and window < gathered:
                assert plans[edge] == "window"
            elif gathered:
                assert plans[edge] == "gather"
            seen.add(plans[edge])
    assert seen >= {"view", "window", "gather"}


def test_prices_decide() -> None:
    cheap = checked(2, stream, cost_model=CHEAP_WINDOWS)
    dear = checked(2, stream, cost_model=DEAR_WINDOWS)
    assert cheap.windows > 0 == cheap.gathers
    assert dear.gathers > 0 == dear.windows
    assert dear.extra_macs == 0 < cheap.extra_macs
    assert checked(2, stream, cost_model=FREE_GATHERS).objective_value == 0


@pytest.mark.parametrize("seed", range(3))
def test_beside_brute_force(seed: int) -> None:
    torch.manual_seed(seed)
    model = stream(seed, readers=4, width=6)
    graph = uo.trace(model, X)
    masks = uo.masks_of(model, graph)
    for cost_model in (CHEAP_WINDOWS, DEAR_WINDOWS, None):
        solution = uo.solve(graph, masks, objective="latency", cost_model=cost_model)
        problem = pose(graph, masks, "latency", selection="arena", cost_model=cost_model)
        least = brute_force(problem.formulation.instance)
        assert solution.lower_bound <= least <= solution.objective_value
        assert solution.status == "feasible" or solution.objective_value == least


def test_weights_are_factors_of_gathers() -> None:
    _, graph, masks = posed(2, stream)
    every = {read.op: 0 for read in uo.solve(graph, masks).reads}
    solution = checked(2, stream, weights=every)
    assert solution.objective_value == 0


def test_random_networks() -> None:
    windows = 0
    for seed in range(8):
        model = cat_network(seed, 5, dense=bool(seed % 2))
        graph = uo.trace(model, image())
        uo.apply_masks(model, graph, random_masks(graph, seed))
        masks = uo.masks_of(model, graph)
        chosen = random.Random(seed).choice([CHEAP_WINDOWS, DEAR_WINDOWS, None])
        solution = uo.solve(graph, masks, objective="latency", cost_model=chosen, time_limit=3)
        uo.check(solution, graph, masks)
        pruned = uo.materialize(model, solution)
        for x in (image(2), image(7, 1), image(2, last=True)):
            assert deviation(call(model, x), call(pruned, x)) < EXACT
        windows += solution.windows
    assert windows > 0


# What is refused.


@pytest.mark.parametrize("kind", ["gather", "copy", "conv", "conv1x1"])
def test_cost_models_that_lack_a_kind(kind: str) -> None:
    """Refused with the kind's name, or fine where nothing asks for it."""
    _, graph, masks = posed(2, stream)
    kernels = {name: price for name, price in CHEAP_WINDOWS.kernels.items() if name != kind}
    lacking = CHEAP_WINDOWS.model_copy(update={"kernels": kernels})
    message = complaint(
        SolverError, lambda: uo.solve(graph, masks, objective="latency", cost_model=lacking)
    )
    assert repr(kind) in message


def listed(data: dict[str, Any], plan: str) -> dict[str, Any]:
    found: dict[str, Any] = next(read for read in data["reads"] if read["plan"] == plan)
    return found


EDITS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "no cost model": lambda d: d.pop("cost_model"),
    "another cost model": lambda d: d.update(cost_model=json.loads(DEAR_WINDOWS.to_json())),
    "a cost model without kernels": lambda d: d["cost_model"].update(kernels={}),
    "a cost model without copies": lambda d: d["cost_model"]["kernels"].pop("copy"),
    "a negative price": lambda d: d["cost_model"]["kernels"]["gather"].update(ns_per_byte=-1),
    "an endless price": lambda d: d["cost_model"]["kernels"]["gather"].update(ns_per_byte=1e308),
    "a window called a gather": lambda d: listed(d, "window").update(plan="gather"),
    "a window called a view": lambda d: listed(d, "window").update(plan="view"),
    "more multiply-adds": lambda d: d.update(extra_macs=d["extra_macs"] + 1),
    "another objective": lambda d: d.update(objective="copied_channels"),
    "an unknown objective": lambda d: d.update(objective="beauty"),
    "cheaper": lambda d: d.update(objective_value=d["objective_value"] - 1),
}


@cache
def windowed() -> uo.Solution:
    return checked(2, stream, cost_model=CHEAP_WINDOWS)


@pytest.mark.parametrize("edit", EDITS)
def test_edits_are_refused_or_do_no_harm(edit: str) -> None:
    model, graph, masks = posed(2, stream)
    data = json.loads(windowed().to_json())
    EDITS[edit](data)
    try:
        solution = uo.Solution.from_json(json.dumps(data))
    except SchemaError:
        return
    with pytest.raises(UpscaleError):
        uo.check(solution, graph, masks)
    try:
        pruned = uo.materialize(model, solution)
    except UpscaleError:
        return
    assert deviation(call(model, X), call(pruned, X)) < EXACT


def test_a_window_that_would_pay_is_not_left_out() -> None:
    """Served by a gather where the price of a window is what the objective says: not the plan."""
    _, graph, masks = posed(2, stream)
    cheap = windowed()
    problem = pose(graph, masks, "latency", selection="arena", cost_model=CHEAP_WINDOWS)
    plan = lay_out_windows(graph, masks, problem, cheap.orders, {})
    false = cheap.model_copy(
        update={
            "reads": plan.reads,
            "tensors": plan.tensors,
            "parameters": plan.parameters,
            "extra_macs": plan.extra_macs,
        }
    )
    complaint(uo.VerificationError, lambda: uo.check(false, graph, masks))


@pytest.mark.parametrize("options", [{"objective": "latency"}, {"max_extra_macs": 0.3}])
@pytest.mark.parametrize("seed", range(4))
def test_progress_only_improves(seed: int, options: dict[str, Any]) -> None:
    """Also where several problems are solved for one answer: what is told holds for that."""
    _, graph, masks = posed(seed, dense)
    if "objective" in options:
        arenas = uo.solve(
            graph, masks, selection="arena", cost_model=CHEAP_WINDOWS, **options
        ).arenas
        assert arenas, "both selections are tried"
        options = {**options, "cost_model": CHEAP_WINDOWS}
    told: list[Progress] = []
    solution = uo.solve(graph, masks, progress=told.append, **options)
    assert {event.step for event in told} == {"solve"}
    values = [event.value for event in told if event.value is not None]
    assert len(values) == len(told)
    assert values == sorted(values, reverse=True)
    assert max(event.bound for event in told if event.bound is not None) <= min(
        *values, solution.objective_value
    )
    if "max_extra_macs" in options:
        assert values[-1] == solution.objective_value
