"""``solve(graph, masks)``: from channel sets to a proven plan for the whole network."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from upscale_opt.errors import SolverError
from upscale_opt.ir.cost_model import CostModel
from upscale_opt.ir.graph import ChannelGraph
from upscale_opt.ir.masks import Masks
from upscale_opt.ir.solution import Case, Conflict, Demand, Solution, Times
from upscale_opt.solver.algorithms.registry import SOLVERS, solve_instance
from upscale_opt.solver.network.arenas import tidied
from upscale_opt.solver.network.budget import Found, solve_in_budget
from upscale_opt.solver.network.formulate import Formulation, edge_name
from upscale_opt.solver.network.planning import arenas_of, lay_out_windows
from upscale_opt.solver.network.posing import Problem, pose
from upscale_opt.solver.network.prices import Pricing
from upscale_opt.solver.network.segments import Model
from upscale_opt.solver.network.sets import Edge
from upscale_opt.solver.network.windows import chosen_windows
from upscale_opt.solver.options import check_options, check_share
from upscale_opt.solver.problem.instance import (
    Instance,
    Outcome,
    Progress,
    Proof,
    cost,
    satisfied,
)


def solve(
    graph: ChannelGraph,
    masks: Masks,
    solver: str = "cp-sat",
    objective: str = "copied_channels",
    time_limit: float = 60.0,
    *,
    model: Model | None = None,
    weights: Mapping[str, int] | None = None,
    max_extra_macs: float = 0.0,
    cost_model: CostModel | None = None,
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
            ``"blocks"``, the contiguous runs that all reads fall into; or ``"latency"``, the
            nanoseconds that gathers, and windows where they are cheaper, cost beyond views.
        time_limit: seconds for the solver; when they run out it returns its best solution and
            bound.
        model: where channels are selected: ``"tensor"``, wherever that is best for each tensor;
            ``"segment"``, as UPSCALE does, with one channel set for a whole segment; or
            ``"arena"``, as ``"tensor"``, with concatenations that share buffers, in which the
            channels of what is joined may lie between each other. By default ``"tensor"``; for
            latency both ``"arena"`` and ``"tensor"`` are tried, in half of the time each, and the
            answer (with its bound) is that which the cost model says is faster.
        weights: whole factors for the cost of some reads, by the name of the reading operation
            (or ``"operation[operand]"``); 0 makes a read not matter.
        max_extra_macs: let reads be windows where that spares gathers: adjacent channels, for some
            of which a layer keeps zero columns. At most this share of the multiply-adds that the
            export has without; 0 for no windows. Not for latency, which prices them.
        cost_model: what kernels cost on the device, for latency; from
            :func:`upscale_opt.measuring.calibrate`, or built in (a CPU's by default). The graph's
            sizes count: trace with the batch that matters.
        seed: seed of the solver; the same seed gives the same answer, unless time runs out.
        workers: parallel workers of the solver.
        progress: called with value and bound on every improvement. Where both models are tried,
            with the smaller value, and a bound that holds for both: the answer may be the other.

    Raises:
        SolverError: for an unknown solver, objective or model, weights that name no read, or
            options that make no sense, such as a time limit that is not positive.
        MaskError: if the masks do not fit the graph.
        SchemaError: if ``graph`` is not a graph, or ``masks`` are no masks.
    """
    if solver not in SOLVERS:
        raise SolverError(f"unknown solver {solver!r}; there are {', '.join(sorted(SOLVERS))}")
    check_options(time_limit, seed, workers, weights)
    check_share(max_extra_macs, objective)
    task = _Task(
        graph,
        masks,
        solver,
        objective,
        weights=weights,
        max_extra_macs=max_extra_macs,
        cost_model=cost_model,
        seed=seed,
        workers=workers,
        progress=progress,
    )
    if model is None and objective == "latency":
        return task.fastest(time_limit)
    return task.solve(model or "tensor", time_limit)


_ARENAS_PAY = 0.15
"""The share of all moving of data that arenas must spare: cost models err by as much."""


