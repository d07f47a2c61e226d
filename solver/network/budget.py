"""Windows within a budget of multiply-adds: a price for them, raised until they fit.

The problem *copy least, with at most so many multiply-adds more* is solved by Lagrangian
relaxation: multiply-adds get a price, and at each price the problem is that of windows at a cost
(``algorithms/window_search.py``). The relaxation bounds what any orders and windows cost
(Fisher, 1981).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction

from upscale_opt.solver.network.posing import Problem
from upscale_opt.solver.network.sets import Edge, Ids
from upscale_opt.solver.network.windows import Windows
from upscale_opt.solver.problem.instance import (
    Improvement,
    Instance,
    Orders,
    Outcome,
    Proof,
    read_cost,
    satisfied,
    unwanted,
    window_costs,
)

_PRICES = 7
"""The number of prices that are tried."""

_SCALE = 1 << 10
"""Costs are multiplied by this, so that prices may be fractions."""


@dataclass(frozen=True)
class Found:
    """Orders, and the windows read under them.

    Attributes:
        outcome: the orders, what they cost with these windows, and the bound.
        windows: per edge, the channels read and not wanted.
    """

    outcome: Outcome
    windows: dict[Edge, Ids]


def solve_in_budget(
    problem: Problem,
    solve: Callable[[Instance, float], Outcome],
    share: float,
    time_limit: float,
    progress: Improvement | None = None,
) -> Found:
    """The best orders with windows that add at most ``share`` of the multiply-adds.

    Args:
        problem: what graph and masks ask for.
        solve: solves instances, with windows at a price or without, within so many seconds.
        share: of the multiply-adds without windows.
        time_limit: in seconds.
        progress: told the best value and the bound, after each price.
    """
    deadline = time.monotonic() + time_limit
    windows = Windows(problem.graph, problem.sets, problem.segments)
    budget = int(share * windows.total())
    plain = problem.formulation.instance
    instance = windows.offer(problem.formulation, lambda edge, chain: windows.multiply_adds(chain))
    outcome = solve(plain, time_limit / 4)
    best = _Filled(problem, instance, outcome.orders, budget)
    bound = Fraction(0)
    if progress is not None:
        progress(best.value, 0)
    offered = [read for read in instance.reads if read.window is not None]
    if not offered or outcome.interrupted or outcome.objective == 0:
        least = 0 if offered else outcome.lower_bound
        return Found(_judged(best, outcome, least), best.windows)
    low = Fraction(0)
    high = max(_dearest(read.weight, read.window.price) for read in offered if read.window)
    price = high / 8
    interrupted = False
    for step in range(_PRICES):
        left = deadline - time.monotonic()
        if left <= 0 or interrupted:
            break
        priced, cheapest = _priced(instance, price)
        tried = solve(priced, left / (_PRICES - step))
        interrupted = tried.interrupted
        bound = max(bound, Fraction(tried.lower_bound, _SCALE) - cheapest * budget)
        filled = _Filled(problem, instance, tried.orders, budget)
        if (filled.value, filled.spent) < (best.value, best.spent):
            best = filled
        if progress is not None:
            progress(best.value, _whole(bound))
        if filled.value == 0 or filled.asked(priced) > budget:  # as cheap, with fewer windows?
            low = price
        else:
            high = price
        price = (low + high) / 2 if low else high / 8
    outcome = replace(outcome, interrupted=interrupted)
    return Found(_judged(best, outcome, _whole(bound)), best.windows)


def _whole(bound: Fraction) -> int:
    """The least whole number that is not below it, nor negative."""
    return max(0, math.ceil(bound))


def _dearest(weight: int, macs: int) -> Fraction:
    """The price at which even a window with one channel too many costs what a gather does."""
    return Fraction(weight, max(macs, 1))


def _priced(instance: Instance, price: Fraction) -> tuple[Instance, Fraction]:
    """The instance with windows at a price per multiply-add, and the highest that it really has.

    Prices are rounded to whole numbers per channel, so reads pay slightly different ones; the
    bound holds for the highest.
    """
    highest = Fraction(0)
    reads = []
    for read in instance.reads:
        window = read.window
        if window is not None:
            asked = max(1, int(price * window.price * _SCALE))
            highest = max(highest, Fraction(asked, _SCALE * window.price))
            window = replace(window, price=asked)
        pieces = tuple(replace(piece, weight=piece.weight * _SCALE) for piece in read.pieces)
        reads.append(replace(read, weight=read.weight * _SCALE, pieces=pieces, window=window))
    return replace(instance, reads=tuple(reads)), highest


class _Filled:
    """Orders with the windows that spare most, as far as the budget goes.

    Attributes:
        orders: the orders.
        windows: per edge, the channels read and not wanted.
        value: what the orders cost with these windows.
        spent: the multiply-adds of the windows.
    """

    def __init__(self, problem: Problem, instance: Instance, orders: Orders, budget: int) -> None:
        self.orders = orders
        held = satisfied(instance, orders)
        costs = [read_cost(read, held) for read in instance.reads]
        prices = window_costs(instance, orders)
        useful = [i for i, p in enumerate(prices) if p is not None and p > 0 and costs[i] > 0]
        useful.sort(key=lambda i: (Fraction(prices[i] or 0, costs[i]), i))
        self.windows: dict[Edge, Ids] = {}
        self.value = sum(costs)
        self.spent = 0
        for i in useful:
            asked = prices[i] or 0
            read = instance.reads[i]
            if asked <= budget and read.view:
                order = orders[instance.demands[read.view[0]].space]
                between = unwanted(instance, read, order)
                assert between is not None
                budget -= asked
                self.spent += asked
                self.value -= costs[i]
                self.windows[problem.formulation.reads[i]] = between
        self._macs, self._costs = prices, costs

    def asked(self, priced: Instance) -> int:
        """The multiply-adds of all windows that are worth their price."""
        paid = window_costs(priced, self.orders)
        return sum(
            macs
            for macs, price, cost in zip(self._macs, paid, self._costs, strict=True)
            if macs is not None and price is not None and price < cost * _SCALE
        )


def _judged(best: _Filled, outcome: Outcome, bound: int) -> Outcome:
    return replace(
        outcome,
        orders=best.orders,
        objective=best.value,
        lower_bound=min(bound, best.value),
        proof=Proof() if best.windows or bound < outcome.lower_bound else outcome.proof,
    )
