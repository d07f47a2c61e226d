"""Local search: improve any orders, for as long as there is time. Proves nothing."""

from __future__ import annotations

import random
import time
from collections.abc import Callable

from upscale_opt.solver.algorithms.greedy import GRACE, greedy_orders
from upscale_opt.solver.algorithms.identity import heuristic_outcome, solve_identity
from upscale_opt.solver.algorithms.local_blocks import improve_blocks
from upscale_opt.solver.algorithms.local_copies import improve_copies
from upscale_opt.solver.problem.instance import Instance, Orders, Outcome, cost


def solve_local_search(
    instance: Instance,
    *,
    time_limit: float,
    seed: int = 0,
    workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> Outcome:
    """The better of the greedy and the original orders, improved.

    The search ends by itself after much work without an improvement, the same for the same seed,
    unless time runs out (or Ctrl-C is pressed) before.

    Args:
        instance: the problem.
        time_limit: in seconds; the greedy orders may take a little longer.
        seed: for all random choices.
        workers: makes no difference.
        progress: told the cost, and a bound that never changes.
    """
    deadline = time.monotonic() + time_limit
    best = solve_identity(instance)

    def take(orders: Orders) -> None:
        nonlocal best
        best = min(best, heuristic_outcome(instance, orders), key=lambda o: o.objective)
        if progress is not None:
            progress(best.objective, best.lower_bound)

    try:
        take(greedy_orders(instance, deadline=deadline + GRACE))
        if not best.optimal:
            improve(instance, best.orders, deadline=deadline, seed=seed, found=take)
    except KeyboardInterrupt:
        pass
    return best


def improve(
    instance: Instance,
    orders: Orders,
    *,
    deadline: float,
    seed: int = 0,
    found: Callable[[Orders], None] | None = None,
) -> Orders:
    """Orders that cost less than ``orders``, or these.

    Args:
        instance: the problem, under either measure.
        orders: valid ones.
        deadline: when to stop at the latest, by ``time.monotonic()``.
        seed: for all random choices.
        found: told all better orders at once; whoever wants to keep what is found before Ctrl-C,
            which comes through here as everywhere, has it from there.
    """
    search = improve_copies if instance.measure == "copies" else improve_blocks
    record = cost(instance, orders)
    for candidate in search(instance, orders, deadline, random.Random(seed)):
        value = cost(instance, candidate)
        if value < record:
            orders, record = candidate, value
            if found is not None:
                found(orders)
    return orders
