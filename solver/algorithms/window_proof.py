"""Orders under which windows are narrow, proven optimal by CP-SAT where atoms are few.

The atoms are intervals on a line that must not overlap; where each demand begins and ends, and with
that the width of each window, are variables.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
from ortools.sat.python import cp_model

from upscale_opt.solver.algorithms.interruptible import (
    solve_interruptibly,
    whole_bound,
)
from upscale_opt.solver.algorithms.window_line import Line

_FEW_ATOMS = 14
"""Up to so many atoms CP-SAT is asked to prove the optimum."""

_EFFORT = 4.0
"""The most that it may take for each part, in CP-SAT's deterministic seconds."""


def is_small(line: Line) -> bool:
    """The line is small and simple enough for the optimum to be proven."""
    return len(line.sizes) <= _FEW_ATOMS and line.simple


def prove(line: Line, hint: Sequence[int], deadline: float) -> tuple[list[int], int | None]:
    """The optimum by CP-SAT, if it can be proven in the time."""
    model = cp_model.CpModel()
    ends = np.cumsum(line.sizes[np.asarray(hint)])
    begin = {a: int(e - line.sizes[a]) for a, e in zip(hint, ends, strict=True)}
    places: list[cp_model.IntVar] = []
    for atom, space in enumerate(line.home):
        size = int(line.sizes[atom])
        places.append(model.new_int_var(line.low[space], line.high[space] - size, ""))
        model.add_hint(places[atom], begin[atom])
    model.add_no_overlap(
        model.new_fixed_size_interval_var(places[a], int(line.sizes[a]), "")
        for a in range(len(places))
    )
    spans = [_span(line, model, places, place) for place in range(len(line.needed))]
    window_of = {read: (row, place, p) for row, (read, place, p) in enumerate(line.windows)}
    costs: list[cp_model.LinearExprT] = []
    for number, read in enumerate(line.reads):
        if read.view is None:
            costs.append(read.weight)
            continue
        view = model.new_bool_var("")
        for demand in read.view:
            place = line.place[demand]
            first, last = spans[place]
            kind, low, high = line.kinds[place]
            model.add(last - first == int(line.needed[place])).only_enforce_if(view)
            if kind == "prefix":
                model.add(first == low).only_enforce_if(view)
            if kind == "suffix":
                model.add(last == high).only_enforce_if(view)
        gathers = [view]
        if number in window_of:
            window, paid = _window(line, model, places, spans, window_of[number], read.weight)
            gathers.append(window)
            costs.append(paid)
        costs.append(read.weight * (1 - sum(gathers)))
        model.add(sum(gathers) <= 1)
    model.minimize(cp_model.LinearExpr.sum(costs))
    solver = cp_model.CpSolver()
    solver.parameters.num_workers = 1
    solver.parameters.max_deterministic_time = _EFFORT
    solver.parameters.max_time_in_seconds = max(deadline - time.monotonic(), 0.01)
    status, interrupted = solve_interruptibly(solver, model)
    if interrupted:
        raise KeyboardInterrupt
    if status not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
        return list(hint), None
    sequence = sorted(range(len(places)), key=lambda a: solver.value(places[a]))
    if line.cost(sequence) > line.cost(hint):
        sequence = list(hint)
    total = sum(read.weight for read in line.reads)
    bound = whole_bound(solver.best_objective_bound, total)
    return sequence, min(bound, line.cost(sequence))


def _span(
    line: Line, model: cp_model.CpModel, places: Sequence[cp_model.IntVar], place: int
) -> tuple[cp_model.IntVar, cp_model.IntVar]:
    """The places where the channels of a demand begin and end."""
    _, low, high = line.kinds[place]
    first, last = model.new_int_var(low, high, ""), model.new_int_var(low, high, "")
    members = np.flatnonzero(line.wanted[place]).tolist()
    model.add_min_equality(first, [places[a] for a in members])
    model.add_max_equality(last, [places[a] + int(line.sizes[a]) for a in members])
    return first, last


def _window(
    line: Line,
    model: cp_model.CpModel,
    places: Sequence[cp_model.IntVar],
    spans: Sequence[tuple[cp_model.IntVar, cp_model.IntVar]],
    window: tuple[int, int, int],
    weight: int,
) -> tuple[cp_model.IntVar, cp_model.IntVar]:
    """Variables: a read is served by a window, and the cost of that."""
    row, place, price = window
    first, last = spans[place]
    chosen = model.new_bool_var("")
    paid = model.new_int_var(0, weight, "")
    extra = last - first - int(line.needed[place])
    model.add(paid >= price * extra).only_enforce_if(chosen)
    for atom in np.flatnonzero(line.foreign[row]).tolist():
        before = model.new_bool_var("")
        model.add(places[atom] + int(line.sizes[atom]) <= first).only_enforce_if(before, chosen)
        model.add(places[atom] >= last).only_enforce_if(~before, chosen)
    return chosen, paid
