"""``solve(graph, masks)``: from channel sets to a proven plan for the whole network."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

from upscale_opt.errors import SolverError
from upscale_opt.ir.graph import ChannelGraph
from upscale_opt.ir.masks import Masks
from upscale_opt.ir.solution import Case, Conflict, Demand, Solution, Times
from upscale_opt.solver.formulate import Formulation, edge_name, formulate
from upscale_opt.solver.instance import Instance, Progress, Proof, satisfied
from upscale_opt.solver.layout import lay_out
from upscale_opt.solver.objectives import OBJECTIVES
from upscale_opt.solver.options import check_options
from upscale_opt.solver.registry import SOLVERS, solve_instance
from upscale_opt.solver.segments import MODELS, Model, Segments, find_segments
from upscale_opt.solver.sets import ChannelSets, Edge


def solve(
    graph: ChannelGraph,
    masks: Masks,
    solver: str = "cp-sat",
    objective: str = "copied_channels",
    time_limit: float = 60.0,
    *,
    model: Model = "tensor",
    weights: Mapping[str, int] | None = None,
    seed: int = 0,
    workers: int = 1,
    progress: Progress | None = None,
) -> Solution:
    """Choose the order of channels in every space such that the least is copied.

    The optimum is over one order per space; a read is a view if its channels are consecutive in
    it, or in front of a concatenation if its pieces are. See ``docs/mathematics.md``.

    Args:
        graph: the channel graph.
        masks: which slices of each parameter are kept.
        solver: ``"cp-sat"`` (exact), ``"pulp"`` or ``"pulp-cbc"`` (exact, by mixed-integer
            programming with HiGHS or CBC), ``"cp-sat-direct"`` (exact, for small problems),
            ``"local-search"``, ``"greedy"`` (UPSCALE's heuristic) or ``"identity"`` (no
            reordering).
        objective: what to minimise: ``"copied_channels"``, ``"copied_bytes"``, ``"gathers"`` or
            ``"blocks"``, the contiguous runs that all reads fall into.
        time_limit: seconds for the solver; when they run out it returns its best solution and
            bound.
        model: where channels are selected: ``"tensor"``, wherever that is best for each tensor, or
            ``"segment"``, as UPSCALE does, with one channel set for a whole segment.
        weights: whole factors for the cost of some reads, by the name of the reading operation
            (or ``"operation[operand]"``); 0 makes a read not matter.
        seed: seed of the solver; the same seed gives the same answer, unless time runs out.
        workers: parallel workers of the solver.
        progress: called on every improvement.

    Raises:
        SolverError: for an unknown solver, objective or model, weights that name no read, or
            options that make no sense, such as a time limit that is not positive.
        MaskError: if the masks do not fit the graph.
        SchemaError: if ``graph`` is not a graph, or ``masks`` are no masks.
    """
    if solver not in SOLVERS:
        raise SolverError(f"unknown solver {solver!r}; there are {', '.join(sorted(SOLVERS))}")
    check_options(time_limit, seed, workers, weights)
    start = time.perf_counter()
    problem = pose(graph, masks, objective, model=model, weights=weights)
    instance = problem.formulation.instance
    analysed = time.perf_counter()
    outcome = solve_instance(
        instance, solver, time_limit=time_limit, seed=seed, workers=workers, progress=progress
    )
    solved = time.perf_counter()
    held = satisfied(instance, outcome.orders)
    layout = lay_out(
        graph, problem.sets, problem.segments, problem.formulation, outcome.orders, held
    )
    demands, numbers = _demands(problem.formulation, outcome.proof)
    return Solution(
        graph_fingerprint=graph.fingerprint,
        capture=graph.capture,
        example=graph.example,
        solver=solver,
        objective=objective,
        model=model,
        weights=dict(weights or {}),
        seed=seed,
        status="optimal" if outcome.optimal else "feasible",
        objective_value=outcome.objective,
        lower_bound=outcome.lower_bound,
        times=Times(
            analysis=analysed - start,
            solve=solved - analysed,
            layout=time.perf_counter() - solved,
        ),
        orders=outcome.orders,
        tensors=layout.tensors,
        reads=layout.reads,
        parameters=layout.parameters,
        demands=demands,
        conflicts=_conflicts(outcome.proof, numbers),
        cases=_cases(outcome.proof, numbers),
        hindrances=_hindrances(graph, problem.formulation, held),
    )


@dataclass(frozen=True)
class Problem:
    """What graph and masks ask for, from channel sets to the instance."""

    sets: ChannelSets
    segments: Segments
    formulation: Formulation


def pose(
    graph: ChannelGraph,
    masks: Masks,
    objective: str = "copied_channels",
    *,
    model: Model = "tensor",
    weights: Mapping[str, int] | None = None,
) -> Problem:
    """The optimisation problem that :func:`solve` would solve, and what its parts stand for.

    Raises:
        SolverError: for an unknown objective or model, or weights that name no read.
        MaskError: if the masks do not fit the graph.
    """
    if objective not in OBJECTIVES:
        raise SolverError(f"unknown objective {objective!r}; there are {', '.join(OBJECTIVES)}")
    if model not in MODELS:
        raise SolverError(f"unknown model {model!r}; there are {', '.join(MODELS)}")
    Masks.require(masks)
    masks.check(graph)
    sets, segments = find_segments(graph, masks, model)
    return Problem(sets, segments, formulate(graph, sets, segments, objective, weights))


def instance_of(
    graph: ChannelGraph,
    masks: Masks,
    objective: str = "copied_channels",
    *,
    model: Model = "tensor",
    weights: Mapping[str, int] | None = None,
) -> Instance:
    """The bare optimisation problem that :func:`solve` would solve.

    Raises:
        SolverError: for an unknown objective or model, or weights that name no read.
        MaskError: if the masks do not fit the graph.
    """
    return pose(graph, masks, objective, model=model, weights=weights).formulation.instance


def _demands(formulation: Formulation, proof: Proof) -> tuple[tuple[Demand, ...], dict[int, int]]:
    """The demands that reads make or the proof speaks of, and their numbers by the instance's."""
    readers: dict[int, dict[str, None]] = {d: {} for d in proof.demands()}
    for views in _views(formulation):
        for edge, view in views:
            for demand in view or ():
                readers.setdefault(demand, {})[edge_name(edge)] = None
    numbers = {demand: i for i, demand in enumerate(sorted(readers))}
    demands = []
    for index in numbers:
        asked = formulation.instance.demands[index]
        demands.append(
            Demand(
                space=asked.space,
                kind=asked.kind,
                channels=tuple(sorted(asked.channels)),
                reads=tuple(readers[index]),
            )
        )
    return tuple(demands), numbers


