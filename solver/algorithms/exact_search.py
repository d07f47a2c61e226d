"""The search for the best orders of one component: master, trees, repair, and again."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Protocol

from upscale_opt.solver.algorithms.exact_master import Relaxed
from upscale_opt.solver.problem.conflicts import Cut, Family, small_cuts
from upscale_opt.solver.problem.instance import Instance, Read
from upscale_opt.solver.problem.packing import pack, served_by
from upscale_opt.solver.problem.pqtree import PQTree
from upscale_opt.solver.problem.reduction import Component, Core

_MAX_TRIPLES = 300_000
"""Spaces with more triples than this leave them to the search for larger conflicts."""

_SHUFFLES = 4
"""In how many orders a choice of demands is searched for conflicts."""


class AnyMaster(Protocol):
    """A master: it chooses demands at least cost, knowing only the conflicts that it was told."""

    def add(self, cuts: Iterable[Cut]) -> None:
        """Forbid that more than ``cut.limit`` of ``cut.demands`` hold."""

    def run(
        self,
        time_limit: float,
        hint: Collection[int],
        on_solution: Callable[[frozenset[int], int], None],
    ) -> Relaxed:
        """Solve what is known so far; see :meth:`Master.run`."""


MasterFactory = Callable[[Component, int, int], AnyMaster]
"""Makes the master of a component, given the seed and the number of workers."""


class Search:
    """The search for the best orders of one component; can be run several times.

    Attributes:
        cost: of the best orders so far.
        bound: no orders cost less.
        cuts: that the bound rests on, in the sequence found.
        trees: per space, the orders that reach ``cost``.
        interrupted: the user wants to stop.
        exhausted: what the master chose last can hold, so nothing better is left to be found, but
            for what rounding hid.
    """

    def __init__(
        self,
        component: Component,
        families: dict[int, Family],
        seed: int,
        workers: int,
        master: MasterFactory,
    ) -> None:
        self.component, self._families = component, families
        self._seed, self._workers = seed, workers
        self._random = random.Random(seed)
        self._make_master = master
        self._master: AnyMaster | None = None
        self.cuts: dict[Cut, None] = {}
        self._fresh: list[Cut] = []
        first = pack(component, families, ())
        self.cost = first.cost(component.reads)
        self.trees, self.held = first.trees, frozenset(first.held)
        self.bound = 0
        self.interrupted = False
        self.exhausted = False

    @property
    def done(self) -> bool:
        """Nothing is left to find out.

        Usually because the orders are optimal; but costs near 2**58 and above reach the master
        rounded, and a gap of that rounding can remain.
        """
        return self.exhausted or self.bound >= self.cost

    def improve(self, preferred: Collection[int]) -> None:
        """Look for better orders that serve reads as ``preferred`` does, as far as possible."""
        packing = pack(self.component, self._families, preferred)
        cost = packing.cost(self.component.reads)
        if cost < self.cost:
            self.cost, self.trees, self.held = cost, packing.trees, frozenset(packing.held)

    def run(self, deadline: float, report: Callable[[], None]) -> None:
        """Alternate between master and trees until optimal or out of time."""

        def visit(chosen: frozenset[int], bound: int) -> None:
            known = self.cost, self.bound
            self.bound = max(self.bound, bound)
            self._separate(chosen, deadline)
            self.improve(chosen)
            if (self.cost, self.bound) != known:
                report()

        if self._master is None:
            self._master = self._first_master(deadline)
        while not self.done and (left := deadline - time.monotonic()) > 0:
            self._master.add(self._fresh)
            self._fresh.clear()
            relaxed = self._master.run(left, self.held, visit)
            visit(relaxed.chosen or frozenset(), relaxed.bound)
            if not relaxed.finished:
                self.interrupted = relaxed.interrupted or deadline - time.monotonic() > left / 10
                return
            self.exhausted = not self._fresh

    def _first_master(self, deadline: float) -> AnyMaster:
        """The master that knows all conflicts of two or three demands."""
        master = self._make_master(self.component, self._seed, self._workers)
        for family in self._families.values():
            cuts = small_cuts(family, lambda: time.monotonic() > deadline, _MAX_TRIPLES)
            self.cuts.update(dict.fromkeys(cuts))
            master.add(cuts)
        return master

    def _separate(self, chosen: frozenset[int], deadline: float) -> None:
        """Find conflicts among the demands that ``chosen`` makes use of: one at least."""
        needed = used_demands(self.component.reads, chosen)
        for cut in conflicts_among(needed, self._families, self._random):
            if cut not in self.cuts:
                self.cuts[cut] = None
                self._fresh.append(cut)
            if time.monotonic() >= deadline:
                return


def used_demands(reads: Iterable[Read], chosen: Collection[int]) -> frozenset[int]:
    """The demands that serve ``reads`` as well as ``chosen`` allows."""
    views = [view for read in reads for view in served_by(read, chosen)]
    return frozenset(demand for view in views for demand in view)


def conflicts_among(
    demands: Collection[int], families: Mapping[int, Family], rng: random.Random
) -> Iterator[Cut]:
    """Minimal conflicts among ``demands``; none if they can all hold."""
    for family in families.values():
        here = [demand for demand in family.demands if demand in demands]
        for _ in range(_SHUFFLES):
            pool = list(here)
            while (conflict := family.conflict(pool)) is not None:
                yield Cut(conflict, len(conflict) - 1)
                pool.remove(rng.choice(conflict))
            rng.shuffle(here)


def families_of(instance: Instance, core: Core, component: Component) -> dict[int, Family]:
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
