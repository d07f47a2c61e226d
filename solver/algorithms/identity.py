"""No reordering at all: what an export without channel orders pays."""

from __future__ import annotations

from upscale_opt.solver.problem.instance import (
    Instance,
    Orders,
    Outcome,
    Read,
    cost,
    identity_orders,
)


def solve_identity(instance: Instance) -> Outcome:
    """Keep every space in its original order."""
    return heuristic_outcome(instance, identity_orders(instance.spaces))


def heuristic_outcome(instance: Instance, orders: Orders) -> Outcome:
    """``orders`` with their cost, and what the reads without any alternative cost as a bound."""
    if instance.measure == "blocks":
        bound = sum(read.weight for read in instance.reads if _has_a_run(read))
    else:
        hopeless = (r.weight for r in instance.reads if r.view is None and not r.pieces)
        bound = sum(hopeless)
    return Outcome(orders, cost(instance, orders), bound)


def _has_a_run(read: Read) -> bool:
    return not read.parts or any(part.channels for part in read.parts)
