"""check: what is true passes, everything false is found."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from plain_prices import gathers_like_copies, without_windows
from sample_networks import Documents, documents_of

import upscale_opt as uo
from upscale_opt.errors import MaskError, VerificationError
from upscale_opt.ir.solution import Case, Conflict
from upscale_opt.solver.algorithms.registry import SOLVERS
from upscale_opt.solver.network.objectives import OBJECTIVES


@pytest.fixture(scope="module")
def documents() -> Documents:
    return documents_of("resnet18", 0.5)


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("selection", ["tensor", "segment"])
def test_every_objective(documents: Documents, objective: str, selection: Any) -> None:
    graph, masks = documents.graph, documents.masks
    prices = gathers_like_copies() if objective == "latency" else None
    solution = uo.solve(graph, masks, objective=objective, selection=selection, cost_model=prices)
    report = uo.check(uo.Solution.from_json(solution.to_json()), graph, masks)
    assert solution.status == "optimal"
    assert report.objective_value == solution.objective_value
    assert objective == "blocks" or (report.optimal and report.proven)
    assert report.proven_bound <= solution.lower_bound


def test_latency_without_windows_is_optimal(documents: Documents) -> None:
    graph, masks = documents.graph, documents.masks
    solution = uo.solve(graph, masks, objective="latency", cost_model=without_windows())
    report = uo.check(solution, graph, masks)
    assert solution.status == "optimal"
    assert report.objective_value == report.lower_bound == solution.objective_value > 0


@pytest.mark.parametrize("solver", SOLVERS)
def test_every_solver(documents: Documents, solver: str) -> None:
    solution = uo.solve(documents.graph, documents.masks, solver=solver, time_limit=2)
    report = uo.check(solution, documents.graph, documents.masks)
    assert report.proven_bound <= documents.solution.objective_value
    assert report.lower_bound == solution.lower_bound


def test_densenet_needs_cases() -> None:
    documents = documents_of("densenet121", 0.5)
    report = uo.check(documents.solution, documents.graph, documents.masks)
    assert report.optimal
    assert any(case.holds or case.fails for case in documents.solution.cases)
    assert "proven by the conflicts alone" in str(report)


def test_less_proof_rests_on_the_solvers_word(documents: Documents) -> None:
    bare = documents.solution.model_copy(update={"cases": (), "conflicts": ()})
    report = uo.check(bare, documents.graph, documents.masks)
    assert not report.proven
    assert not report.optimal
    assert report.proven_bound < report.lower_bound
    assert "rests on the solver's word" in str(report)


def swapped(solution: uo.Solution) -> dict[str, Any]:
    """Two channels of a space that is not fixed change places."""
    number = solution.demands[0].space
    order = list(solution.orders[number])
    order[0], order[-1] = order[-1], order[0]
    orders = [*solution.orders]
    orders[number] = tuple(order)
    return {"orders": tuple(orders)}


def missing_channel(solution: uo.Solution) -> dict[str, Any]:
    number = solution.demands[0].space
    orders = [*solution.orders]
    orders[number] = orders[number][1:]
    return {"orders": tuple(orders)}


def cheaper(solution: uo.Solution) -> dict[str, Any]:
    return {"objective_value": solution.objective_value - 1}


def gather_called_a_view(solution: uo.Solution) -> dict[str, Any]:
    reads = list(solution.reads)
    at = next(i for i, read in enumerate(reads) if read.plan == "gather")
    reads[at] = reads[at].model_copy(update={"plan": "view"})
    return {"reads": tuple(reads)}


def view_called_a_gather(solution: uo.Solution) -> dict[str, Any]:
    reads = list(solution.reads)
    at = next(i for i, read in enumerate(reads) if read.plan == "view")
    reads[at] = reads[at].model_copy(update={"plan": "gather"})
    return {"reads": tuple(reads)}


def false_conflict(solution: uo.Solution) -> dict[str, Any]:
    (first, *_) = solution.conflicts
    return {"conflicts": (*solution.conflicts, Conflict(demands=first.demands[:2], limit=1))}


def too_strong_a_limit(solution: uo.Solution) -> dict[str, Any]:
    (first, *rest) = solution.conflicts
    return {"conflicts": (first.model_copy(update={"limit": 1}), *rest)}


def unknown_demand(solution: uo.Solution) -> dict[str, Any]:
    return {"cases": (Case(holds=(10**6,)),)}


def unknown_conflict_demand(solution: uo.Solution) -> dict[str, Any]:
    return {"conflicts": (Conflict(demands=(0, 10**6), limit=1),)}


def foreign_demand(solution: uo.Solution) -> dict[str, Any]:
    (first, *rest) = solution.demands
    return {"demands": (first.model_copy(update={"channels": first.channels[:1]}), *rest)}


def bound_above_cost(solution: uo.Solution) -> dict[str, Any]:
    return {"lower_bound": solution.objective_value + 1}


def optimal_with_a_gap(solution: uo.Solution) -> dict[str, Any]:
    return {"lower_bound": solution.lower_bound - 1}


def other_graph(solution: uo.Solution) -> dict[str, Any]:
    return {"graph_fingerprint": "0" * 32}


TAMPERED: dict[Callable[[uo.Solution], dict[str, Any]], str] = {
    swapped: "cost|plan",
    missing_channel: "order of space",
    cheaper: "the orders cost",
    gather_called_a_view: "damaged",
    view_called_a_gather: "the plan",
    false_conflict: "exclude each other",
    too_strong_a_limit: "exclude each other",
    unknown_demand: "demand 1000000",
    unknown_conflict_demand: "demand 1000000",
    foreign_demand: "demand 0",
    bound_above_cost: "above",
    optimal_with_a_gap: "status",
    other_graph: "another graph",
}


@pytest.mark.parametrize("tamper", TAMPERED, ids=lambda tamper: tamper.__name__)
def test_false_statements_are_found(
    documents: Documents, tamper: Callable[[uo.Solution], dict[str, Any]]
) -> None:
    false = documents.solution.model_copy(update=tamper(documents.solution))
    with pytest.raises(VerificationError, match=TAMPERED[tamper]):
        uo.check(false, documents.graph, documents.masks)


def test_other_masks_are_found(documents: Documents) -> None:
    """A solution is for its masks: with more kept, it would lose something."""
    with pytest.raises(VerificationError):
        uo.check(documents.solution, documents.graph, uo.Masks(kept={}))


def test_prices_of_conflicts_that_do_not_exist_prove_nothing(documents: Documents) -> None:
    false = documents.solution.model_copy(update={"cases": (Case(prices={10**6: 10**9}),)})
    report = uo.check(false, documents.graph, documents.masks)
    assert report.proven_bound <= report.objective_value


def test_masks_must_fit(documents: Documents) -> None:
    masks = uo.Masks(kept={"nothing.weight": {0: (0,)}})
    with pytest.raises(MaskError, match="nothing"):
        uo.check(documents.solution, documents.graph, masks)
