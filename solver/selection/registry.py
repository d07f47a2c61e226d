"""The solvers that choose masks, by name."""

from __future__ import annotations

import difflib
from collections.abc import Callable

from upscale_opt.errors import SolverError
from upscale_opt.solver.selection.joint import choose_jointly
from upscale_opt.solver.selection.moves import greedy, lagrangian, uniform
from upscale_opt.solver.selection.pickers import single_pickers, space_pickers
from upscale_opt.solver.selection.tasks import Task, fit
from upscale_opt.solver.selection.widths import Widths

Selector = Callable[[Task], None]
"""Looks for good choices, and offers them to the task."""


def _constrained(task: Task) -> None:
    """All readers of a space keep the same channels: a knapsack over coupled groups."""
    pickers = space_pickers(task.setting)
    if pickers:
        together = Widths(task.setting, pickers)
        fit(task, together, uniform)  # in case that time is short
        fit(task, together, lambda widths, most: lagrangian(widths, most, task.hurry))


def _greedy(task: Task) -> None:
    """Unconstrained: the least loss per saved cost, step by step."""
    pickers = single_pickers(task.setting, aligned=task.setting.budget.round_to > 1)
    fit(task, Widths(task.setting, pickers), lambda widths, most: greedy(widths, most, task.hurry))


def _uniform(task: Task) -> None:
    """The same share of every layer's channels."""
    pickers = single_pickers(task.setting, aligned=task.setting.budget.round_to > 1)
    fit(task, Widths(task.setting, pickers), uniform)


def _uniform_constrained(task: Task) -> None:
    """The same share of every space's channels."""
    pickers = space_pickers(task.setting)
    if pickers:
        fit(task, Widths(task.setting, pickers), uniform)


SELECTORS: dict[str, Selector] = {
    "joint": choose_jointly,
    "constrained": _constrained,
    "greedy": _greedy,
    "uniform": _uniform,
    "uniform-constrained": _uniform_constrained,
}


def selector(name: str) -> Selector:
    """The solver of that name.

    Raises:
        SolverError: there is none.
    """
    if name not in SELECTORS:
        near = difflib.get_close_matches(name, SELECTORS, n=1)
        known = ", ".join(map(repr, SELECTORS))
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise SolverError(f"unknown solver {name!r}; those that choose masks are {known}{hint}")
    return SELECTORS[name]
