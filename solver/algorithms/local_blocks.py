"""Local search for orders with fewer runs: consecutive block minimisation as a search for paths.

Channels that belong to the same sets stay together (an *atom*), and the runs that a space's order
cuts its reads into are half the length of a path through the atoms, the distance of two being the
weight of the sets that one of them belongs to and the other does not. What lies beside the space in
the memory that is read stands at the path's ends; so spaces are improved one by one, as long as
that helps, and then turned against each other.
"""

from __future__ import annotations

import random
import time
from collections import deque
from collections.abc import Iterable, Iterator
from itertools import pairwise

import numpy as np

from upscale_opt.solver.algorithms.tours import Distances, Nodes, Tour, nearest
from upscale_opt.solver.problem.instance import Instance, Orders, Part, cost

_LARGEST_TOTAL = 1 << 28
"""Larger weights are scaled down: they guide the search, while costs are computed exactly."""

_MOST_ATOMS = 5_000
"""Spaces with more atoms, whose distances fill too much memory, are left as they are."""

_KICKS_PER_ATOM = 10
_MOST_KICKS = 2_000
"""The number of kicks without an improvement that end the search in one space."""

_TURNS_PER_SPACE = 50
_MOST_TURNS = 500
"""The number of turns at the ends of spaces without an improvement that end the search."""

_ROWS = 256
"""The number of rows of distances that are computed between two looks at the clock."""


def improve_blocks(
    instance: Instance, orders: Orders, deadline: float, rng: random.Random
) -> Iterator[Orders]:
    """Orders with fewer runs than ``orders``, each better than the one before.

    Args:
        instance: under the measure ``"blocks"``.
        orders: to start from.
        deadline: when to stop at the latest, by ``time.monotonic()``.
        rng: for all random choices.
    """
    beside = _beside(instance)
    for kicks in (False, True):
        for better in _one_by_one(instance, orders, beside, kicks, deadline, rng):
            yield better
            orders = better
    tied = [number for number, others in beside.items() if others]
    patience = min(_TURNS_PER_SPACE * len(tied), _MOST_TURNS)
    record = cost(instance, orders)
    idle = 0
    while idle < patience and time.monotonic() < deadline:
        idle += 1
        candidate = _turned(instance, orders, rng.choice(tied), beside, deadline, rng)
        value = cost(instance, candidate)
        if value < record:
            idle = 0
            yield candidate
        if value <= record:
            orders, record = candidate, value


def _beside(instance: Instance) -> dict[int, set[int]]:
    """The spaces with a choice that are read, and those of them that lie beside each."""
    beside: dict[int, set[int]] = {}
    for read in instance.reads:
        parts = _laid_out(instance, read.parts)
        for part in parts:
            if not instance.spaces[part.space].fixed:
                beside.setdefault(part.space, set())
        for left, right in pairwise(parts):
            if {left.space, right.space} <= beside.keys():
                beside[left.space].add(right.space)
                beside[right.space].add(left.space)
    return dict(sorted(beside.items()))


def _laid_out(instance: Instance, parts: Iterable[Part]) -> list[Part]:
    return [part for part in parts if instance.spaces[part.space].channels]


def _one_by_one(
    instance: Instance,
    orders: Orders,
    beside: dict[int, set[int]],
    kicks: bool,
    deadline: float,
    rng: random.Random,
) -> Iterator[Orders]:
    """Improve every space for itself, and again when one beside it has changed."""
    record = cost(instance, orders)
    waiting = deque(beside)
    while waiting:
        now = time.monotonic()
        if now >= deadline:
            return
        number = waiting.popleft()
        share = now + (deadline - now) / (len(waiting) + 1)
        for order in _better(instance, orders, number, kicks, share, rng):
            candidate = _with(orders, number, order)
            value = cost(instance, candidate)
            if value < record:
                orders, record = candidate, value
                waiting.extend(s for s in sorted(beside[number]) if s not in waiting)
                yield orders


