"""``solve(graph, masks)``: from channel sets to a proven plan for the whole network."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from typing_extensions import Unpack

from upscale_opt.errors import SolverError
from upscale_opt.ir.graph import ChannelGraph
from upscale_opt.ir.masks import Masks
from upscale_opt.ir.solution import Case, Conflict, Demand, Solution, Times, Widths
from upscale_opt.solver.algorithms.registry import solve_instance
from upscale_opt.solver.forecast import forecast
from upscale_opt.solver.network.arenas import tidied
from upscale_opt.solver.network.budget import Found, solve_in_budget
from upscale_opt.solver.network.formulate import Formulation, edge_name
from upscale_opt.solver.network.planning import arenas_of, lay_out_windows
from upscale_opt.solver.network.posing import Problem, pose
from upscale_opt.solver.network.prices import Pricing
from upscale_opt.solver.network.segments import Selection
from upscale_opt.solver.network.sets import Edge
from upscale_opt.solver.network.windows import chosen_windows
from upscale_opt.solver.options import SolveFields, SolveOptions
from upscale_opt.solver.problem.instance import (
    Improvement,
    Instance,
    Outcome,
    Proof,
    cost,
    satisfied,
)
from upscale_opt.solver.progress import Listener, improvements


def solve(
    graph: ChannelGraph,
    masks: Masks,
    *,
    options: SolveOptions | None = None,
    progress: Listener | None = None,
    **fields: Unpack[SolveFields],
) -> Solution:
    """Choose the order of channels in every space such that the least is copied.

    The optimum is over one order per space; a read is a view if its channels are consecutive in
    it, or in front of a concatenation if its pieces are. See ``docs/mathematics.md``.

    Args:
        graph: the channel graph.
        masks: which slices of each parameter are kept.
        options: how to solve.
        progress: told of every improvement. Where two selections are tried, with the smaller value,
            and a bound that holds for both: the answer may be the other.
        **fields: of :class:`~upscale_opt.solver.options.SolveOptions`, in place of those of
            ``options``: ``solve(graph, masks, objective="latency", time_limit=10)``.

    Raises:
        SolverError: for an unknown solver, objective or selection, weights that name no read, or
            options that make no sense, such as a time limit that is not positive.
        MaskError: if the masks do not fit the graph.
        SchemaError: if ``graph`` is not a graph, or ``masks`` are no masks.
    """
    options = SolveOptions.of(options, **fields)
    task = _Task(graph, masks, options, improvements(progress, "solve"))
    if options.objective == "latency" and options.prices is not None and options.prices.in_blocks:
        if options.selection == "arena":
            raise SolverError(
                f"selection 'arena' shares buffers, which {options.prices.runtime} programs "
                "cannot; leave it out, or give prices of another runtime"
            )
        return task.fastest_in_blocks()
    if options.selection is None and options.objective == "latency":
        return task.fastest()
    return task.solve(options.selection or "tensor", options.time_limit)


_WIDTHS: tuple[Widths, ...] = ("blocks", "steps", "exact", "trimmed")
"""The widths to be tried where channels are stored in blocks; the usual ones first."""

_WIDTHS_PAY = 0.03
"""The share of the time that other widths must spare: forecasts err by as much."""

_ARENAS_PAY = 0.15
"""The share of all moving of data that arenas must spare: cost models err by as much."""


@dataclass(frozen=True)
class _Task:
    """A question to :func:`solve`."""

    graph: ChannelGraph
    masks: Masks
    options: SolveOptions
    progress: Improvement | None

    def fastest(self) -> Solution:
        """With arenas if by the cost model they pay, else without."""
        start = time.perf_counter()
        time_limit = self.options.time_limit
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

    def fastest_in_blocks(self) -> Solution:
        """With the widths that make the fastest export by the cost model."""
        prices = self.options.prices
        assert prices is not None
        selection = self.options.selection or "tensor"
        end = time.perf_counter() + self.options.time_limit
        found: dict[Widths, tuple[float, Solution]] = {}
        for number, widths in enumerate(_WIDTHS):
            left = max((end - time.perf_counter()) / (len(_WIDTHS) - number), 0.001)
            solution = replace(self, progress=None).solve(selection, left, widths)
            found[widths] = forecast(self.graph, solution, prices), solution
        usual, least = found[_WIDTHS[0]], min(found.values(), key=lambda pair: pair[0])
        best = usual if usual[0] <= (1 + _WIDTHS_PAY) * least[0] else least
        if self.progress is not None:
            self.progress(best[1].objective_value, best[1].lower_bound)
        return best[1]

    def solve(
        self, selection: Selection, time_limit: float, widths: Widths = "trimmed"
    ) -> Solution:
        """The solution for one selection, and widths."""
        start = time.perf_counter()
        options = self.options
        problem = _posed(self.graph, self.masks, options, selection, widths)
        analysed = time.perf_counter()

        def solver_of(instance: Instance, seconds: float) -> Outcome:
            return solve_instance(
                instance,
                options.solver,
                time_limit=seconds,
                seed=options.seed,
                workers=options.workers,
                # With a budget, instances are solved whose values are none of this problem.
                progress=None if options.max_extra_macs else self.progress,
            )

        if options.max_extra_macs:
            found = solve_in_budget(
                problem, solver_of, options.max_extra_macs, time_limit, self.progress
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
            solver=options.solver,
            objective=options.objective,
            selection=selection,
            widths=widths,
            weights=dict(options.weights or {}),
            max_extra_macs=options.max_extra_macs,
            cost_model=problem.cost_model,
            seed=options.seed,
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
        if self.options.max_extra_macs:
            same = satisfied(instance, orders) == satisfied(instance, outcome.orders)
            return replace(found, outcome=replace(outcome, orders=orders)) if same else found
        value = cost(instance, orders)  # less, if no solver saw to it that views are views
        if value > outcome.objective:
            return found
        windows = chosen_windows(problem.formulation, instance, orders)
        return Found(replace(outcome, orders=orders, objective=value), windows)


class _Both:
    """Progress of two solves, either of which may be the answer: what holds for both."""

    def __init__(self, progress: Improvement) -> None:
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
    *,
    options: SolveOptions | None = None,
    **fields: Unpack[SolveFields],
) -> Instance:
    """The bare optimisation problem that :func:`solve` would solve, windows apart.

    Of those that it tries for onnxruntime and the like, it is the one without channels added.

    Args:
        graph: the channel graph.
        masks: which slices of each parameter are kept.
        options: how to solve; what says how, but not what, does not count.
        **fields: in place of those of ``options``. The selection is ``"tensor"`` if not given.

    Raises:
        SolverError: for an unknown objective or selection, or weights that name no read.
        MaskError: if the masks do not fit the graph.
    """
    options = SolveOptions.of(options, **fields)
    selection = options.selection or "tensor"
    return _posed(graph, masks, options, selection).formulation.instance


def _posed(
    graph: ChannelGraph,
    masks: Masks,
    options: SolveOptions,
    selection: Selection,
    widths: Widths = "trimmed",
) -> Problem:
    return pose(
        graph,
        masks,
        options.objective,
        selection=selection,
        weights=options.weights,
        cost_model=options.prices,
        widths=widths,
    )


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
