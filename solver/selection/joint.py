"""The program for masks, budget and widths together: descents; CP-SAT where columns are few.

Every reader picks a column. Descents at a price for the resources give a first answer (and prices);
the constrained answer and uniform shares are tried as well, so that the program is not worse than
they are by its own measure, if time allows for both; then random restarts improve on it. Where time
is limited, gathers are paid for afterwards, and once more in advance: either may do better. Where
there are few columns, the exact program searches them all.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np

from upscale_opt.solver.selection.bound import finest_joints
from upscale_opt.solver.selection.moves import (
    Hurry,
    at_share,
    descend,
    greedy,
    improve,
    lagrangian,
    uniform,
    within,
)
from upscale_opt.solver.selection.pickers import (
    Picker,
    Picks,
    dropped_by,
    single_pickers,
    space_pickers,
)
from upscale_opt.solver.selection.program import Program
from upscale_opt.solver.selection.setting import Floats
from upscale_opt.solver.selection.state import State
from upscale_opt.solver.selection.tasks import Task, fit, thinned
from upscale_opt.solver.selection.widths import Widths

_COARSE = 24
_ROUNDS = 60
_SMALL = 1500
_FEW = 8
"""Columns and pickers up to which the exact program is given everything."""
_TRIES = 400


def choose_jointly(task: Task) -> None:
    """Offer the best choices that can be found to ``task``."""
    setting = task.setting
    total = task.hurry.left
    coupled = space_pickers(setting)
    if coupled:
        together = Widths(setting, coupled)
        fit(task, together, uniform)
        first = Hurry(total * 0.15)
        fit(task, together, lambda widths, most: lagrangian(widths, most, first))
    apart = Widths(setting, single_pickers(setting, aligned=setting.budget.round_to > 1))
    timed = setting.budget.limits_time
    fit(task, apart, lambda widths, most: _filled(task, widths, most))
    share = Hurry(total * 0.2)
    fit(task, apart, lambda widths, most: greedy(widths, most, share))
    fit(task, apart, lambda widths, most: _search(task, widths, most, 0.5 if timed else 1.0))
    if timed and not task.hurry.over:
        priced = Widths(setting, single_pickers(setting, aligned=True), gathers=True)
        fit(task, priced, lambda widths, most: _search(task, widths, most))


def _filled(task: Task, widths: Widths, most: Floats) -> State | None:
    """Uniform shares, and what still fits: quick, and uses the limits even where time is short."""
    state = uniform(widths, most)
    if state is not None:
        improve(state, most, Hurry(max(task.hurry.left * 0.05, 0.3)))
    return state


def _search(task: Task, widths: Widths, most: Floats, share: float = 1.0) -> State | None:
    """Picks within limits, in a share of the time: coarse descents, fine ones, then restarts."""
    budget = task.hurry.left * share
    start = _coarse(task, widths, most, budget)
    if start is None:
        return lagrangian(widths, most, Hurry(budget * 0.4))
    state = State(widths, start)
    improve(state, most, Hurry(budget * 0.1))
    if is_small(widths.pickers):  # they are searched exactly, later
        return state
    fine = Hurry(budget * 0.25)
    finer = lagrangian(widths, most, fine, [state.picks], price_at(state, most))
    if finer is not None and finer.loss < state.loss:
        state = finer
    return _restarts(task, state, most, Hurry(budget * 0.35))


def _coarse(task: Task, widths: Widths, most: Floats, budget: float) -> Picks | None:
    """Picks of few levels each, in a part of so many seconds."""
    pickers, levels = thinned(widths.pickers, _COARSE)
    coarse = Widths(task.setting, pickers, widths.joints, gathers=widths.gathers)
    starts = [
        state.picks
        for state in (
            greedy(coarse, most, Hurry(budget * 0.1)),
            uniform(coarse, most),
        )
        if state is not None
    ]
    found = lagrangian(coarse, most, Hurry(budget * 0.3), starts)
    if found is None:
        return None
    return [(f, levels[p][f][level]) for p, (f, level) in enumerate(found.picks)]


def _restarts(task: Task, state: State, most: Floats, hurry: Hurry) -> State:
    """Disturb some picks, descend at the price of the limits, and keep what is better."""
    rng = random.Random(task.seed)
    widths, best = state.widths, State(state.widths, state.picks)
    price = price_at(best, most)
    count = len(widths.pickers)
    for _ in range(_ROUNDS):
        if hurry.over:
            break
        tried = State(widths, best.picks)
        for picker in rng.sample(range(count), max(1, min(count, 2 + count // 8))):
            family = rng.randrange(len(widths.pickers[picker].families))
            share = rng.random()
            origin = widths.pickers[picker].families[family].origin
            tried.pick(picker, *at_share(widths, picker, share, origin))
        factor = 1.0
        for _ in range(6):
            descend(tried, price * factor, hurry)
            if within(tried.used, most):
                break
            factor *= 1.15
        if not within(tried.used, most):
            continue
        improve(tried, most, hurry)
        if tried.loss < best.loss * (1 - 1e-9):
            best = State(widths, tried.picks)
            price = price_at(best, most)
    return best


def price_at(state: State, most: Floats) -> Floats:
    """The loss per unit at which the picks are about as they are: what the last steps paid."""
    widths = state.widths
    rates: list[Floats] = []
    used = state.used
    for picker in range(len(state.picks)):
        family, level = state.picks[picker]
        losses = widths.pickers[picker].families[family].losses
        row = state.alternatives(picker)[family]
        for other in (level - 1, level + 1):
            if 0 <= other < len(losses):
                saved = float(((used - row[:, other]) / most).sum())
                lost = float(losses[other] - losses[level])
                if saved * lost > 0:
                    rates.append(np.array(lost / saved))
    return float(np.median(rates)) / most if rates else np.zeros(len(most))


def is_small(pickers: Sequence[Picker]) -> bool:
    """The exact program can be given everything."""
    columns = sum(len(family.losses) for picker in pickers for family in picker.families)
    return columns <= _SMALL and len(pickers) <= _FEW


def polish(task: Task, hurry: Hurry) -> None:
    """Try single changes of the best choice, each of them counted exactly, until none helps."""
    setting = task.setting
    pickers = single_pickers(setting)
    changed = task.best is not None
    while changed and task.best is not None:
        changed = False
        before = task.best
        for picker in pickers:
            now = sum(
                setting.books[part.reader].loss(before.dropped[part.reader])[0]
                for part in picker.families[0].parts
            )
            options = [
                (float(family.losses[level]), f, level)
                for f, family in enumerate(picker.families)
                for level in range(len(family.losses))
                if family.losses[level] < now * (1 - 1e-9)
            ]
            for _, f, level in sorted(options):
                if hurry.over:
                    return
                dropped = list(before.dropped)
                family = picker.families[f]
                for part, cut in zip(family.parts, family.cuts[level], strict=True):
                    gone = [s for step in part.steps[: int(cut)] for s in step]
                    dropped[part.reader] = frozenset(gone)
                if task.offer(tuple(dropped)) is not None:
                    changed = True
                    break
            if changed:
                break


def settle(task: Task, hurry: Hurry) -> float:
    """Search all columns exactly, best first, and offer the first choice that meets the budget.

    Every tensor stores at least what it needs itself; with that alone the program is a relaxation.
    Its answers are counted, and excluded while they take more.

    Returns:
        What no choice of columns loses less than.
    """
    setting = task.setting
    pickers = single_pickers(setting)
    widths = Widths(setting, pickers, finest_joints(setting), relaxed=True)
    program = Program(widths, task.most)
    bound = 0.0
    for _ in range(_TRIES):
        answer = program.solve(hurry.left, seed=task.seed, workers=task.workers)
        if answer.impossible:
            return bound
        bound = max(bound, answer.bound)
        if answer.picks is not None:
            task.offer(dropped_by(setting, pickers, answer.picks))
        if answer.interrupted:
            raise KeyboardInterrupt
        done = task.best is not None and task.best.loss <= bound * (1 + 1e-6)
        if done or answer.picks is None or hurry.over:
            break
        program.forbid(answer.picks)
    return bound
