"""The curve of what other budgets would lose, on which a choice is one point."""

from __future__ import annotations

import numpy as np

from upscale_opt.ir.choice import TradeOff
from upscale_opt.solver.selection.moves import Hurry, descend, least
from upscale_opt.solver.selection.pickers import Picks, single_pickers
from upscale_opt.solver.selection.setting import Setting
from upscale_opt.solver.selection.state import State
from upscale_opt.solver.selection.tasks import thinned
from upscale_opt.solver.selection.widths import Widths

_LEVELS = 16
"""Of every chain; the curve is to be looked at."""

_STEP = 0.05
"""Shares between neighbouring points, if there are any so near."""

_CHEAP, _DEAR, _FINEST = -8.0, 1.0, 0.02
"""Prices, as powers of ten; and how near two of them may be."""


def trade_off(setting: Setting, hurry: Hurry) -> tuple[TradeOff, ...]:
    """Points from the whole network down to the least that can be had, none worse than another.

    Each is what a descent at one price for all resources finds (Everett 1963, as in
    :func:`~upscale_opt.solver.selection.moves.lagrangian`); copies are free.

    Args:
        setting: the question; of the budget, the wishes for layers count, and not the limits.
        hurry: when to stop; there are fewer points then.
    """
    if not setting.places:
        return ()
    pickers, _ = thinned(single_pickers(setting, aligned=setting.budget.round_to > 1), _LEVELS)
    widths = Widths(setting, pickers)
    before = np.array([limit.before for limit in setting.limits], dtype=np.float64)
    whole, small = State(widths, widths.start()), least(widths, hurry)
    points: list[TradeOff] = []

    def added(state: State) -> float:
        shares = state.used / before
        points.append(TradeOff(shares=tuple(map(float, shares)), loss=max(state.loss, 0.0)))
        return float(shares.mean())

    gaps: list[_Gap] = [(_CHEAP, _DEAR, added(whole), added(small), whole.picks)]
    while gaps and not hurry.over:
        low, high, above, below, picks = gaps.pop(
            max(range(len(gaps)), key=lambda g: _size(gaps[g]))
        )
        if above - below <= _STEP or high - low <= _FINEST:
            continue
        middle = (low + high) / 2
        state = State(widths, picks)
        descend(state, 10**middle * small.loss / before, hurry)
        share = added(state)
        gaps += [(low, middle, above, share, picks), (middle, high, share, below, state.picks)]
    return _front(points)


_Gap = tuple[float, float, float, float, Picks]
"""Two prices, the shares that are left at them, and the picks at the lower price."""


def _size(gap: _Gap) -> float:
    return gap[2] - gap[3]


def _front(points: list[TradeOff]) -> tuple[TradeOff, ...]:
    """The points that no other is as good as, from the greatest share to the least."""
    best: list[TradeOff] = []
    for point in sorted(points, key=lambda p: (p.loss, sum(p.shares))):
        if not best or sum(point.shares) < sum(best[-1].shares):
            best.append(point)
    return tuple(best)
