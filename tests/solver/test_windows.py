"""Windows: what they cost, the search for orders with them, and their budget of multiply-adds."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from comparing import EXACT, assert_lossless, call, complaint, deviation
from hypothesis import given, settings
from hypothesis import strategies as st
from solver_outcomes import are_orders
from test_brute_force import all_orders
from torch import nn
from window_networks import X, dense, posed, stream

import upscale_opt as uo
from upscale_opt.errors import SchemaError, SolverError, UpscaleError
from upscale_opt.measuring.costs import count_costs
from upscale_opt.solver.algorithms.registry import solve_instance
from upscale_opt.solver.algorithms.window_search import relaxed
from upscale_opt.solver.brute_force import brute_force
from upscale_opt.solver.network.posing import pose
from upscale_opt.solver.network.windows import Windows
from upscale_opt.solver.problem.instance import (
    Demand,
    Instance,
    Orders,
    Piece,
    Read,
    Space,
    Window,
    cost,
)
from upscale_opt.solver.problem.proof import false_group, proven_bound


def drawn(rng: random.Random) -> Instance:
    """At most six channels and four reads; windows, pieces, ends of spaces, fixed ones."""
    sizes = [rng.randint(1, 6)] if rng.random() < 0.7 else [rng.randint(0, 3), rng.randint(1, 3)]
    starts = [0, *itertools.accumulate(sizes)]
    spaces = [
        Space(tuple(range(start, start + size)), rng.random() < 0.1)
        for start, size in zip(starts, sizes, strict=False)
    ]
    demands: list[Demand] = []

    def demand(*kinds: Any) -> int:
        space = rng.randrange(len(spaces))
        channels = spaces[space].channels
        least = 0 if rng.random() < 0.05 else min(1, len(channels))
        wanted = frozenset(rng.sample(channels, rng.randint(least, len(channels))))
        asked = Demand(space, rng.choice(kinds), wanted)
        if asked not in demands:
            demands.append(asked)
        return demands.index(asked)

    def view() -> tuple[int, ...] | None:
        some = [demand("interval", "prefix", "suffix") for _ in range(rng.randint(0, 2))]
        return None if rng.random() < 0.1 else tuple(some)

    reads = []
    for _ in range(rng.randint(1, 4)):
        read = Read(rng.randint(0, 8), view())
        if rng.random() < 0.7:
            wanted = demand("interval")
            there = spaces[demands[wanted].space].channels
            allowed = rng.sample(there, rng.randint(0, len(there)))
            kept = frozenset(there if rng.random() < 0.5 else allowed) | demands[wanted].channels
            read = replace(read, view=(wanted,), window=Window(rng.randint(1, 4), kept))
        if rng.random() < 0.25:
            pieces = tuple(Piece(rng.randint(0, 4), view()) for _ in range(rng.randint(1, 3)))
            read = replace(read, pieces=pieces, max_gathers=rng.randint(0, 2))
        reads.append(read)
    return Instance(tuple(spaces), tuple(demands), tuple(reads))


def instances() -> st.SearchStrategy[Instance]:
    return st.integers(0, 2**30).map(lambda seed: drawn(random.Random(seed)))


def text_of(demand: Demand, orders: Orders) -> str:
    """The channels of the demand's space in order: x where wanted."""
    return "".join("x" if c in demand.channels else "." for c in orders[demand.space])


def holds_by_text(demand: Demand, orders: Orders) -> bool:
    text, wanted = text_of(demand, orders), "x" * len(demand.channels)
    if demand.kind == "prefix":
        return text.startswith(wanted)
    return text.endswith(wanted) if demand.kind == "suffix" else wanted in text


def cost_by_text(instance: Instance, orders: Orders) -> int:
    """What orders cost, by another definition: the cheapest way to serve every read."""
    total = 0
    for read in instance.reads:
        ways = [read.weight]
        held = [holds_by_text(demand, orders) for demand in instance.demands]
        if read.view is not None and all(held[d] for d in read.view):
            ways.append(0)
        gathers = [p for p in read.pieces if p.view is None or not all(held[d] for d in p.view)]
        if read.pieces and len(gathers) <= read.max_gathers:
            ways.append(sum(piece.weight for piece in gathers))
        if read.window is not None and read.view:
            demand = instance.demands[read.view[0]]
            inner = text_of(demand, orders).strip(".")
            start = text_of(demand, orders).find("x")
            between = orders[demand.space][start : start + len(inner)] if inner else ()
            if set(between) <= read.window.allowed:
                ways.append(read.window.price * inner.count("."))
        total += min(ways)
    return total


