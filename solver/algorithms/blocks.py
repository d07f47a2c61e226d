"""The fewest contiguous runs: consecutive block minimisation, as a travelling salesman's path.

Channels that no read tells apart (one *atom*) lie side by side in some best order: taking one of
them out of its place and putting it next to another never adds a run, by the triangle inequality.
Along an order, a read's runs begin wherever an atom of it follows one that is not of it. So an
order of a space is a path through its atoms, from an end that belongs to no read and back to it,
whose arcs cost the runs that begin there (Kou 1977). Where two spaces lie side by side in the
memory of a read, one run is spared if it has both the last atom of the one and the first of the
other; that couples the paths.

The paths are circuit constraints of CP-SAT. Large spaces, whose circuits would have too many arcs,
are left to local search, with Held and Karp's bound. Another bound comes from the conflicts: a read
that is not a view has two runs at least, and the exact solver knows how many reads cannot be views.
"""

from __future__ import annotations

import math
import time
from dataclasses import replace

from upscale_opt.solver.algorithms.block_circuit import Circuit
from upscale_opt.solver.algorithms.block_parts import parts_of, relaxed_bound
from upscale_opt.solver.algorithms.exact import solve_exact
from upscale_opt.solver.algorithms.greedy import greedy_orders
from upscale_opt.solver.algorithms.local_search import improve
from upscale_opt.solver.problem.instance import (
    Improvement,
    Instance,
    Orders,
    Outcome,
    Proof,
    Read,
    as_copies,
    blocks,
    cost,
    identity_orders,
)

_MAX_ARCS = 40_000
"""Parts of the problem with more arcs than this are left to local search."""

_LARGEST_TOTAL = 1 << 50
"""Nor are those whose costs a floating-point number could not hold with certainty."""

_SHARE = 0.1
"""The share of the time left that local search and each of the simple bounds may take."""


def solve_blocks(
    instance: Instance,
    *,
    time_limit: float,
    seed: int = 0,
    workers: int = 1,
    progress: Improvement | None = None,
) -> Outcome:
    """Orders under which the reads fall into the fewest runs, with a bound.

    Args:
        instance: the problem, of measure ``"blocks"``.
        time_limit: in seconds; a first answer may take a little longer if it is very small.
        seed: for CP-SAT and the local search.
        workers: threads of CP-SAT.
        progress: told the cost of the best orders and the bound.
    """
    deadline = time.monotonic() + time_limit
    search = _Search(instance, progress)
    try:
        limit = _SHARE * time_limit
        search.consider(greedy_orders(instance, whole=False, deadline=time.monotonic() + limit))
        relaxed, constant = as_copies(instance)
        outcome = solve_exact(relaxed, time_limit=limit, seed=seed, workers=workers)
        search.bound = max(search.bound, constant + outcome.lower_bound)
        search.proof = _known(outcome.proof, len(instance.demands))
        search.consider(outcome.orders)
        if outcome.interrupted:
            deadline = 0.0
        if not search.optimal:
            search.descend(time.monotonic() + _SHARE * (deadline - time.monotonic()), seed)
        goes_on = search.optimal or search.split(deadline, seed, workers)
        if not search.optimal and goes_on:
            search.descend(deadline, seed + 1)
    except KeyboardInterrupt:
        pass
    return Outcome(search.orders, search.cost, search.bound, search.proof)


def _known(proof: Proof, demands: int) -> Proof:
    """The proof, if it speaks of the instance's own demands only."""
    return proof if all(demand < demands for demand in proof.demands()) else Proof()


class _Search:
    """The best orders and bound so far."""

    def __init__(self, instance: Instance, progress: Improvement | None) -> None:
        self.instance = instance
        self.orders = identity_orders(instance.spaces)
        self.cost = cost(instance, self.orders)
        self.bound = sum(_runs_at_least(read) for read in instance.reads)
        self.proof = Proof()
        self._progress = progress

    @property
    def optimal(self) -> bool:
        return self.bound >= self.cost

    def consider(self, orders: Orders) -> None:
        value = cost(self.instance, orders)
        if value < self.cost:
            self.orders, self.cost = orders, value
        self._report(self.cost)

    def _report(self, value: int) -> None:
        if self._progress is not None:
            self._progress(value, self.bound)

    def descend(self, deadline: float, seed: int) -> None:
        """Improve the orders by local search."""
        improve(self.instance, self.orders, deadline=deadline, seed=seed, found=self.consider)

    def split(self, deadline: float, seed: int, workers: int) -> bool:
        """Solve the parts of the problem that share no read across spaces, the smallest first.

        Returns:
            False if the user wants to stop.
        """
        unit = math.gcd(*(read.weight for read in self.instance.reads)) or 1
        light = tuple(replace(r, weight=r.weight // unit) for r in self.instance.reads)
        parts = parts_of(replace(self.instance, reads=light))
        bounds = [part.trivial_bound for part in parts]
        constant = sum(read.weight for read in light if not read.parts)
        for place, part in enumerate(parts):
            now = time.monotonic()
            if now >= deadline:
                return True
            if part.runs > _LARGEST_TOTAL:
                continue
            bounds[place] = relaxed_bound(part, now + _SHARE * (deadline - now))
            self.bound = max(self.bound, unit * (constant + sum(bounds)))
            if part.arcs > _MAX_ARCS:
                continue
            limit = (deadline - now) / (len(parts) - place)
            own = sum(read.weight * blocks(read, self.orders) for read in part.reads)
            others = self.cost - unit * own
            bounds_of_others = constant + sum(bounds) - bounds[place]

            def tell(
                value: int, bound: int, more: int = others, floor: int = bounds_of_others
            ) -> None:
                self.bound = max(self.bound, unit * (floor + bound))
                self._report(more + unit * value)

            circuit = Circuit(self.instance, part, self.orders)
            paths = circuit.solve(limit, seed, workers, tell)
            bounds[place] = max(bounds[place], paths.bound)
            self.bound = max(self.bound, unit * (constant + sum(bounds)))
            new = [paths.orders.get(space, order) for space, order in enumerate(self.orders)]
            self.consider(tuple(new))
            if paths.interrupted:
                return False
        return True


def _runs_at_least(read: Read) -> int:
    some = not read.parts or any(part.channels for part in read.parts)
    return read.weight if some else 0
