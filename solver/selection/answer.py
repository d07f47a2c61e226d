"""The answer to a question: masks within a budget, with their bounds, as a document."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

import numpy as np

from upscale_opt.errors import BudgetError
from upscale_opt.ir.choice import Choice, ChoiceTimes, LayerChoice, ResourceUse, TradeOff
from upscale_opt.ir.graph import Layer
from upscale_opt.solver.selection.bound import Bound
from upscale_opt.solver.selection.joint import is_small, polish, price_at, settle
from upscale_opt.solver.selection.moves import Hurry, least
from upscale_opt.solver.selection.pickers import (
    Picker,
    Picks,
    dropped_by,
    single_pickers,
    space_pickers,
)
from upscale_opt.solver.selection.registry import selector
from upscale_opt.solver.selection.setting import NOUNS, Dropped, Setting
from upscale_opt.solver.selection.state import State
from upscale_opt.solver.selection.tasks import Found, Task
from upscale_opt.solver.selection.trade_off import trade_off
from upscale_opt.solver.selection.widths import Widths


def answer(task: Task, solver: str, time_limit: float) -> Choice:
    """The choice, see :func:`upscale_opt.solver.choose`; as good as it is, if interrupted.

    Args:
        task: the question, with its time for the search.
        solver: the solver's name.
        time_limit: seconds, bounds included.

    Raises:
        BudgetError: if no masks meet the budget.
        KeyboardInterrupt: if interrupted before there was any choice.
    """
    start = searched = time.perf_counter()
    lower = 0.0
    points: tuple[TradeOff, ...] = ()
    try:
        _find(task, solver, time_limit)
        points = trade_off(task.setting, Hurry(time_limit * 0.05))
        searched = time.perf_counter()
        hurry = Hurry(max(time_limit * 0.2, task.hurry.left))
        lower, task.bound = _bounds(task, hurry, exactly=solver == "joint")
    except KeyboardInterrupt:
        if task.best is None:
            raise
        searched = time.perf_counter() if searched == start else searched
    assert task.best is not None
    times = ChoiceTimes(search=searched - start, bound=time.perf_counter() - searched)
    document = _document(task, task.best, solver, lower, task.bound, times)
    return document.model_copy(update={"trade_off": points})


def _find(task: Task, solver: str, time_limit: float) -> None:
    """Find the task's best choice.

    Raises:
        BudgetError: if there is none.
    """
    search = selector(solver)
    setting = task.setting
    whole: Dropped = tuple(frozenset() for _ in setting.places)
    if setting.fits(whole):
        task.offer(whole)
    if not setting.places and task.best is None:
        raise BudgetError(
            "no masks meet this budget: no layer of this network may lose channels; "
            "look at the graph's opaque operations, and at spaces that are fixed"
        )
    if task.best is None or task.best.loss > 0:
        search(task)
    if task.best is None and solver == "joint" and is_small(single_pickers(setting)):
        settle(task, Hurry(time_limit * 0.2))
    if task.best is None:
        used = _least(task)
        if task.best is None:
            raise BudgetError(_impossible(task, used))


def _bounds(task: Task, hurry: Hurry, *, exactly: bool) -> tuple[float, float]:
    """Bounds for all masks, and for all columns; if asked, by an exact search of few columns."""
    assert task.best is not None
    setting = task.setting
    pickers = single_pickers(setting)
    column = 0.0
    if task.best.loss <= 0:
        return 0.0, 0.0
    if exactly and is_small(pickers):
        polish(task, Hurry(hurry.left * 0.2))
        column = settle(task, Hurry(hurry.left * 0.6))
    best = task.best
    near = _picks_near(setting, pickers, best)
    price = price_at(State(Widths(setting, pickers), near), task.most)

    def told(bound: float) -> None:
        task.bound = max(task.bound, bound)
        task.tell()

    lower = 0.0
    if any(place.reader.floors for place in setting.places):
        lower = Bound(setting, best.dropped).find(Hurry(hurry.left * 0.3), best.loss, price, told)
    if column < best.loss * (1 - 1e-6):
        bound = Bound(setting, best.dropped, pickers)
        column = max(column, bound.find(hurry, best.loss, price, told))
    return lower, max(lower, column)


def _picks_near(setting: Setting, pickers: Sequence[Picker], found: Found) -> Picks:
    """Picks of about the sizes of a choice."""
    picks: Picks = []
    for picker in pickers:
        best = (math.inf, 0, 0)
        for number, family in enumerate(picker.families):
            part = family.parts[0]
            unit = setting.places[part.reader].reader.unit
            away = np.abs(family.cuts[:, 0] - len(found.dropped[part.reader]) // unit)
            level = int(away.argmin())
            best = min(best, (float(away[level]) + float(family.losses[level]), number, level))
        picks.append(best[1:])
    return picks


def _least(task: Task) -> list[float] | None:
    """About the least of each resource that can be had; what the search missed is offered, too.

    Of shape (limits,), or ``None`` if nothing is to be chosen.
    """
    setting = task.setting
    hurry = Hurry(10.0)
    least_used: list[float] | None = None
    rounds = setting.budget.round_to > 1
    ways = [single_pickers(setting, aligned=rounds), space_pickers(setting)]
    if rounds:  # where not even readers that follow one order suffice
        ways.append(single_pickers(setting))
    for pickers in ways:
        if pickers and task.best is None:
            state = least(Widths(setting, pickers), hurry)
            dropped = dropped_by(setting, pickers, state.picks)
            used = task.used(dropped).tolist()
            least_used = used if least_used is None else [*map(min, used, least_used)]
            if setting.fits(dropped):
                task.offer(dropped)
    return least_used


def _impossible(task: Task, used: list[float] | None) -> str:
    """Say how little can be had, and whether less could without rounding."""
    setting = task.setting
    step = setting.budget.round_to
    rounded = f", in multiples of round_to={step}," if step > 1 else ""
    text = f"no masks meet this budget: the least that can be had{rounded} is about "
    if used is None:
        return text + ", ".join(f"all of {limit.resource}" for limit in setting.limits) + _WAYS_OUT
    text += ", ".join(
        f"{amount / limit.before:.2%} of the {NOUNS[limit.resource]} "
        f"(asked for: {limit.most / limit.before:.2%})"
        for amount, limit in zip(used, setting.limits, strict=True)
    )
    if all(amount <= limit.most for amount, limit in zip(used, setting.limits, strict=True)):
        text += ", but not of all at once"
    if step > 1:
        budget = setting.budget.model_copy(update={"round_to": 1})
        loose = Task(
            Setting(setting.graph, setting.losses, budget), task.hurry, task.seed, task.workers
        )
        _least(loose)
        if loose.best is not None:
            return f"{text}; without rounding it can be met: round less, or allow more"
    return text + _WAYS_OUT


_WAYS_OUT = "; allow more, or leave fewer layers alone"


def _document(
    task: Task, found: Found, solver: str, lower: float, column: float, times: ChoiceTimes
) -> Choice:
    setting = task.setting
    account = setting.account(found.dropped)
    layers = []
    operations = {op.name: op for op in setting.graph.operations}
    for place, book, slices in zip(setting.places, setting.books, found.dropped, strict=True):
        reader = place.reader
        op = operations[reader.operation]
        written = written_before = 0
        if isinstance(op, Layer):
            written = account.written.get(op.outputs[0], 0)
            written_before = setting.before.written.get(op.outputs[0], 0)
        chain, dropped = book.column(slices)
        layers.append(
            LayerChoice(
                operation=reader.operation,
                parameter=reader.parameter,
                kept=place.width(len(slices) // reader.unit),
                before=place.width(0),
                written=written,
                written_before=written_before,
                loss=book.loss(slices)[0],
                chain=chain,
                dropped=dropped,
            )
        )
    column = min(column, found.loss)
    known = all(layer.chain or not layer.loss for layer in layers)  # or else it is an estimate
    resources = tuple(
        ResourceUse(
            resource=limit.resource, used=float(used), limit=limit.most, before=limit.before
        )
        for limit, used in zip(setting.limits, found.used, strict=True)
    )
    return Choice(
        graph_fingerprint=setting.graph.masks_fingerprint,
        budget=setting.budget,
        solver=solver,
        seed=task.seed,
        status="optimal" if known and found.loss <= column * (1 + 1e-6) else "feasible",
        loss=found.loss,
        lower_bound=min(lower, column),
        column_bound=column,
        resources=resources,
        layers=tuple(layers),
        masks=setting.masks(found.dropped),
        times=times,
    )