def _views(formulation: Formulation) -> Iterator[list[tuple[Edge, tuple[int, ...] | None]]]:
    """Per read of the instance: its edge and its pieces' edges, with the demands of their views."""
    for read, edge, edges in zip(
        formulation.instance.reads, formulation.reads, formulation.pieces, strict=True
    ):
        pieces = zip(edges, read.pieces, strict=True)
        yield [(edge, read.view), *((piece_edge, piece.view) for piece_edge, piece in pieces)]


def _conflicts(proof: Proof, numbers: Mapping[int, int]) -> tuple[Conflict, ...]:
    return tuple(
        Conflict(demands=_renumbered(group.demands, numbers), limit=group.limit)
        for group in proof.groups
    )


def _cases(proof: Proof, numbers: Mapping[int, int]) -> tuple[Case, ...]:
    return tuple(
        Case(
            holds=_renumbered(case.holds, numbers),
            fails=_renumbered(case.fails, numbers),
            prices=dict(case.prices),
            shares=tuple((r, numbers[d], price) for (r, d), price in case.shares.items()),
            unit=case.unit,
        )
        for case in proof.cases
    )


def _renumbered(demands: Iterable[int], numbers: Mapping[int, int]) -> tuple[int, ...]:
    return tuple(sorted(numbers[demand] for demand in demands))


def _hindrances(
    graph: ChannelGraph, formulation: Formulation, held: Collection[int]
) -> dict[str, str]:
    """For each read that no order could make a view, why."""
    found = {edge_name(edge): why for edge, why in formulation.hindrances.items()}
    for views in _views(formulation):
        for edge, view in views:
            for demand in view or ():
                space = formulation.instance.demands[demand].space
                why = graph.spaces[space].fixed
                if why is not None and demand not in held:
                    found[edge_name(edge)] = f"the order of space {space} is fixed: {why}"
    return found
