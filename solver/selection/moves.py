"""Heuristics on picks: descent at a price, uniform shares, and least loss per saved cost."""

from __future__ import annotations

import heapq
import itertools
import time
from collections.abc import Sequence

import numpy as np

from upscale_opt.solver.selection.pickers import Picks
from upscale_opt.solver.selection.setting import Floats
from upscale_opt.solver.selection.state import State
from upscale_opt.solver.selection.widths import Widths

_TINY = 1e-12
_SWEEPS = 12


class Hurry:
    """A deadline.

    Args:
        seconds: from now.
    """

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds

    @property
    def left(self) -> float:
        """The seconds left; never negative."""
        return max(0.0, self._end - time.monotonic())

    @property
    def over(self) -> bool:
        """No time is left."""
        return self.left <= 0


def within(used: Floats, most: Floats) -> bool:
    """All limits hold, the rounding of sums apart."""
    return bool((used <= most * (1 + 1e-12)).all())


def descend(state: State, price: Floats, hurry: Hurry) -> None:
    """Change one pick at a time while loss and priced resources together fall.

    Args:
        state: changed in place.
        price: of shape (resources,): loss per unit.
        hurry: when to stop.
    """
    for _ in range(_SWEEPS):
        changed = False
        for picker in range(len(state.picks)):
            if hurry.over:
                return
            changed |= _best_move(state, picker, price)
        if not changed:
            return


def _best_move(state: State, picker: int, price: Floats) -> bool:
    families = state.widths.pickers[picker].families
    tables = [
        family.losses + price @ used
        for family, used in zip(families, state.alternatives(picker), strict=True)
    ]
    family, level = state.picks[picker]
    now = tables[family][level]
    number = min(range(len(tables)), key=lambda f: float(tables[f].min()))
    best = int(tables[number].argmin())
    if tables[number][best] < now - _TINY * abs(now):
        state.pick(picker, number, best)
        return True
    return False


def improve(state: State, most: Floats, hurry: Hurry) -> None:
    """Change one pick at a time while the loss falls and the limits hold."""
    for _ in range(_SWEEPS):
        changed = False
        for picker in range(len(state.picks)):
            if hurry.over:
                return
            families = state.widths.pickers[picker].families
            family, level = state.picks[picker]
            now = float(families[family].losses[level])
            best = (now - _TINY * abs(now), family, level)
            for number, used in enumerate(state.alternatives(picker)):
                fits = (used <= most[:, None]).all(axis=0)
                losses = np.where(fits, families[number].losses, np.inf)
                at = int(losses.argmin())
                if losses[at] < best[0]:
                    best = (float(losses[at]), number, at)
            if best[1:] != (family, level):
                state.pick(picker, best[1], best[2])
                changed = True
        if not changed:
            return


def blocks_of(widths: Widths) -> list[list[int]]:
    """Pickers that only together make a tensor narrower."""
    found: dict[tuple[int, ...], None] = {}
    for node in widths.nodes:
        if node.stored and 1 < len(node.ranks) <= _BLOCK:
            found[tuple(sorted(node.ranks))] = None
    return [list(block) for block in found]


_BLOCK = 24
_SHARES = np.linspace(0.05, 1.0, 20)


def descend_in_blocks(
    state: State, price: Floats, blocks: Sequence[Sequence[int]], hurry: Hurry
) -> bool:
    """Let whole blocks move to a common share where that pays; tell if any did."""
    changed = False
    for block in blocks:
        origins = dict.fromkeys(
            family.origin for p in block for family in state.widths.pickers[p].families
        )
        before = [state.picks[p] for p in block]
        best, picks = state.loss + float(price @ state.used), before
        for origin, share in itertools.product(origins, _SHARES):
            if hurry.over:
                break
            for p in block:
                state.pick(p, *at_share(state.widths, p, share, origin))
            value = state.loss + float(price @ state.used)
            if value < best * (1 - 1e-9):
                best, picks = value, [state.picks[p] for p in block]
        for p, pick in zip(block, picks, strict=True):
            state.pick(p, *pick)
        changed |= picks != before
    return changed


def at_share(widths: Widths, picker: int, share: float, origin: str = "") -> tuple[int, int]:
    """The pick that keeps about a share of the channels that may go."""
    families = widths.pickers[picker].families
    number = next((n for n, f in enumerate(families) if f.origin == origin), 0)
    family = families[number]
    steps = np.array([max(len(part.steps), 1) for part in family.parts])
    kept = 1 - (family.cuts / steps).mean(axis=1)
    return number, int(np.abs(kept - share).argmin())


def least(widths: Widths, hurry: Hurry) -> State:
    """Picks that take about the least that can be had, of each resource as much as of another."""
    scale = 1 / np.maximum(State(widths, widths.start()).used, 1.0)
    best: State | None = None
    origins = dict.fromkeys(f.origin for p in widths.pickers for f in p.families)
    for origin in origins:
        picks = [at_share(widths, p, 0.0, origin) for p in range(len(widths.pickers))]
        state = State(widths, picks)
        descend(state, scale * 1e12, hurry)
        if best is None or float((state.used * scale).sum()) < float((best.used * scale).sum()):
            best = state
    assert best is not None
    return best


