"""Local search for orders that copy less: serve one more read, then all others as well as they fit.

A solution is a set of demands that hold together, in PQ-trees; thousands of channels cost nothing.
A step forces one read in, restores in a random sequence, heavy ones rather first, most of the views
that there were before, and then serves what else fits (a large neighbourhood search, Shaw 1998).
The result is taken if it costs hardly more than the best one so far (record-to-record travel, Dueck
1993).
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TypeVar

from upscale_opt.solver.algorithms.exact_search import families_of
from upscale_opt.solver.problem.conflicts import Family
from upscale_opt.solver.problem.instance import (
    Instance,
    Orders,
    Read,
    read_cost,
    satisfied,
)
from upscale_opt.solver.problem.packing import Packing, pack, served_by
from upscale_opt.solver.problem.reduction import Component, Core, reduce_instance

Item = TypeVar("Item")

_DROPPED = 0.8
"""At most this share of the views is given up."""

_NOISE = 512
"""By how much of 1,024 parts, at most, chance lowers a weight that decides about a sequence."""

_PIECES_FIRST = 0.25
"""The probability that a read that could be a view is served piece by piece."""

_WORSE = 200
"""A result may cost this part of the best cost more."""

_STEPS_PER_DEMAND = 20
_MOST_STEPS = 1_000
_MOST_REDUCTIONS = 200_000
_FEWEST_STEPS = 50
"""The number of steps without an improvement that end the search; large instances get fewer."""


def improve_copies(
    instance: Instance, orders: Orders, deadline: float, rng: random.Random
) -> Iterator[Orders]:
    """Orders that copy less than ``orders``, each better than the one before.

    Args:
        instance: under the measure ``"copies"``.
        orders: to start from.
        deadline: when to stop at the latest, by ``time.monotonic()``.
        rng: for all random choices.
    """
    core = reduce_instance(instance)
    held = core.restrict(satisfied(instance, orders))
    best = list(orders)
    for place, component in enumerate(core.components):
        now = time.monotonic()
        if now >= deadline:
            return
        share = now + (deadline - now) / (len(core.components) - place)
        for packing in _improve(instance, core, component, held, share, rng):
            for space, tree in packing.trees.items():
                best[space] = tuple(tree.frontier())
            yield tuple(best)


def _improve(
    instance: Instance,
    core: Core,
    component: Component,
    held: frozenset[int],
    deadline: float,
    rng: random.Random,
) -> Iterator[Packing]:
    """Better and better packings of one component."""
    reads = component.reads
    families = families_of(instance, core, component)
    record = sum(read_cost(read, held) for read in reads)
    current = pack(component, families, held)
    patience = _patience(component)
    idle = 0
    while True:
        cost = current.cost(reads)
        if cost < record:
            record, idle = cost, 0
            yield current
        idle += 1
        if record == 0 or idle > patience:
            return
        candidate = _step(reads, families, current.held, deadline, rng)
        if candidate is None:
            return
        if candidate.cost(reads) <= record + record // _WORSE:
            current = candidate


def _patience(component: Component) -> int:
    reductions = _MOST_REDUCTIONS // len(component.demands)
    steps = min(_STEPS_PER_DEMAND * len(component.demands), _MOST_STEPS, reductions)
    return max(steps, _FEWEST_STEPS)


def _step(
    reads: Sequence[Read],
    families: Mapping[int, Family],
    held: set[int],
    deadline: float,
    rng: random.Random,
) -> Packing | None:
    """Serve a read that is not served well, and repair the rest; None if time runs out."""
    costs = [read_cost(read, held) for read in reads]
    packing = Packing(families)
    _serve(packing, reads[rng.choice([i for i, cost in enumerate(costs) if cost > 0])], rng)
    dropped = rng.uniform(0, _DROPPED)
    for view in _roughly_sorted(_served(reads, held), rng):
        if time.monotonic() > deadline:
            return None
        if rng.random() >= dropped:
            packing.add(view)
    for read in _roughly_sorted([(read.weight, read) for read in reads], rng):
        if time.monotonic() > deadline:
            return None
        _serve(packing, read, rng)
    return packing


def _served(reads: Sequence[Read], held: set[int]) -> list[tuple[int, tuple[int, ...]]]:
    """The views that serve reads and pieces of them, with their weights."""
    served = []
    for read in reads:
        views = served_by(read, held)
        if views and views[0] is read.view:
            served.append((read.weight, views[0]))
        else:
            weights = {piece.view: piece.weight for piece in read.pieces}
            served.extend((weights[view], view) for view in views)
    return served


def _serve(packing: Packing, read: Read, rng: random.Random) -> None:
    """Serve ``read`` as a view or, rather if that cannot be, piece by piece."""
    as_view = read.view is not None and not (read.pieces and rng.random() < _PIECES_FIRST)
    if not (as_view and packing.add(read.view or ())):
        pieces = [(piece.weight, piece) for piece in read.pieces]
        packing.serve_by_pieces(read, _roughly_sorted(pieces, rng))


def _roughly_sorted(items: Iterable[tuple[int, Item]], rng: random.Random) -> list[Item]:
    """The second of each pair, those with a greater first rather earlier."""
    keyed = [(-weight * rng.randint(1_024 - _NOISE, 1_024), item) for weight, item in items]
    return [item for _, item in sorted(keyed, key=lambda pair: pair[0])]
