"""Solvers side by side: the same problem to each of them, and one row for what each makes of it."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from pydantic import Field
from typing_extensions import Unpack

from upscale_opt.errors import SolverError, UpscaleError
from upscale_opt.ir.base import Document, Record
from upscale_opt.ir.graph import ChannelGraph
from upscale_opt.ir.masks import Masks
from upscale_opt.ir.solution import Widths
from upscale_opt.solver.algorithms.registry import solve_instance
from upscale_opt.solver.api import instance_of, solve
from upscale_opt.solver.network.segments import Selection
from upscale_opt.solver.options import SolveFields, SolveOptions
from upscale_opt.solver.problem.instance import Instance, is_view, satisfied
from upscale_opt.solver.progress import Listener, Progress, improvements

USUAL_SOLVERS = ("identity", "greedy", "local-search", "cp-sat")
"""The solvers compared unless something else is asked for: the worst to the best."""


class ComparisonRow(Record):
    """One solver's result for one problem.

    Attributes:
        label: the network's (or instance's) name.
        amount: the share of channels dropped, where that is known.
        side: on which side of the layers they were dropped, where that is known.
        solver: the solver's name.
        objective: what was minimised; for a bare instance its measure, ``"copies"`` or
            ``"blocks"``.
        selection: ``"tensor"``, ``"segment"`` or ``"arena"``, see
            :class:`~upscale_opt.solver.options.SolveOptions`; ``model`` in JSON. Of several that
            were tried, the one taken.
        widths: of the plan, where it is for onnxruntime or the like, see
            :class:`~upscale_opt.ir.solution.Solution`; else ``"trimmed"``, or ``None`` without one.
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
    selection: Selection | None = Field(
        default=None, validation_alias="model", serialization_alias="model"
    )
    widths: Widths | None = None
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


def compare(
    graph: ChannelGraph,
    masks: Masks,
    solvers: Sequence[str] = USUAL_SOLVERS,
    *,
    options: SolveOptions | None = None,
    label: str = "",
    progress: Listener | None = None,
    **fields: Unpack[SolveFields],
) -> tuple[ComparisonRow, ...]:
    """Solve one problem with several solvers, one after the other.

    A solver that fails gets a row that says so, and the others go on.

    Args:
        graph: the channel graph.
        masks: which slices of each parameter are kept.
        solvers: their names, see :class:`~upscale_opt.solver.options.SolveOptions`.
        options: what all of them are given; its own ``solver`` does not count.
        label: what to call the problem in the rows.
        progress: told of every improvement, as a step with the solver's name.
        **fields: of the options, in place of those of ``options``.

    Returns:
        One row per solver, in the order of ``solvers``.

    Raises:
        SolverError: for an unknown solver, objective or selection, weights that name no read, a
            time limit that is not positive, or a share of multiply-adds that is negative or not
            for this objective.
        MaskError: if the masks do not fit the graph.
    """
    Masks.require(masks)
    masks.check(graph)
    asked = options_of(solvers, options, **fields)
    if asked[0].weights:
        instance_of(graph, masks, options=asked[0])
    case = Case((graph, masks), label)
    return with_gaps(run_case(case, one, progress) for one in asked)


def compare_instance(
    instance: Instance,
    solvers: Sequence[str] = USUAL_SOLVERS,
    *,
    options: SolveOptions | None = None,
    label: str = "",
    progress: Listener | None = None,
    **fields: Unpack[SolveFields],
) -> tuple[ComparisonRow, ...]:
    """Like :func:`compare`, for a problem without a network: time limit, seed and workers count.

    Raises:
        SolverError: for an unknown solver, or a time limit that is not positive.
    """
    case = Case(instance, label)
    asked = options_of(solvers, options, **fields)
    return with_gaps(run_case(case, one, progress) for one in asked)


def options_of(
    solvers: Collection[str],
    options: SolveOptions | None = None,
    **fields: Unpack[SolveFields],
) -> tuple[SolveOptions, ...]:
    """The options for each of the solvers: what none could make sense of is found out now.

    Raises:
        SolverError: naming it.
    """
    if isinstance(solvers, str) or not solvers or "solver" in fields:
        raise SolverError(
            "solvers must be a list of one name or more, such as ['greedy', 'cp-sat'], "
            f"not {fields.get('solver', solvers)!r}"
        )
    options = SolveOptions.of(options, **fields)
    return tuple(SolveOptions.of(options, solver=solver) for solver in solvers)


def run_case(case: Case, options: SolveOptions, progress: Listener | None = None) -> ComparisonRow:
    """The options' solver on one case; its gap is left open, see :func:`with_gaps`."""
    row = ComparisonRow(
        label=case.label,
        amount=case.amount,
        side=case.side,
        solver=options.solver,
        objective=options.objective,
        selection=options.selection or ("arena" if options.objective == "latency" else "tensor"),
        max_extra_macs=options.max_extra_macs,
        status="failed",
        seconds=0.0,
    )
    if isinstance(case.problem, Instance):
        update = {"objective": case.problem.measure, "selection": None, "max_extra_macs": 0.0}
        row = row.model_copy(update=update)
    start = time.perf_counter()
    try:
        if isinstance(case.problem, Instance):
            found = _solve_instance(case.problem, options, progress)
        else:
            found = _solve_network(*case.problem, options, progress)
    except Exception as error:  # whatever a solver fails with, the others shall have their rows
        found = {"reason": _reason(error), "seconds": time.perf_counter() - start}
    return row.model_copy(update=found)


def _solve_network(
    graph: ChannelGraph, masks: Masks, options: SolveOptions, progress: Listener | None
) -> dict[str, object]:
    def tell(event: Progress) -> None:
        if progress is not None:
            progress(replace(event, step=options.solver))

    solution = solve(graph, masks, options=options, progress=tell)
    return {
        "status": solution.status,
        "selection": solution.selection,
        "widths": solution.widths,
        "objective_value": solution.objective_value,
        "lower_bound": _telling(solution.lower_bound, solution.objective_value),
        "reads": solution.views + solution.windows + solution.gathers,
        "views": solution.views,
        "windows": solution.windows,
        "extra_macs": solution.extra_macs,
        "seconds": solution.times.solve,
    }


def _solve_instance(
    instance: Instance, options: SolveOptions, progress: Listener | None
) -> dict[str, object]:
    start = time.perf_counter()
    outcome = solve_instance(
        instance,
        options.solver,
        time_limit=options.time_limit,
        seed=options.seed,
        workers=options.workers,
        progress=improvements(progress, options.solver),
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
    """The same for all rows of one problem: what bounds one, bounds the others."""
    return (*case_of(row), row.selection, row.widths)


def case_of(row: ComparisonRow) -> tuple[object, ...]:
    """The same for all rows of one case, though plans may select elsewhere, or in other widths."""
    return row.label, row.amount, row.side, row.objective, row.max_extra_macs


def _gap(value: int | None, bound: int | None) -> float | None:
    if value is None or bound is None:
        return None
    return (value - bound) / value if value else 0.0
