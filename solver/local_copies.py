"""Local search for orders that copy less: serve one more read, then all others as well as they fit.

A solution is a set of demands that hold together, in PQ-trees; thousands of channels cost nothing.
A step forces one read in, serves in a random sequence, the better served the sooner, most of those
that were served before, and then what else fits (a large neighbourhood search, Shaw 1998). The
result is taken if it costs hardly more than the best one so far (record-to-record travel, Dueck
1993).
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Mapping, Sequence

from upscale_opt.solver.conflicts import Family
from upscale_opt.solver.instance import Instance, Orders, Read, read_cost, satisfied
from upscale_opt.solver.packing import Packing, pack, served_by
from upscale_opt.solver.reduction import Component, Core, reduce_instance
from upscale_opt.solver.search import families_of

_DROPPED = 0.8
"""At most this share of the reads served loses its place."""

_NOISE = 512
"""By how much of 1,024 parts, at most, chance lowers a read's weight in the sequence."""

_WORSE = 200
"""A result may cost this part of the best cost more."""

_STEPS_PER_READ = 20
_MOST_STEPS = 1_000
_MOST_REDUCTIONS = 200_000
_FEWEST_STEPS = 50
"""How many steps without an improvement end the search; large instances get fewer."""


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
    steps = min(_STEPS_PER_READ * len(component.reads), _MOST_STEPS, reductions)
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
    packing.serve(reads[rng.choice([i for i, cost in enumerate(costs) if cost > 0])])
    dropped = rng.uniform(0, _DROPPED)
    gains = [read.weight - cost for read, cost in zip(reads, costs, strict=True)]
    for index in _roughly_by(gains, rng):
        if time.monotonic() > deadline:
            return None
        if gains[index] > 0 and rng.random() >= dropped:
            for view in served_by(reads[index], held):
                packing.add(view)
    for index in _roughly_by([read.weight for read in reads], rng):
        if time.monotonic() > deadline:
            return None
        packing.serve(reads[index])
    return packing


def _roughly_by(values: Sequence[int], rng: random.Random) -> list[int]:
    """The indices, those of greater values rather earlier."""
    keys = [-value * rng.randint(1_024 - _NOISE, 1_024) for value in values]
    return sorted(range(len(values)), key=keys.__getitem__)
