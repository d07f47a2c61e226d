"""Check a solution and its proof of optimality, without a solver and without trusting one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from upscale_opt.errors import VerificationError
from upscale_opt.ir.graph import ChannelGraph
from upscale_opt.ir.masks import Masks
from upscale_opt.ir.solution import Solution
from upscale_opt.solver.algorithms.window_search import relaxed as relaxed_windows
from upscale_opt.solver.checking.check import damage, losses
from upscale_opt.solver.network.planning import Plan, arenas_of, lay_out_windows
from upscale_opt.solver.network.posing import Problem, pose
from upscale_opt.solver.network.sets import Edge, Ids
from upscale_opt.solver.network.windows import chosen_windows
from upscale_opt.solver.problem.instance import (
    Case,
    Demand,
    Group,
    Instance,
    Proof,
    as_copies,
    cost,
    read_cost,
    satisfied,
)
from upscale_opt.solver.problem.proof import false_group, proven_bound


@dataclass(frozen=True)
class AuditReport:
    """The findings of :func:`check`; that the plan is right goes without saying.

    Attributes:
        objective_value: what the orders cost.
        lower_bound: what the solution says that no orders cost less than.
        proven_bound: what the solution's conflicts and cases prove of it.
    """

    objective_value: int
    lower_bound: int
    proven_bound: int

    @property
    def proven(self) -> bool:
        """The lower bound is proven; else it rests on the solver's word."""
        return self.proven_bound >= self.lower_bound

    @property
    def optimal(self) -> bool:
        """The orders are proven to be optimal, the solver's word apart."""
        return self.proven_bound == self.objective_value

    def __str__(self) -> str:
        if self.optimal:
            return f"{self.objective_value:,} is the optimum: proven by the conflicts alone"
        if self.lower_bound == 0:
            return f"{self.objective_value:,}; how few could be reached is not claimed"
        if self.proven:
            return (
                f"{self.objective_value:,}, and no less than {self.lower_bound:,} can be reached: "
                "proven by the conflicts alone"
            )
        return (
            f"{self.objective_value:,}; that no less than {self.lower_bound:,} can be reached "
            f"rests on the solver's word (the conflicts alone prove {self.proven_bound:,})"
        )


def check(solution: Solution, graph: ChannelGraph, masks: Masks) -> AuditReport:
    """Check everything that ``solution`` says, without a solver and without trusting one.

    The orders are permutations and cost what it says; the plan is sound, follows from the orders
    and drops nothing that matters; every conflict is one. Whether the lower bound follows from the
    conflicts alone, in whole numbers (:mod:`upscale_opt.solver.problem.proof`), or rests on the
    solver's word, is what the report says.

    Args:
        solution: what was found.
        graph: the graph that was solved.
        masks: the masks that it was solved with.

    Raises:
        VerificationError: if something that the solution says is not true.
        MaskError: if the masks do not fit the graph.
        SchemaError: if one of the three is no such document.
    """
    Solution.require(solution)
    ChannelGraph.require(graph)
    Masks.require(masks)
    if solution.graph_fingerprint != graph.fingerprint:
        raise VerificationError("the solution was made for another graph; solve this one")
    problem = pose(
        graph,
        masks,
        solution.objective,
        selection=solution.selection,
        weights=solution.weights,
        cost_model=solution.cost_model,
        widths=solution.widths,
    )
    windows = _windows(graph, problem, solution)
    _check_orders(problem, solution, windows)
    _check_plan(graph, masks, problem, solution, windows)
    proof = _proof(problem.formulation.instance, solution)
    return _check_bound(problem.formulation.instance, solution, proof)


def _windows(graph: ChannelGraph, problem: Problem, solution: Solution) -> dict[Edge, Ids]:
    """For every window, the channels that it reads and that are not wanted."""
    windows: dict[Edge, Ids] = {}
    for read in solution.reads:
        if read.plan == "window":
            edge = (read.op, read.operand)
            wanted = problem.segments.selects.get(edge)
            tensor = graph.tensors.get(read.tensor)
            if wanted is None or tensor is None or max(read.channels) >= len(tensor.channels):
                raise VerificationError(f"{read.name!r} cannot be a window; solve again")
            windows[edge] = frozenset(tensor.channels[e] for e in read.channels) - wanted
    return windows


