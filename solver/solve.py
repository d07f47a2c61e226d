"""``solve(graph, masks)``: from channel sets to a proven plan for the whole network."""

from __future__ import annotations

import time
from collections.abc import Callable

from upscale_opt.errors import SolverError
from upscale_opt.ir.graph import ChannelGraph
from upscale_opt.ir.masks import Masks
from upscale_opt.ir.solution import Demand, Solution, Times
from upscale_opt.solver.formulate import Formulation, formulate
from upscale_opt.solver.instance import Instance, Outcome, satisfied
from upscale_opt.solver.layout import lay_out
from upscale_opt.solver.registry import SOLVERS, solve_instance
from upscale_opt.solver.segments import find_segments

OBJECTIVES = ("copied_channels",)
"""What can be minimised."""

Progress = Callable[[int, int], None]
"""Called with the best objective value so far and the bound so far."""


def solve(
    graph: ChannelGraph,
    masks: Masks,
    solver: str = "cp-sat",
    objective: str = "copied_channels",
    time_limit: float = 60.0,
    *,
    seed: int = 0,
    workers: int = 1,
    progress: Progress | None = None,
) -> Solution:
    """Choose the order of channels in every space so that the fewest channels are copied.

    The optimum is over one order per space; a read is a view if its channels are consecutive in
    it, or in front of a concatenation if its pieces are. See ``docs/mathematics.md``.

    Args:
        graph: the channel graph.
        masks: which slices of each parameter are kept.
        solver: ``"cp-sat"`` (exact), ``"greedy"`` (UPSCALE's heuristic) or ``"identity"`` (no
            reordering).
        objective: what to minimise; ``"copied_channels"``.
        time_limit: seconds for the solver; when they run out it returns its best solution and
            bound.
        seed: seed of the solver; the same seed gives the same answer, unless time runs out.
        workers: parallel workers of the solver.
        progress: called on every improvement.

    Raises:
        SolverError: for an unknown solver or objective, or a time limit that is not positive.
        MaskError: if the masks do not fit the graph.
    """
    if solver not in SOLVERS:
        raise SolverError(f"unknown solver {solver!r}; there are {', '.join(sorted(SOLVERS))}")
    if objective not in OBJECTIVES:
        raise SolverError(f"unknown objective {objective!r}; there are {', '.join(OBJECTIVES)}")
    if not time_limit > 0:
        raise SolverError(f"the time limit must be more than 0 seconds, not {time_limit}")
    masks.check(graph)
    start = time.perf_counter()
    sets, segments = find_segments(graph, masks)
    formulation = formulate(graph, segments)
    analysed = time.perf_counter()
    outcome = solve_instance(
        formulation.instance,
        solver,
        time_limit=time_limit,
        seed=seed,
        workers=workers,
        progress=progress,
    )
    solved = time.perf_counter()
    held = satisfied(formulation.instance, outcome.orders)
    layout = lay_out(graph, sets, segments, formulation, outcome.orders, held)
    demands, conflicts = _proof(formulation, outcome)
    return Solution(
        graph_fingerprint=graph.fingerprint,
        capture=graph.capture,
        example=graph.example,
        solver=solver,
        objective=objective,
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
        conflicts=conflicts,
    )


def instance_of(graph: ChannelGraph, masks: Masks) -> Instance:
    """The bare optimisation problem that :func:`solve` would solve.

    Raises:
        MaskError: if the masks do not fit the graph.
    """
    masks.check(graph)
    return formulate(graph, find_segments(graph, masks)[1]).instance


def _proof(
    formulation: Formulation, outcome: Outcome
) -> tuple[tuple[Demand, ...], tuple[tuple[int, ...], ...]]:
    """The conflicts, over a table of just the demands that occur in them."""
    used = sorted({demand for conflict in outcome.conflicts for demand in conflict})
    number = {demand: i for i, demand in enumerate(used)}
    readers: dict[int, list[str]] = {demand: [] for demand in used}
    for read, (op, operand), edges in zip(
        formulation.instance.reads, formulation.reads, formulation.pieces, strict=True
    ):
        for demand in read.view or ():
            if demand in readers:
                readers[demand].append(f"{op}[{operand}]")
        for piece, (piece_op, piece_operand) in zip(read.pieces, edges, strict=True):
            for demand in piece.view or ():
                if demand in readers:
                    readers[demand].append(f"{piece_op}[{piece_operand}]")
    demands = []
    for index in used:
        asked = formulation.instance.demands[index]
        demands.append(
            Demand(
                space=asked.space,
                kind=asked.kind,
                channels=tuple(sorted(asked.channels)),
                reads=tuple(dict.fromkeys(readers[index])),
            )
        )
    conflicts = tuple(tuple(number[d] for d in conflict) for conflict in outcome.conflicts)
    return tuple(demands), conflicts
