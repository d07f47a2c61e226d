"""Solvers side by side: the same problem to each of them, and one row for what each makes of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from upscale_opt.errors import SolverError, UpscaleError
from upscale_opt.ir.base import Document, Record
from upscale_opt.ir.cost_model import CostModel
from upscale_opt.ir.graph import ChannelGraph
from upscale_opt.ir.masks import Masks
from upscale_opt.solver.algorithms.registry import SOLVERS, solve_instance
from upscale_opt.solver.api import solve
from upscale_opt.solver.network.objectives import OBJECTIVES
from upscale_opt.solver.network.posing import pose
from upscale_opt.solver.network.segments import MODELS, Model
from upscale_opt.solver.options import check_options, check_share
from upscale_opt.solver.problem.instance import Instance, is_view, satisfied

USUAL_SOLVERS = ("identity", "greedy", "local-search", "cp-sat")
"""What is compared unless something else is asked for: the worst to the best."""

Progress = Callable[[str, int, int], None]
"""Told the solver's name, its best objective value so far and its bound so far."""


class ComparisonRow(Record):
    """What one solver made of one problem.

    Attributes:
        label: the network's (or instance's) name.
        amount: the share of channels dropped, where that is known.
        side: on which side of the layers they were dropped, where that is known.
        solver: the solver's name.
        objective: what was minimised; for a bare instance its measure, ``"copies"`` or
            ``"blocks"``.
        model: ``"tensor"``, ``"segment"`` or ``"arena"``, see :func:`upscale_opt.solve`.
        max_extra_macs: the share of the multiply-adds that windows might add.
        status: ``"optimal"`` if the solver proved its orders to be, ``"feasible"`` if not,
            ``"failed"`` if it found none; then ``reason`` says why and there are no values.
        objective_value: what its orders cost.
        lower_bound: what no orders cost less than, as far as this solver proved it; ``None`` where
            it proved nothing better than 0 and did not reach that.
        gap: by how much of its value the solver may be off: (value - bound) / value, where bound is
            the best lower bound that *any* solver proved for this problem, as it is true for all of
            them. 0 if the value meets it, ``None`` if there is none.
        reads: how many reads there are.
        views: how many of them are views.
        windows: how many are windows.
        extra_macs: the multiply-adds that the windows add.
        seconds: how long the solver took, without what comes before and after it.
        reason: why the solver failed.
    """

    label: str = ""
    amount: float | None = None
    side: str | None = None
    solver: str
    objective: str
    model: Model | None = None
    max_extra_macs: float = 0.0
    status: Literal["optimal", "feasible", "failed"]
    objective_value: int | None = None
    lower_bound: int | None = None
    gap: float | None = None
    reads: int | None = None
    views: int | None = None
    windows: int | None = None
    extra_macs: int | None = None
    seconds: float
    reason: str | None = None


class Comparison(Document):
    """Rows as a JSON document.

    Attributes:
        rows: one per problem and solver.
    """

    what: ClassVar[str] = "comparison"

    rows: tuple[ComparisonRow, ...]


@dataclass(frozen=True)
class Case:
    """A problem to compare solvers on.

    Attributes:
        problem: a bare instance, or a graph with masks.
        label, amount, side: what its rows are marked with.
    """

    problem: Instance | tuple[ChannelGraph, Masks]
    label: str = ""
    amount: float | None = None
    side: str | None = None


@dataclass(frozen=True)
class Settings:
    """What all solvers are given; see :func:`upscale_opt.solve`."""

    objective: str = "copied_channels"
    model: Model | None = None
    weights: Mapping[str, int] | None = None
    time_limit: float = 60.0
    seed: int = 0
    workers: int = 1
    max_extra_macs: float = 0.0
    cost_model: CostModel | None = None


def compare(
    graph: ChannelGraph,
    masks: Masks,
    solvers: Sequence[str] = USUAL_SOLVERS,
    *,
    objective: str = "copied_channels",
    model: Model | None = None,
    weights: Mapping[str, int] | None = None,
    max_extra_macs: float = 0.0,
    cost_model: CostModel | None = None,
    time_limit: float = 60.0,
    seed: int = 0,
    workers: int = 1,
    label: str = "",
    progress: Progress | None = None,
) -> tuple[ComparisonRow, ...]:
    """Solve one problem with several solvers, one after the other.

    A solver that fails gets a row that says so, and the others go on.

    Args:
        graph: the channel graph.
        masks: which slices of each parameter are kept.
        solvers: their names, see :func:`upscale_opt.solve`.
        objective: what to minimise.
        model: in whose terms; by default ``"tensor"``, or for latency ``"arena"``.
        weights: factors for the cost of reads.
        max_extra_macs: the share of the multiply-adds that windows may add.
        cost_model: what kernels cost, for latency.
        time_limit: seconds for each solver.
        seed: seed of the solvers.
        workers: parallel workers of each solver.
        label: what to call the problem in the rows.
        progress: called on every improvement, with the solver's name first.

    Returns:
        One row per solver, in the order of ``solvers``.

    Raises:
        SolverError: for an unknown solver, objective or model, weights that name no read, a
            time limit that is not positive, or a share of multiply-adds that is negative or not
            for this objective.
        MaskError: if the masks do not fit the graph.
    """
    Masks.require(masks)
    masks.check(graph)
    settings = Settings(
        objective, model, weights, time_limit, seed, workers, max_extra_macs, cost_model
    )
    check_settings(solvers, settings)
    if weights:
        pose(graph, masks, objective, model=model or "tensor", weights=weights)
    case = Case((graph, masks), label)
    return with_gaps(run_case(case, solver, settings, progress) for solver in solvers)