def lagrangian(
    widths: Widths,
    most: Floats,
    hurry: Hurry,
    starts: Sequence[Picks] = (),
    around: Floats | None = None,
) -> State | None:
    """The best picks within limits that descents at growing prices find.

    Everett, *Generalized Lagrange multiplier method*, Operations Research 11, 1963: what is best at
    a price is best for as much as it takes.

    Args:
        widths: the functions.
        most: of shape (resources,).
        hurry: when to stop.
        starts: picks to improve, besides.
        around: prices of shape (resources,), near which to search.

    Returns:
        ``None`` if none of the picks tried are within the limits.
    """
    found: list[State] = []

    def consider(state: State) -> None:
        if within(state.used, most) and (not found or state.loss < found[0].loss):
            found[:] = [State(widths, state.picks)]

    blocks = blocks_of(widths)
    full = State(widths, widths.start())
    if within(full.used, most):
        return full
    small = least(widths, hurry)
    consider(small)
    scale = max(small.loss, _TINY)
    weights = np.ones(len(most))
    state = State(widths, widths.start())
    low, high, steps = -6.0, 3.0, 16
    if around is not None and float(around @ most) > 0:
        middle = float(np.log10((around @ most) / (scale * len(most))))
        low, high, steps = middle - 0.4, middle + 0.4, 8
        for picks in starts[:1]:
            state = State(widths, picks)
    for _ in range(steps):
        exponent = (low + high) / 2
        price = 10**exponent * scale * weights / most
        descend(state, price, hurry)
        if descend_in_blocks(state, price, blocks, hurry):
            descend(state, price, hurry)
        excess = state.used / most
        weights = np.maximum(weights * excess / excess.max(), 1e-3)
        if within(state.used, most):
            high = exponent
            consider(state)
            filled = State(widths, state.picks)
            improve(filled, most, hurry)
            consider(filled)
        else:
            low = exponent
        if hurry.over:
            break
    for picks in starts:
        state = State(widths, picks)
        if within(state.used, most):
            improve(state, most, hurry)
        consider(state)
    return found[0] if found else None


def uniform(widths: Widths, most: Floats) -> State | None:
    """The same share of every reader's channels, as much as the limits allow."""
    best: State | None = None
    origins = dict.fromkeys(f.origin for p in widths.pickers for f in p.families)
    for origin in origins:
        low, high = 0, _PARTS + 1  # what a greater share takes is more, or as good as
        while high > low:
            middle = (low + high) // 2
            share = 1 - middle / _PARTS
            picks = [at_share(widths, p, share, origin) for p in range(len(widths.pickers))]
            state = State(widths, picks)
            if within(state.used, most):
                high = middle
                if best is None or state.loss < best.loss:
                    best = state
            else:
                low = middle + 1
    return best


_PARTS = 200
"""Uniform shares are multiples of one part in so many."""


def greedy(widths: Widths, most: Floats, hurry: Hurry) -> State | None:
    """One step after the other, each time that which loses least for what it saves.

    If time runs out before the limits hold, uniform shares.
    """
    state = State(widths, widths.start())
    waiting: list[tuple[float, int]] = []

    def offer(picker: int) -> tuple[float, tuple[int, int]] | None:
        families = widths.pickers[picker].families
        family, level = state.picks[picker]
        now, used = float(families[family].losses[level]), state.used
        best: tuple[float, tuple[int, int]] | None = None
        over = used > most
        for number, other in enumerate(state.alternatives(picker)):
            saved = np.where(over[:, None], (used[:, None] - other) / most[:, None], 0).sum(axis=0)
            useful = saved > _TINY
            if useful.any():
                rate = np.where(
                    useful,
                    (families[number].losses - now) / np.where(useful, saved, 1.0),
                    np.inf,
                )
                at = int(rate.argmin())
                if best is None or rate[at] < best[0]:
                    best = (float(rate[at]), (number, at))
        return best

    for picker in range(len(state.picks)):
        first = offer(picker)
        if first is not None:
            heapq.heappush(waiting, (first[0], picker))
    stuck: set[int] = set()
    while waiting and not within(state.used, most):
        if hurry.over:
            return uniform(widths, most)
        _, picker = heapq.heappop(waiting)
        now = offer(picker)
        if now is None:
            stuck.add(picker)
            continue
        if waiting and now[0] > waiting[0][0] * (1 + 1e-9):
            heapq.heappush(waiting, (now[0], picker))
            continue
        state.pick(picker, *now[1])
        again = offer(picker)
        if again is not None:
            heapq.heappush(waiting, (again[0], picker))
        for other in stuck:  # what others read may have kept it from saving anything
            heapq.heappush(waiting, (0.0, other))
        stuck.clear()
    return state if within(state.used, most) else None