@settings(max_examples=100, deadline=None)
@given(instances(), st.randoms(use_true_random=False))
def test_cost_by_another_definition(instance: Instance, rng: random.Random) -> None:
    orders = tuple(
        space.channels if space.fixed else tuple(rng.sample(space.channels, len(space.channels)))
        for space in instance.spaces
    )
    assert cost(instance, orders) == cost_by_text(instance, orders)


@settings(max_examples=50, deadline=None)
@given(instances())
def test_brute_force_knows_windows(instance: Instance) -> None:
    least = min(cost_by_text(instance, orders) for orders in all_orders(instance, 1000))
    assert brute_force(instance) == least


@settings(max_examples=30, deadline=None)
@given(instances())
def test_solvers_are_not_too_good_to_be_true(instance: Instance) -> None:
    """Never below the optimum, no bound above it, and proven where it is so small."""
    least = brute_force(instance)
    for solver in ("cp-sat", "greedy", "identity"):
        outcome = solve_instance(instance, solver, time_limit=20)
        assert are_orders(instance, outcome.orders)
        assert outcome.objective == cost(instance, outcome.orders) >= least
        assert outcome.lower_bound <= least
        if solver == "cp-sat":
            assert false_group(relaxed(instance), outcome.proof) is None
            assert proven_bound(relaxed(instance), outcome.proof) <= least
            if not any(read.pieces for read in instance.reads) and not any(
                space.fixed for space in instance.spaces
            ):
                assert outcome.optimal


def test_a_window_too_wide_is_a_gather() -> None:
    space = Space(tuple(range(5)), fixed=True)
    demands = (Demand(0, "interval", frozenset({0, 4})),)
    for allowed, price, expected in (
        ({0, 4, 1, 2, 3}, 1, 3),
        ({0, 4, 1, 2}, 1, 7),
        (range(5), 3, 7),
    ):
        read = Read(7, (0,), window=Window(price, frozenset(allowed)))
        instance = Instance((space,), demands, (read,))
        assert brute_force(instance) == cost(instance, (space.channels,)) == expected


# Networks.


def least_copied(graph: uo.ChannelGraph, masks: uo.Masks, budget: float, selection: Any) -> int:
    """The fewest channels copied under any orders with any windows within the budget."""
    problem = pose(graph, masks, selection=selection)
    windows = Windows(graph, problem.sets, problem.segments)
    instance = windows.offer(problem.formulation, lambda edge, chain: windows.multiply_adds(chain))
    allowed = int(budget * windows.total())
    best = None
    for orders in itertools.product(
        *(
            [space.channels] if space.fixed else itertools.permutations(space.channels)
            for space in instance.spaces
        )
    ):
        left = {0: 0}  # channels copied, by multiply-adds spent
        for read in instance.reads:
            alone = replace(instance, reads=(replace(read, window=None),))
            price = None
            if read.window is not None:
                cheap = replace(instance, reads=(replace(read, weight=10**9),))
                price = cost_by_text(cheap, orders)
            gathered = cost_by_text(alone, orders)
            reached: dict[int, int] = {}
            for spent, copied in left.items():
                ways = [(spent, copied + gathered)]
                if price is not None and spent + price <= allowed:
                    ways.append((spent + price, copied))
                for macs, value in ways:
                    reached[macs] = min(value, reached.get(macs, value))
            left = reached
        value = min(left.values())
        best = value if best is None else min(best, value)
    assert best is not None
    return best


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("share", [0.02, 0.06])
def test_budget_beside_brute_force(seed: int, share: float) -> None:
    def make(number: int) -> nn.Module:
        return stream(number, readers=4, width=5)

    torch.manual_seed(seed)
    model = make(seed)
    graph = uo.trace(model, X)
    masks = uo.masks_of(model, graph)
    solution = uo.solve(graph, masks, max_extra_macs=share)
    least = least_copied(graph, masks, share, "tensor")
    assert solution.lower_bound <= least <= solution.objective_value


