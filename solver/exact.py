"""Proven optimal orders: a CP-SAT master with lazily separated conflicts.

A combinatorial Benders decomposition (Codato & Fischetti 2006): the master chooses demands at least
cost, PQ-trees say which of them cannot hold together, and what they say is added to the master,
until it chooses demands that can. Every master is a relaxation, so its bound is always true; every
choice is repaired into orders, so there is always an answer.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Collection

from upscale_opt.solver.conflicts import Cut, Family, small_cuts
from upscale_opt.solver.greedy import solve_greedy
from upscale_opt.solver.instance import (
    Instance,
    Orders,
    Outcome,
    identity_orders,
    satisfied,
    total_cost,
)
from upscale_opt.solver.master import Master
from upscale_opt.solver.packing import pack, served_by
from upscale_opt.solver.pqtree import PQTree
from upscale_opt.solver.reduction import Component, Core, reduce_instance

Progress = Callable[[int, int], None]
"""Told the best cost so far and the bound, whenever one of them improves."""

_MAX_TRIPLES = 300_000
"""Spaces with more triples than this leave them to the search for larger conflicts."""

_SHUFFLES = 4
"""In how many orders a choice of demands is searched for conflicts."""


def solve_exact(
    instance: Instance,
    *,
    time_limit: float,
    seed: int = 0,
    workers: int = 1,
    progress: Progress | None = None,
) -> Outcome:
    """The best orders, and the proof that they are.

    If time runs out (or Ctrl-C is pressed), the best orders so far come with a true bound. A run
    with one worker that is not cut off by the time is the same for the same seed.

    Args:
        instance: the problem.
        time_limit: in seconds; a first answer may take a little longer if it is very small.
        seed: for CP-SAT, and for the search for conflicts.
        workers: threads of CP-SAT.
        progress: told the incumbent and the bound.
    """
    deadline = time.monotonic() + time_limit
    orders = identity_orders(instance.spaces)
    objective = total_cost(instance, satisfied(instance, orders))
    core: Core | None = None
    searches: list[_Search] = []
    try:
        core = reduce_instance(instance)
        searches = _searches(instance, core, deadline, seed, workers)
        _run(searches, core.constant, deadline, progress)
    except KeyboardInterrupt:
        pass
    if core is None or len(searches) < len(core.components):
        return Outcome(orders, objective, core.constant if core else 0)
    best = _orders(instance, searches)
    conflicts = {conflict for search in searches for conflict in search.proof()}
    return Outcome(
        orders=best,
        objective=total_cost(instance, satisfied(instance, best)),
        lower_bound=core.constant + sum(search.bound for search in searches),
        conflicts=tuple(sorted(map(core.original, conflicts), key=lambda c: (len(c), c))),
    )


def _searches(
    instance: Instance, core: Core, deadline: float, seed: int, workers: int
) -> list[_Search]:
    """One search per component, each starting from the better of identity and greedy."""
    starts = [core.restrict(satisfied(instance, identity_orders(instance.spaces)))]
    if core.components and time.monotonic() < deadline:
        starts.append(core.restrict(satisfied(instance, solve_greedy(instance).orders)))
    searches = []
    for component in core.components:
        families = _families(instance, core, component)
        search = _Search(component, families, seed, workers)
        for start in starts:
            search.improve(start)
        searches.append(search)
    return searches


def _families(instance: Instance, core: Core, component: Component) -> dict[int, Family]:
    """The component's demands per space, those of heavy reads first."""
    worth = dict.fromkeys(component.demands, 0)
    for read in component.reads:
        for demand in read.view or ():
            worth[demand] += read.weight
        for piece in read.pieces:
            for demand in piece.view or ():
                worth[demand] += piece.weight
    ranked = sorted(component.demands, key=lambda demand: (-worth[demand], demand))
    families = {}
    for number in component.spaces:
        channels = instance.spaces[number].channels
        here = {d: core.demands[d] for d in ranked if core.demands[d].space == number}
        families[number] = Family(len(channels), PQTree(channels, ends=True), here)
    return families