def _with(orders: Orders, number: int, order: tuple[int, ...]) -> Orders:
    return (*orders[:number], order, *orders[number + 1 :])


def _better(
    instance: Instance,
    orders: Orders,
    number: int,
    kicks: bool,
    deadline: float,
    rng: random.Random,
) -> Iterator[tuple[int, ...]]:
    """Orders of one space with ever shorter paths.

    Without kicks they come from two starts, the present order and the nearest neighbours.
    """
    atoms = _atoms(instance, orders, number)
    if not 1 < len(atoms) <= _MOST_ATOMS:
        return
    distances = _distances(instance, orders, number, atoms, deadline)
    if distances is None:
        return

    def order(path: Nodes) -> tuple[int, ...]:
        return tuple(channel for node in path[1:-1].tolist() for channel in atoms[node])

    tour = Tour(distances, range(len(atoms)), deadline)
    tour.settle(range(len(atoms)))
    yield order(tour.path)
    if not kicks:
        other = Tour(distances, nearest(distances), deadline)
        other.settle(other.path[1:-1].tolist())
        yield order(other.path)
        return
    patience = min(_KICKS_PER_ATOM * len(atoms), _MOST_KICKS)
    idle = 0
    while idle < patience and time.monotonic() < deadline:
        idle += 1
        if tour.kick(rng):
            idle = 0
            yield order(tour.path)


def _turned(
    instance: Instance,
    orders: Orders,
    number: int,
    beside: dict[int, set[int]],
    deadline: float,
    rng: random.Random,
) -> Orders:
    """Put another channel at an end of a space, and let those beside it, then itself, adapt."""
    order = list(orders[number])
    channel = order.pop(rng.randrange(len(order)))
    order.insert(rng.choice([0, len(order)]), channel)
    orders = _with(orders, number, tuple(order))
    for other in (*sorted(beside[number] - {number}), number):
        first = next(_better(instance, orders, other, False, deadline, rng), None)
        if first is not None:
            orders = _with(orders, other, first)
    return orders


def _atoms(instance: Instance, orders: Orders, number: int) -> list[tuple[int, ...]]:
    """The channels of a space that no read tells apart, in their present order."""
    sets = {p.channels: None for r in instance.reads for p in r.parts if p.space == number}
    atoms: dict[tuple[bool, ...], list[int]] = {}
    for channel in orders[number]:
        atoms.setdefault(tuple(channel in wanted for wanted in sets), []).append(channel)
    return [tuple(channels) for channels in atoms.values()]


def _distances(
    instance: Instance,
    orders: Orders,
    number: int,
    atoms: list[tuple[int, ...]],
    deadline: float,
) -> Distances | None:
    """Between atoms, and to what is on the left and on the right of the space.

    Returns:
        int32 of shape (atoms + 2, atoms + 2), the left side and the right side last. None if time
        runs out: thousands of atoms take seconds.
    """
    columns: list[list[bool]] = []
    weights: list[int] = []
    for read in instance.reads:
        parts = _laid_out(instance, read.parts)
        for place, part in enumerate(parts):
            if part.space == number and read.weight:
                before, after = parts[:place][-1:], parts[place + 1 :][:1]
                inside = [atom[0] in part.channels for atom in atoms]
                left = any(orders[p.space][-1] in p.channels for p in before)
                right = any(orders[p.space][0] in p.channels for p in after)
                columns.append([*inside, left, right])
                weights.append(read.weight)
    unit = -(-sum(weights) // _LARGEST_TOTAL) or 1
    size = len(atoms) + 2
    members = np.array(columns, float).reshape(len(weights), size)
    scaled = members.T * np.array([weight // unit for weight in weights], float)
    own = scaled.sum(axis=1)
    distances = np.empty((size, size), np.int32)
    for low in range(0, size, _ROWS):
        if time.monotonic() > deadline:
            return None
        rows = slice(low, low + _ROWS)
        distances[rows] = own[rows, None] + own - 2 * (scaled[rows] @ members)
    return distances