@pytest.mark.parametrize("make", [stream, dense])
def test_budgets(make: Callable[[int], nn.Module]) -> None:
    """Never exceeded, really spent, and the more there is, the less is copied."""
    seen = 0
    for seed in (2, 4) if make is stream else (1, 3):
        model, graph, masks = posed(seed, make)
        before = uo.solve(graph, masks).objective_value
        for share in (0.02, 0.1, 1.0):
            solution = uo.solve(graph, masks, max_extra_macs=share)
            uo.check(solution, graph, masks)
            pruned = uo.materialize(model, solution)
            assert_lossless(model, pruned, X)
            copied = sum(read.copied for read in solution.reads)
            assert solution.objective_value == copied <= before
            assert solution.extra_macs <= share * solution.macs
            real = count_costs(pruned, X).multiply_adds
            assert real <= solution.macs + solution.extra_macs
            if make is stream:
                assert real == solution.macs + solution.extra_macs
            assert (solution.extra_macs > 0) == (solution.windows > 0)
            seen += solution.windows
            before = copied
    assert seen > 1


def test_no_more_is_spent_than_helps() -> None:
    _, graph, masks = posed(2, stream)
    small, large = (uo.solve(graph, masks, max_extra_macs=share) for share in (0.1, 100.0))
    assert small.objective_value == large.objective_value == 0
    assert large.extra_macs <= 2 * small.extra_macs


@pytest.mark.parametrize("selection", ["segment", "arena"])
def test_budgets_of_other_selections(selection: Any) -> None:
    network, graph, masks = posed(1, dense)
    solution = uo.solve(graph, masks, selection=selection, max_extra_macs=0.3)
    uo.check(solution, graph, masks)
    assert_lossless(network, uo.materialize(network, solution), X)


@pytest.mark.parametrize("share", [-0.1, float("nan"), float("inf")])
def test_impossible_budgets(share: float) -> None:
    _, graph, masks = posed(0, stream)
    message = complaint(SolverError, lambda: uo.solve(graph, masks, max_extra_macs=share))
    assert "max_extra_macs" in message


@pytest.mark.parametrize("objective", ["latency", "blocks"])
def test_objectives_without_budgets(objective: str) -> None:
    _, graph, masks = posed(0, stream)
    message = complaint(
        SolverError, lambda: uo.solve(graph, masks, objective=objective, max_extra_macs=0.1)
    )
    assert objective in message


# Solutions edited by hand.


@cache
def windowed() -> uo.Solution:
    _, graph, masks = posed(2, stream)
    solution = uo.solve(graph, masks, max_extra_macs=0.03)
    assert solution.windows
    assert solution.gathers
    return solution


def first(data: dict[str, Any], plan: str) -> dict[str, Any]:
    found: dict[str, Any] = next(read for read in data["reads"] if read["plan"] == plan)
    return found


EDITS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "a window of channels that do not lie side by side": lambda d: first(d, "gather").update(
        plan="window"
    ),
    "a window called a gather": lambda d: first(d, "window").update(plan="gather"),
    "a window called a view": lambda d: first(d, "window").update(plan="view"),
    "more multiply-adds": lambda d: d.update(extra_macs=d["extra_macs"] + 1),
    "no multiply-adds": lambda d: d.update(extra_macs=0),
    "a larger network": lambda d: d.update(macs=d["macs"] + 1),
    "a smaller budget": lambda d: d.update(max_extra_macs=1e-6),
    "no budget": lambda d: d.update(max_extra_macs=0.0),
    "an unknown plan": lambda d: first(d, "window").update(plan="door"),
    "a negative budget": lambda d: d.update(max_extra_macs=-1.0),
    "negative multiply-adds": lambda d: d.update(extra_macs=-1),
    "another model": lambda d: d.update(model="lake"),
    "a narrower window": lambda d: first(d, "window").update(
        channels=first(d, "window")["channels"][1:]
        if isinstance(first(d, "window")["channels"], list)
        else "0"
    ),
    "a read of nothing": lambda d: first(d, "window").update(tensor="nothing"),
}


@pytest.mark.parametrize("edit", EDITS)
def test_edits_are_refused_or_do_no_harm(edit: str) -> None:
    """By `check`, always; the export is refused, or lossless all the same."""
    model, graph, masks = posed(2, stream)
    data = json.loads(windowed().to_json())
    EDITS[edit](data)
    try:
        solution = uo.Solution.from_json(json.dumps(data))
    except SchemaError:
        return
    complaint(uo.VerificationError, lambda: uo.check(solution, graph, masks))
    try:
        pruned = uo.materialize(model, solution)
    except UpscaleError:
        return
    assert deviation(call(model, X), call(pruned, X)) < EXACT


def test_windows_are_told_of() -> None:
    solution = windowed()
    assert uo.Solution.from_json(solution.to_json()) == solution
    assert uo.explain(solution)
    kinds = [read.plan for read in solution.reads]
    assert kinds.count("window") == solution.windows
