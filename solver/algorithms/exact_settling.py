"""Among orders of least cost, those that meet the most wishes: the second of two objectives.

A wish costs nothing to be refused. It says that a tensor could be narrower if some channels of its
were consecutive. The search is the same as for the reads: a master that must keep to the least
cost, trees that refuse what cannot hold together, and conflicts between the two.
"""

from __future__ import annotations

import random
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

from upscale_opt.disjoint_sets import UnionFind
from upscale_opt.solver.algorithms.exact_master import Master
from upscale_opt.solver.algorithms.exact_search import (
    Search,
    conflicts_among,
    families_of,
    used_demands,
)
from upscale_opt.solver.problem.conflicts import Cut
from upscale_opt.solver.problem.instance import Instance, Read, is_view
from upscale_opt.solver.problem.packing import Packing, served_by
from upscale_opt.solver.problem.pqtree import PQTree
from upscale_opt.solver.problem.reduction import Component, Core, demands_of

_ROUNDS = 20
"""The number of times that a master is asked before the best orders so far must do."""

_EFFORT = 0.5
"""The most that the master may take each time, in CP-SAT's deterministic seconds."""


def settle(
    instance: Instance,
    core: Core,
    searches: Sequence[Search],
    *,
    seed: int,
    workers: int,
    deadline: float,
) -> dict[int, PQTree]:
    """Per space, orders that cost what ``searches`` found and meet many wishes.

    As many as can be met, if the work this takes stays within bounds; else those that fit to the
    orders found, the heaviest first.

    Args:
        instance: the problem.
        core: its core.
        searches: one per component, in their sequence.
        seed: for CP-SAT and the search for conflicts.
        workers: threads of CP-SAT.
        deadline: when to stop at the latest, by ``time.monotonic()``.

    Raises:
        KeyboardInterrupt: after Ctrl-C.
    """
    trees = {space: tree for search in searches for space, tree in search.trees.items()}
    for group in _groups(core, searches):
        settling = _Settling(instance, core, group, random.Random(seed))
        if all(search.bound == search.cost for search in group.searches):
            settling.improve(seed, workers, deadline)
        trees.update(settling.best.trees)
    return trees


@dataclass(frozen=True)
class _Group:
    """Wishes, and the searches in whose spaces they are."""

    wishes: tuple[Read, ...]
    spaces: tuple[int, ...]
    searches: tuple[Search, ...]


def _groups(core: Core, searches: Sequence[Search]) -> Iterator[_Group]:
    union = UnionFind()
    for search in searches:
        union.join(search.component.spaces)
    homes = []
    for wish in core.wishes:
        spaces = [core.demands[demand].space for demand in sorted(demands_of(wish))]
        union.join(spaces)
        homes.append(spaces[0])
    for root in sorted({union.find(home) for home in homes}):
        yield _Group(
            tuple(
                w for w, home in zip(core.wishes, homes, strict=True) if union.find(home) == root
            ),
            tuple(space for space in union.members() if union.find(space) == root),
            tuple(s for s in searches if union.find(s.component.spaces[0]) == root),
        )


class _Settling:
    """The best trees so far for one group."""

    def __init__(self, instance: Instance, core: Core, group: _Group, rng: random.Random) -> None:
        self.group = group
        self._random = rng
        reads = tuple(read for search in group.searches for read in search.component.reads)
        numbers = tuple(n for search in group.searches for n in search.component.numbers)
        wished = {demand for wish in group.wishes for demand in demands_of(wish)}
        made = {demand for search in group.searches for demand in search.component.demands}
        demands = tuple(sorted(made | wished))
        self._component = Component(group.spaces, demands, reads, numbers)
        self._families = families_of(instance, core, self._component)
        self._limit = sum(search.cost for search in group.searches)
        self.best = self._pack(frozenset(d for s in group.searches for d in s.held))
        self._left = self._refused(self.best.held)

    def improve(self, seed: int, workers: int, deadline: float) -> None:
        """Look for trees that meet more wishes, until none can or the work is done."""
        master = Master(self._component, seed, workers)
        known = {cut for search in self.group.searches for cut in search.cuts}
        master.add(cut for search in self.group.searches for cut in search.cuts)
        master.prefer(self.group.wishes, self._limit, _EFFORT)
        for _ in range(_ROUNDS):
            left = deadline - time.monotonic()
            if self._left == 0 or left <= 0:
                return
            relaxed = master.run(left, self.best.held, lambda held, bound: None)
            if relaxed.interrupted:
                raise KeyboardInterrupt
            if relaxed.chosen is None or relaxed.bound >= self._left:
                return
            self._consider(self._pack(relaxed.chosen))
            wanted = used_demands((*self._component.reads, *self.group.wishes), relaxed.chosen)
            fresh: dict[Cut, None] = {}
            for cut in conflicts_among(wanted, self._families, self._random):
                if cut not in known:
                    fresh[cut] = None
                if time.monotonic() >= deadline:
                    return
            if not fresh:
                return
            known.update(fresh)
            master.add(fresh)

    def _consider(self, packing: Packing) -> None:
        refused = self._refused(packing.held)
        if packing.cost(self._component.reads) <= self._limit and refused < self._left:
            self.best, self._left = packing, refused

    def _refused(self, held: Collection[int]) -> int:
        return sum(wish.weight for wish in self.group.wishes if not is_view(wish.view, held))

    def _pack(self, preferred: frozenset[int]) -> Packing:
        """Trees under which as much as possible of ``preferred`` holds, and as many wishes."""
        packing = Packing(self._families)
        for view in _views(self._component.reads, preferred):
            packing.add(view)
        wishes = sorted(self.group.wishes, key=lambda wish: -wish.weight)
        for view in _views(wishes, preferred):
            packing.add(view)
        for wish in wishes:
            packing.add(wish.view or ())
        for demand in self._component.demands:
            packing.add((demand,))
        return packing


def _views(reads: Iterable[Read], held: Collection[int]) -> list[tuple[int, ...]]:
    return [view for read in reads for view in served_by(read, held)]