def compare_instance(
    instance: Instance,
    solvers: Sequence[str] = USUAL_SOLVERS,
    *,
    time_limit: float = 60.0,
    seed: int = 0,
    workers: int = 1,
    label: str = "",
    progress: Progress | None = None,
) -> tuple[ComparisonRow, ...]:
    """Like :func:`compare`, for a problem without a network.

    Raises:
        SolverError: for an unknown solver, or a time limit that is not positive.
    """
    settings = Settings(time_limit=time_limit, seed=seed, workers=workers)
    check_settings(solvers, settings)
    case = Case(instance, label)
    return with_gaps(run_case(case, solver, settings, progress) for solver in solvers)


def check_settings(solvers: Collection[str], settings: Settings) -> None:
    """Find out before anything is solved what no solver could make sense of.

    Raises:
        SolverError: naming it.
    """
    if isinstance(solvers, str) or not solvers:
        raise SolverError(
            "solvers must be a list of one name or more, such as ['greedy', 'cp-sat'], "
            f"not {solvers!r}"
        )
    for what, given, known in (
        *(("solver", solver, tuple(SOLVERS)) for solver in solvers),
        ("objective", settings.objective, OBJECTIVES),
        ("model", settings.model or MODELS[0], MODELS),
    ):
        if given not in known:
            raise SolverError(f"unknown {what} {given!r}; there are {', '.join(known)}")
    check_options(settings.time_limit, settings.seed, settings.workers, settings.weights)
    check_share(settings.max_extra_macs, settings.objective)


def run_case(
    case: Case, solver: str, settings: Settings, progress: Progress | None = None
) -> ComparisonRow:
    """One solver on one case; its gap is left open, see :func:`with_gaps`."""

    def tell(best: int, bound: int) -> None:
        if progress is not None:
            progress(solver, best, bound)

    row = ComparisonRow(
        label=case.label,
        amount=case.amount,
        side=case.side,
        solver=solver,
        objective=settings.objective,
        model=settings.model or ("arena" if settings.objective == "latency" else "tensor"),
        max_extra_macs=settings.max_extra_macs,
        status="failed",
        seconds=0.0,
    )
    if isinstance(case.problem, Instance):
        update = {"objective": case.problem.measure, "model": None, "max_extra_macs": 0.0}
        row = row.model_copy(update=update)
    start = time.perf_counter()
    try:
        if isinstance(case.problem, Instance):
            found = _solve_instance(case.problem, solver, settings, tell)
        else:
            found = _solve_network(*case.problem, solver, settings, tell)
    except Exception as error:  # whatever a solver fails with, the others shall have their rows
        found = {"reason": _reason(error), "seconds": time.perf_counter() - start}
    return row.model_copy(update=found)


def _solve_network(
    graph: ChannelGraph,
    masks: Masks,
    solver: str,
    settings: Settings,
    tell: Callable[[int, int], None],
) -> dict[str, object]:
    solution = solve(
        graph,
        masks,
        solver,
        settings.objective,
        settings.time_limit,
        model=settings.model,
        weights=settings.weights,
        max_extra_macs=settings.max_extra_macs,
        cost_model=settings.cost_model,
        seed=settings.seed,
        workers=settings.workers,
        progress=None if settings.max_extra_macs else tell,
    )
    return {
        "status": solution.status,
        "objective_value": solution.objective_value,
        "lower_bound": _telling(solution.lower_bound, solution.objective_value),
        "reads": solution.views + solution.windows + solution.gathers,
        "views": solution.views,
        "windows": solution.windows,
        "extra_macs": solution.extra_macs,
        "seconds": solution.times.solve,
    }


def _solve_instance(
    instance: Instance, solver: str, settings: Settings, tell: Callable[[int, int], None]
) -> dict[str, object]:
    start = time.perf_counter()
    outcome = solve_instance(
        instance,
        solver,
        time_limit=settings.time_limit,
        seed=settings.seed,
        workers=settings.workers,
        progress=tell,
    )
    seconds = time.perf_counter() - start
    held = satisfied(instance, outcome.orders)
    return {
        "status": "optimal" if outcome.optimal else "feasible",
        "objective_value": outcome.objective,
        "lower_bound": _telling(outcome.lower_bound, outcome.objective),
        "reads": len(instance.reads),
        "views": sum(is_view(read.view, held) for read in instance.reads),
        "seconds": seconds,
    }


def _telling(bound: int, value: int) -> int | None:
    """A bound that says something: nothing costs less than 0 anyway."""
    return bound if bound > 0 or bound == value else None


def _reason(error: Exception) -> str:
    """The message of an error of ours; of any other error also what it is."""
    text = " ".join(str(error).split())
    return text if isinstance(error, UpscaleError) else f"{type(error).__name__}: {text}"


def with_gaps(rows: Iterable[ComparisonRow]) -> tuple[ComparisonRow, ...]:
    """The rows with every gap measured against the best bound that is known for its problem."""
    rows = tuple(rows)
    best: dict[tuple[object, ...], int] = {}
    for row in rows:
        if row.lower_bound is not None:
            best[problem_of(row)] = max(best.get(problem_of(row), 0), row.lower_bound)
    return tuple(
        row.model_copy(update={"gap": _gap(row.objective_value, best.get(problem_of(row)))})
        for row in rows
    )


def problem_of(row: ComparisonRow) -> tuple[object, ...]:
    """The same for all rows of one problem."""
    return row.label, row.amount, row.side, row.objective, row.model, row.max_extra_macs


def _gap(value: int | None, bound: int | None) -> float | None:
    if value is None or bound is None:
        return None
    return (value - bound) / value if value else 0.0