def _check_orders(problem: Problem, solution: Solution, windows: Mapping[Edge, Ids]) -> None:
    instance = problem.formulation.instance
    if len(solution.orders) != len(instance.spaces):
        raise VerificationError(
            f"the solution orders {len(solution.orders)} spaces, but the graph with these masks "
            f"has {len(instance.spaces)}; solve again"
        )
    for number, (space, order) in enumerate(zip(instance.spaces, solution.orders, strict=True)):
        allowed = order == space.channels if space.fixed else None
        if allowed is False or sorted(order) != sorted(space.channels):
            raise VerificationError(
                f"the order of space {number} is not one of its stored channels; solve again"
            )
    value = cost(instance, solution.orders)
    if solution.objective == "latency":
        chosen = chosen_windows(problem.formulation, instance, solution.orders)
        wholes = problem.formulation.wholes  # which are wider where other windows widen the tensor
        if windows.keys() != chosen.keys() or not all(
            windows[edge] >= ids if edge in wholes else windows[edge] == ids
            for edge, ids in chosen.items()
        ):
            raise VerificationError("other reads are windows than would be cheapest; solve again")
    else:  # windows have a budget, not a price
        held = satisfied(instance, solution.orders)
        value -= sum(
            read_cost(read, held)
            for read, edge in zip(instance.reads, problem.formulation.reads, strict=True)
            if edge in windows
        )
    if value != solution.objective_value:
        raise VerificationError(
            f"the orders cost {value:,}, not {solution.objective_value:,} as the solution says"
        )


def _check_plan(
    graph: ChannelGraph,
    masks: Masks,
    problem: Problem,
    solution: Solution,
    windows: Mapping[Edge, Ids],
) -> None:
    broken = damage(graph, solution)
    if broken is not None:
        raise VerificationError(f"the solution is damaged: {broken}; solve again")
    lost = losses(graph, masks, solution)
    if lost:
        raise VerificationError(f"the solution loses {lost[0]}; solve again")
    plan = lay_out_windows(graph, masks, problem, solution.orders, windows)
    said = Plan(
        solution.tensors,
        solution.reads,
        solution.parameters,
        solution.macs,
        solution.extra_macs,
    )
    if plan != said or solution.arenas != arenas_of(problem, solution.orders):
        raise VerificationError("the plan is not the one that its orders give; solve again")
    share = solution.max_extra_macs
    if solution.objective != "latency" and plan.extra_macs > share * plan.macs:
        raise VerificationError(
            f"windows add {plan.extra_macs:,} multiply-adds to {plan.macs:,}, more than the share "
            f"of {share:g} that is allowed; solve again"
        )
    counted = solution.objective == "copied_channels" and not solution.weights
    if counted and solution.copied != solution.objective_value:
        raise VerificationError(
            f"the plan copies {solution.copied:,} channels, not {solution.objective_value:,} as "
            "it says"
        )


def _proof(instance: Instance, solution: Solution) -> Proof:
    """The solution's proof in terms of the instance."""
    known = {demand: index for index, demand in enumerate(instance.demands)}
    numbers: dict[int, int] = {}
    for place, asked in enumerate(solution.demands):
        demand = Demand(asked.space, asked.kind, frozenset(asked.channels))
        if demand not in known:
            raise VerificationError(
                f"demand {place} (of {', '.join(asked.reads)}) is made by no read; solve again"
            )
        numbers[place] = known[demand]
    try:
        groups = tuple(
            Group(_renumbered(conflict.demands, numbers), conflict.limit)
            for conflict in solution.conflicts
        )
        cases = tuple(
            Case(
                _renumbered(case.holds, numbers),
                _renumbered(case.fails, numbers),
                dict(case.prices),
                {(read, numbers[demand]): price for read, demand, price in case.shares},
                case.unit,
            )
            for case in solution.cases
        )
    except KeyError as error:
        raise VerificationError(f"the proof speaks of demand {error}, which is missing") from None
    return Proof(groups, cases)


def _renumbered(demands: tuple[int, ...], numbers: Mapping[int, int]) -> tuple[int, ...]:
    return tuple(numbers[demand] for demand in demands)


def _check_bound(instance: Instance, solution: Solution, proof: Proof) -> AuditReport:
    relaxed, constant = as_copies(instance) if instance.measure == "blocks" else (instance, 0)
    if solution.max_extra_macs:  # where any read may be a window, conflicts prove nothing
        proof = replace(proof, cases=())
        relaxed = replace(relaxed, reads=())
    relaxed = relaxed_windows(relaxed)
    wrong = false_group(relaxed, proof)
    if wrong is not None:
        raise VerificationError(
            "the solution says that these demands exclude each other, but they do not: "
            + ", ".join(_describe(instance.demands[demand]) for demand in wrong)
        )
    if solution.lower_bound > solution.objective_value:
        raise VerificationError(
            f"the lower bound {solution.lower_bound:,} is above what the orders cost, "
            f"{solution.objective_value:,}"
        )
    optimal = solution.lower_bound == solution.objective_value
    if (solution.status == "optimal") != optimal:
        raise VerificationError(
            f"the status is {solution.status!r}, but the lower bound is {solution.lower_bound:,} "
            f"and the orders cost {solution.objective_value:,}"
        )
    bound = constant + proven_bound(relaxed, proof)
    if bound > solution.objective_value or solution.lower_bound < 0:
        raise VerificationError(
            f"the proof shows {bound:,} of {solution.objective_value:,} and the solution claims "
            f"{solution.lower_bound:,}, which cannot be"
        )
    return AuditReport(solution.objective_value, solution.lower_bound, bound)


def _describe(demand: Demand) -> str:
    return f"{demand.kind} of {len(demand.channels)} channels in space {demand.space}"
