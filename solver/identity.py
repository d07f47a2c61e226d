"""No reordering at all: what an export without channel orders pays."""

from __future__ import annotations

from upscale_opt.solver.instance import (
    Instance,
    Orders,
    Outcome,
    identity_orders,
    satisfied,
    total_cost,
)


def solve_identity(instance: Instance) -> Outcome:
    """Keep every space in its original order."""
    return heuristic_outcome(instance, identity_orders(instance.spaces))


def heuristic_outcome(instance: Instance, orders: Orders) -> Outcome:
    """``orders`` with their cost, and what the reads without any alternative cost as a bound."""
    hopeless = [read.weight for read in instance.reads if read.view is None and not read.pieces]
    objective = total_cost(instance, satisfied(instance, orders))
    return Outcome(orders, objective, lower_bound=sum(hopeless))
