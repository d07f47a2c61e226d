"""``choose``: masks within a budget; and what several solvers make of the same question."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

from upscale_opt.errors import BudgetError, UpscaleError
from upscale_opt.ir.base import Document, Record
from upscale_opt.ir.budget import Budget
from upscale_opt.ir.choice import Choice, ResourceUse
from upscale_opt.ir.graph import ChannelGraph
from upscale_opt.ir.losses import Losses
from upscale_opt.solver.options import SolveOptions
from upscale_opt.solver.progress import Listener, Progress
from upscale_opt.solver.selection.answer import answer
from upscale_opt.solver.selection.moves import Hurry
from upscale_opt.solver.selection.registry import SELECTORS, selector
from upscale_opt.solver.selection.setting import Setting
from upscale_opt.solver.selection.tasks import Task, Told

_SEARCH = 0.8
"""The share of the time to search in; the rest is for bounds."""

SHARES = 1_000_000
"""Progress tells losses in millionths of the first one, as whole numbers."""


def choose(
    graph: ChannelGraph,
    losses: Losses,
    budget: Budget,
    *,
    solver: str = "joint",
    time_limit: float = 60.0,
    seed: int = 0,
    workers: int = 1,
    progress: Listener | None = None,
) -> Choice:
    """Choose what every layer reads, within a budget, for the least loss.

    The orders of channels, and what is copied, follow from the masks:
    ``solve(graph, choice.masks)``. See ``docs/mathematics.md``.

    Args:
        graph: the channel graph.
        losses: of the sets that its readers may keep.
        budget: what may remain.
        solver: ``"joint"`` (every reader for itself; given time for both, no worse than the others
            by these losses), ``"constrained"`` (all readers of a space alike, as HALP),
            ``"greedy"`` (the least loss per saved cost), ``"uniform"`` or
            ``"uniform-constrained"`` (the same share everywhere).
        time_limit: in seconds. Ctrl-C, too, ends the search with the best choice so far.
        seed: the same seed gives the same choice, unless the time runs out.
        workers: threads.
        progress: told of every better choice: loss and bound in millionths of the first loss.

    Raises:
        BudgetError: if the budget contradicts itself, names layers that are not there, or is met by
            no masks; it says how little can be had.
        SolverError: for an unknown solver, or a time limit that is not positive.
        SchemaError: if the losses are of another graph.
    """
    options = SolveOptions(time_limit=time_limit, seed=seed, workers=workers)
    if not isinstance(budget, Budget):
        raise BudgetError(f"expected a Budget, such as Budget(macs=0.5), not {budget!r}")
    selector(solver)
    hurry = Hurry(options.time_limit * _SEARCH)
    told = _told(progress, "choose")
    task = Task(Setting(graph, losses, budget), hurry, options.seed, options.workers, told)
    return answer(task, solver, options.time_limit)


def _told(listener: Listener | None, step: str) -> Told | None:
    if listener is None:
        return None
    first: list[float] = []

    def tell(loss: float, bound: float) -> None:
        first.append(loss)
        unit = (first[0] or 1.0) / SHARES
        listener(Progress(step, round(loss / unit), int(bound / unit)))

    return tell


class ChoiceRow(Record):
    """One solver's choice.

    Attributes:
        solver: its name.
        status: ``"failed"`` if it found nothing within the budget; then ``reason`` says why.
        loss: of its choice.
        lower_bound: no masks lose less, as far as any of the solvers proved it.
        resources: what the budget limits.
        channels: those read by all layers together.
        seconds: how long it took.
        reason: why it failed.
    """

    solver: str
    status: Literal["optimal", "feasible", "failed"]
    loss: float | None = None
    lower_bound: float | None = None
    resources: tuple[ResourceUse, ...] = ()
    channels: int | None = None
    seconds: float = 0.0
    reason: str | None = None


class ChoiceComparison(Document):
    """Rows as a JSON document.

    Attributes:
        budget: what was asked for.
        rows: one per solver.
    """

    what: ClassVar[str] = "comparison of choices"

    budget: Budget
    rows: tuple[ChoiceRow, ...]


def compare_choices(
    graph: ChannelGraph,
    losses: Losses,
    budget: Budget,
    solvers: Sequence[str] = tuple(SELECTORS),
    *,
    time_limit: float = 60.0,
    seed: int = 0,
    workers: int = 1,
    progress: Listener | None = None,
) -> ChoiceComparison:
    """Put one budget to several solvers, one after the other.

    A solver that finds nothing gets a row that says so, and the others go on.

    Args:
        graph: the channel graph.
        losses: of the sets that its readers may keep.
        budget: what may remain.
        solvers: their names, see :func:`choose`.
        time_limit: in seconds, for each of them.
        seed: of random choices.
        workers: threads.
        progress: told of every better choice, as a step with the solver's name.

    Raises:
        SolverError: for an unknown solver.
    """
    for name in solvers:
        selector(name)
    rows: list[ChoiceRow] = []
    for name in solvers:

        def tell(event: Progress, name: str = name) -> None:
            if progress is not None:
                progress(Progress(name, event.value, event.bound))

        try:
            choice = choose(
                graph,
                losses,
                budget,
                solver=name,
                time_limit=time_limit,
                seed=seed,
                workers=workers,
                progress=tell,
            )
        except UpscaleError as error:
            rows.append(ChoiceRow(solver=name, status="failed", reason=str(error)))
            continue
        rows.append(
            ChoiceRow(
                solver=name,
                status=choice.status,
                loss=choice.loss,
                lower_bound=choice.lower_bound,
                resources=choice.resources,
                channels=sum(layer.kept for layer in choice.layers),
                seconds=choice.times.search + choice.times.bound,
            )
        )
    bounds = [row.lower_bound for row in rows if row.lower_bound is not None]
    best = max(bounds, default=None)
    return ChoiceComparison(
        budget=budget,
        rows=tuple(
            row if row.loss is None else row.model_copy(update={"lower_bound": best})
            for row in rows
        ),
    )