@dataclass(frozen=True)
class _Task:
    """What :func:`solve` was asked, apart from the model and the time."""

    graph: ChannelGraph
    masks: Masks
    solver: str
    objective: str
    weights: Mapping[str, int] | None
    max_extra_macs: float
    cost_model: CostModel | None
    seed: int
    workers: int
    progress: Progress | None

    def fastest(self, time_limit: float) -> Solution:
        """With arenas if by the cost model they pay, else without."""
        start = time.perf_counter()
        both = None if self.progress is None else _Both(self.progress)
        shared = replace(self, progress=both.first if both else None).solve("arena", time_limit / 2)
        if not shared.arenas:
            if self.progress is not None:
                self.progress(shared.objective_value, shared.lower_bound)
            return shared
        left = max(time_limit - (time.perf_counter() - start), 0.001)
        apart = replace(self, progress=both.second if both else None).solve("tensor", left)
        assert shared.cost_model is not None
        pricing = Pricing(self.graph, shared.cost_model)
        gain = pricing.of_plan(apart) - pricing.of_plan(shared)
        return shared if gain > _ARENAS_PAY * pricing.of_plan(apart) else apart

    def solve(self, model: Model, time_limit: float) -> Solution:
        """The solution in one model."""
        start = time.perf_counter()
        problem = pose(
            self.graph,
            self.masks,
            self.objective,
            model=model,
            weights=self.weights,
            cost_model=self.cost_model,
        )
        analysed = time.perf_counter()

        def solver_of(instance: Instance, seconds: float) -> Outcome:
            return solve_instance(
                instance,
                self.solver,
                time_limit=seconds,
                seed=self.seed,
                workers=self.workers,
                # With a budget, instances are solved whose values are none of this problem.
                progress=None if self.max_extra_macs else self.progress,
            )

        if self.max_extra_macs:
            found = solve_in_budget(
                problem, solver_of, self.max_extra_macs, time_limit, self.progress
            )
        else:
            outcome = solver_of(problem.formulation.instance, time_limit)
            instance = problem.formulation.instance
            found = Found(outcome, chosen_windows(problem.formulation, instance, outcome.orders))
        found = self._tidied(problem, found)
        outcome = found.outcome
        solved = time.perf_counter()
        held = satisfied(problem.formulation.instance, outcome.orders)
        plan = lay_out_windows(self.graph, self.masks, problem, outcome.orders, found.windows)
        demands, numbers = _demands(problem.formulation, outcome.proof)
        return Solution(
            graph_fingerprint=self.graph.fingerprint,
            capture=self.graph.capture,
            example=self.graph.example,
            solver=self.solver,
            objective=self.objective,
            model=model,
            weights=dict(self.weights or {}),
            max_extra_macs=self.max_extra_macs,
            cost_model=problem.cost_model,
            seed=self.seed,
            status="optimal" if outcome.optimal else "feasible",
            objective_value=outcome.objective,
            lower_bound=outcome.lower_bound,
            times=Times(
                analysis=analysed - start,
                solve=solved - analysed,
                layout=time.perf_counter() - solved,
            ),
            orders=outcome.orders,
            tensors=plan.tensors,
            reads=plan.reads,
            parameters=plan.parameters,
            arenas=arenas_of(problem, outcome.orders),
            macs=plan.macs,
            extra_macs=plan.extra_macs,
            demands=demands,
            conflicts=_conflicts(outcome.proof, numbers),
            cases=_cases(outcome.proof, numbers),
            hindrances=_hindrances(self.graph, problem.formulation, held),
        )

    def _tidied(self, problem: Problem, found: Found) -> Found:
        """With arenas written in fewer pieces, where that costs nothing."""
        instance, outcome = problem.formulation.instance, found.outcome
        orders = tidied(problem.segments, problem.formulation, outcome.orders, found.windows)
        if orders == outcome.orders:
            return found
        if self.max_extra_macs:
            same = satisfied(instance, orders) == satisfied(instance, outcome.orders)
            return replace(found, outcome=replace(outcome, orders=orders)) if same else found
        value = cost(instance, orders)  # less, if no solver saw to it that views are views
        if value > outcome.objective:
            return found
        windows = chosen_windows(problem.formulation, instance, orders)
        return Found(replace(outcome, orders=orders, objective=value), windows)


class _Both:
    """Progress of two solves, either of which may be the answer: what holds for both."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._value: int | None = None
        self._bound = 0

    def first(self, value: int, bound: int) -> None:
        self._bound = bound
        self._tell(value, 0)

    def second(self, value: int, bound: int) -> None:
        self._tell(value, min(self._bound, bound))

    def _tell(self, value: int, bound: int) -> None:
        self._value = value if self._value is None else min(self._value, value)
        self._progress(self._value, bound)


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
                why = graph.spaces[space].fixed if space < len(graph.spaces) else None
                if why is not None and demand not in held:
                    found[edge_name(edge)] = f"the order of space {space} is fixed: {why}"
    return found