def _run(
    searches: list[_Search], constant: int, deadline: float, progress: Progress | None
) -> None:
    """Give each open search a fair share of the time, small components first."""

    def report() -> None:
        if progress is not None:
            cost = sum(search.cost for search in searches)
            bound = sum(search.bound for search in searches)
            progress(constant + cost, constant + bound)

    report()
    waiting = [search for search in searches if not search.done]
    while waiting:
        for place, search in enumerate(waiting):
            now = time.monotonic()
            if now >= deadline:
                return
            search.run(now + (deadline - now) / (len(waiting) - place), report)
            if search.interrupted:
                return
        waiting = [search for search in waiting if not search.done]


def _orders(instance: Instance, searches: list[_Search]) -> Orders:
    orders = list(identity_orders(instance.spaces))
    for search in searches:
        for space, tree in search.trees.items():
            orders[space] = tuple(tree.frontier())
    return tuple(orders)


class _Search:
    """The search for the best orders of one component; can be run several times.

    Attributes:
        cost: of the best orders so far.
        bound: no orders cost less.
        trees: per space, the orders that reach ``cost``.
        interrupted: the user wants to stop.
    """

    def __init__(
        self, component: Component, families: dict[int, Family], seed: int, workers: int
    ) -> None:
        self._component, self._families = component, families
        self._seed, self._workers = seed, workers
        self._random = random.Random(seed)
        self._master: Master | None = None
        self._conflicts: set[tuple[int, ...]] = set()
        self._fresh: list[tuple[int, ...]] = []
        first = pack(component, families, ())
        self.cost = first.cost(component.reads)
        self.trees, self._held = first.trees, frozenset(first.held)
        self.bound = 0
        self.interrupted = False
        self._exhausted = False

    @property
    def done(self) -> bool:
        """Whether there is nothing left to find out.

        Usually because the orders are optimal; but costs near 2**58 and above reach the master
        rounded, and a gap of that rounding can remain.
        """
        return self._exhausted or self.bound >= self.cost

    def improve(self, preferred: Collection[int]) -> None:
        """Look for better orders that serve reads as ``preferred`` does, as far as possible."""
        packing = pack(self._component, self._families, preferred)
        cost = packing.cost(self._component.reads)
        if cost < self.cost:
            self.cost, self.trees, self._held = cost, packing.trees, frozenset(packing.held)

    def proof(self) -> set[tuple[int, ...]]:
        """The conflicts (of core demands) that ``bound`` rests on."""
        return self._conflicts if self.bound > 0 else set()

    def run(self, deadline: float, report: Callable[[], None]) -> None:
        """Alternate between master and trees until optimal or out of time."""

        def visit(chosen: frozenset[int], bound: int) -> None:
            known = self.cost, self.bound
            self.bound = max(self.bound, bound)
            self._separate(chosen)
            self.improve(chosen)
            if (self.cost, self.bound) != known:
                report()

        if self._master is None:
            self._master = self._first_master(deadline)
        while not self.done and (left := deadline - time.monotonic()) > 0:
            self._master.add(Cut(conflict, len(conflict) - 1) for conflict in self._fresh)
            self._fresh.clear()
            relaxed = self._master.run(left, self._held, visit)
            visit(relaxed.chosen or frozenset(), relaxed.bound)
            if not relaxed.finished:
                self.interrupted = deadline - time.monotonic() > left / 10
                return
            self._exhausted = not self._fresh

    def _first_master(self, deadline: float) -> Master:
        """The master that knows all conflicts of two or three demands."""
        master = Master(self._component, self._seed, self._workers)
        for family in self._families.values():
            conflicts, cuts = small_cuts(family, lambda: time.monotonic() > deadline, _MAX_TRIPLES)
            self._conflicts.update(conflicts)
            master.add(cuts)
        return master

    def _separate(self, chosen: frozenset[int]) -> None:
        """Find conflicts among the demands that ``chosen`` makes use of."""
        views = [v for read in self._component.reads for v in served_by(read, chosen)]
        needed = {demand for view in views for demand in view}
        for family in self._families.values():
            here = [demand for demand in family.demands if demand in needed]
            for _ in range(_SHUFFLES):
                pool = list(here)
                while (conflict := family.conflict(pool)) is not None:
                    if conflict not in self._conflicts:
                        self._conflicts.add(conflict)
                        self._fresh.append(conflict)
                    pool.remove(self._random.choice(conflict))
                self._random.shuffle(here)
