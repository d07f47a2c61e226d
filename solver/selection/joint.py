"""The program for masks, budget and widths together: descents; CP-SAT where columns are few.

Every reader picks a column. Steps of least loss per saved cost, long ones first, give a first
answer, and descents at a price for the resources better ones; the constrained answer and uniform
shares are tried as well, so that the program is not worse than they are by its own measure, if time
allows for both; then random restarts improve on it. Where time is limited, gathers are paid for
afterwards, and once more in advance, where readers of a space follow one order: either may do
better. Where there are few columns, the exact program searches them all.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import partial

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
    timed = setting.budget.limits_time
    apart = _Scales(task, aligned=setting.budget.round_to > 1)
    ways = [apart, _Scales(task, gathers=True, aligned=True)] if timed else [apart]
    for way in ways:
        way.most = fit(task, way.fine, partial(way.greedy, seconds=total * 0.05), rounds=4)
    fit(task, apart.fine, lambda widths, most: _filled(task, widths, most), rounds=2)
    for left, way in zip(range(len(ways), 0, -1), ways, strict=True):
        fit(task, way.fine, partial(way.search, task=task, share=1 / left), most=way.most)
    fit(task, apart.fine, lambda widths, most: greedy(widths, most, task.hurry))


class _Scales:
    """The same decisions with all their levels, and with few.

    Attributes:
        fine: with all.
        most: of shape (resources,): limits in general position, for the budget's.
    """

    def __init__(self, task: Task, *, gathers: bool = False, aligned: bool) -> None:
        setting = task.setting
        self.most = task.most
        self.fine = Widths(setting, single_pickers(setting, aligned=aligned), gathers=gathers)
        pickers, self._levels = thinned(self.fine.pickers, _COARSE)
        self._coarse = Widths(setting, pickers, self.fine.joints, gathers=gathers)

    def greedy(self, fine: Widths, most: Floats, *, seconds: float) -> State | None:
        """Steps of least loss per saved cost, long ones first, then what still fits."""
        found = greedy(self._coarse, most, Hurry(max(seconds, 1.0)))
        if found is None:
            return None
        state = State(fine, self._finer(found.picks))
        improve(state, most, Hurry(seconds * 0.3))
        return state

    def search(self, fine: Widths, most: Floats, *, task: Task, share: float) -> State | None:
        """Picks within limits, in a share of the time left: descents, then restarts."""
        budget = task.hurry.left * share
        start = self._descend(most, budget)
        if start is None:
            return lagrangian(fine, most, Hurry(budget * 0.4))
        state = State(fine, start)
        improve(state, most, Hurry(budget * 0.1))
        if is_small(fine.pickers):  # they are searched exactly, later
            return state
        hurry = Hurry(budget * 0.25)
        finer = lagrangian(fine, most, hurry, [state.picks], price_at(state, most))
        if finer is not None and finer.loss < state.loss:
            state = finer
        return _restarts(task, state, most, Hurry(budget * 0.35))

    def _descend(self, most: Floats, seconds: float) -> Picks | None:
        """Picks of few levels each, in a part of so many seconds."""
        starts = [
            state.picks
            for state in (
                greedy(self._coarse, most, Hurry(seconds * 0.1)),
                uniform(self._coarse, most),
            )
            if state is not None
        ]
        found = lagrangian(self._coarse, most, Hurry(seconds * 0.3), starts)
        return None if found is None else self._finer(found.picks)

    def _finer(self, picks: Picks) -> Picks:
        return [(f, self._levels[p][f][level]) for p, (f, level) in enumerate(picks)]


def _filled(task: Task, widths: Widths, most: Floats) -> State | None:
    """Uniform shares, and what still fits: quick, and uses the limits even where time is short."""
    state = uniform(widths, most)
    if state is not None:
        improve(state, most, Hurry(max(task.hurry.left * 0.05, 0.3)))
    return state


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
