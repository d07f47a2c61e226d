"""The optimum by trying all orders: what the solvers are tested against.

Nothing clever happens here, so that it can be trusted. Every order of every space is tried, as rows
of one array of permutations. All that matters of an order is its *effect*: what it costs in itself,
and which *facts* it establishes for reads (under the measure ``"copies"`` the demands that hold;
under ``"blocks"`` what lies at the space's ends, where a run may go on into the next space). Of the
effects of one space those that others dominate are left out, and of the rest every combination over
all spaces that reads tie together is tried.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt

from upscale_opt.errors import SolverError
from upscale_opt.solver.problem.instance import (
    Demand,
    Instance,
    Orders,
    Part,
    Read,
    Space,
    cost,
    identity_orders,
    read_cost,
    unwanted,
)

MAX_CHANNELS = 9
"""Larger spaces have too many orders (9! is 362,880)."""

MAX_COMBINATIONS = 2_000_000
"""Of the effects of spaces that reads tie together."""

_Table = npt.NDArray[np.int32]
"""A row per order: of shape (orders, channels), or (orders,) where there is one number for each."""


@dataclass(frozen=True)
class _Effect:
    """The effect of an order, as far as the objective is concerned.

    Attributes:
        cost: what it costs in itself.
        facts: what it establishes; more is never worse.
        order: an order with this effect.
    """

    cost: int
    facts: frozenset[int]
    order: tuple[int, ...]


def brute_force(instance: Instance) -> int:
    """The least cost under any orders. Wishes are not looked at.

    Raises:
        SolverError: if there are too many orders to try: a space has more than
            :data:`MAX_CHANNELS` channels, or reads tie too many spaces together.
    """
    return cost(instance, brute_force_orders(instance))


def brute_force_orders(instance: Instance) -> Orders:
    """Orders of least cost.

    Raises:
        SolverError: as :func:`brute_force`.
    """
    orders = list(identity_orders(instance.spaces))
    for spaces, reads in _components(instance):
        if instance.measure == "copies":
            options = [_held(instance, space, reads) for space in spaces]
            rest = _copies(instance, reads)
        else:
            joins = [join for read in reads for join in _joins(instance, read)]
            options = [_runs(instance, space, reads, joins) for space in spaces]
            rest = _saved(joins)
        for space, effect in zip(spaces, _best(spaces, options, rest), strict=True):
            orders[space] = effect.order
    return tuple(orders)


def _components(instance: Instance) -> Iterator[tuple[list[int], list[Read]]]:
    """The spaces that reads tie together, directly or by other spaces, and these reads."""
    parts: list[tuple[set[int], list[Read]]] = []
    for read in instance.reads:
        spaces, reads = _spaces_of(instance, read), [read]
        for part in [part for part in parts if spaces & part[0]]:
            parts.remove(part)
            spaces, reads = spaces | part[0], part[1] + reads
        if spaces:
            parts.append((spaces, reads))
    for spaces, reads in parts:
        yield sorted(spaces), reads


def _spaces_of(instance: Instance, read: Read) -> set[int]:
    if instance.measure == "blocks":
        return {part.space for part in read.parts}
    return {instance.demands[demand].space for demand in _demands_of(read)}


def _demands_of(read: Read) -> set[int]:
    views = (read.view, *(piece.view for piece in read.pieces))
    return {demand for view in views for demand in view or ()}


def _best(
    spaces: list[int],
    options: list[list[_Effect]],
    rest: Callable[[frozenset[int]], int],
) -> tuple[_Effect, ...]:
    """The combination of effects, one per space, with the least cost."""
    if math.prod(map(len, options)) > MAX_COMBINATIONS:
        raise SolverError(
            f"too much for brute force: reads tie {len(spaces)} spaces together (space "
            f"{spaces[0]} and others), whose orders combine in more than {MAX_COMBINATIONS:,} "
            "ways; solve it with 'cp-sat'"
        )

    def total(choice: tuple[_Effect, ...]) -> int:
        facts = frozenset().union(*(effect.facts for effect in choice))
        return sum(effect.cost for effect in choice) + rest(facts)

    return min(itertools.product(*options), key=total)


def _undominated(effects: Iterable[_Effect]) -> list[_Effect]:
    """The effects without those that another one, no more costly, has all the facts of."""
    kept: list[_Effect] = []
    for effect in sorted(effects, key=lambda effect: (-len(effect.facts), effect.cost)):
        if not any(effect.facts <= o.facts and o.cost <= effect.cost for o in kept):
            kept.append(effect)
    return [e for e in kept if not any(e.facts < o.facts and o.cost <= e.cost for o in kept)]


# The measure "copies": a fact is the number of a demand that holds; behind those, that a window
# of a read (by its place among the reads) reads at most so many channels in vain.


def _held(instance: Instance, number: int, reads: list[Read]) -> list[_Effect]:
    """The sets of demands of ``reads`` that the orders of a space can make hold."""
    space = instance.spaces[number]
    mentioned = sorted({demand for read in reads for demand in _demands_of(read)})
    demands = [demand for demand in mentioned if instance.demands[demand].space == number]
    orders = _all_orders(space, number)
    columns = [_holds(instance.demands[demand], space, orders) for demand in demands]
    windows = [
        place
        for place, read in enumerate(reads)
        if read.window is not None and read.view and instance.demands[read.view[0]].space == number
    ]
    columns += [_vain(instance, reads[place], space, orders) for place in windows]
    effects = []
    for row, order in _distinct(columns, orders, space):
        facts = {demand for demand, held in zip(demands, row[: len(demands)], strict=True) if held}
        for place, vain in zip(windows, row[len(demands) :], strict=True):
            facts.update(_window_fact(instance, place, n) for n in range(vain, MAX_CHANNELS))
        effects.append(_Effect(0, frozenset(facts), order))
    return _undominated(effects)


def _window_fact(instance: Instance, place: int, vain: int) -> int:
    """The fact that the read at ``place`` has a window with at most ``vain`` unwanted channels."""
    return len(instance.demands) + place * MAX_CHANNELS + vain


def _vain(instance: Instance, read: Read, space: Space, orders: _Table) -> _Table:
    """The channels a window reads in vain, of shape (orders,); ``MAX_CHANNELS`` if it may not."""
    assert read.view is not None
    result: list[int] = []
    for order in orders.tolist():
        between = unwanted(instance, read, [space.channels[place] for place in order])
        result.append(MAX_CHANNELS if between is None else min(len(between), MAX_CHANNELS))
    return np.array(result, np.int32)


def _holds(demand: Demand, space: Space, orders: _Table) -> _Table:
    """Ones where the demand holds, of shape (orders,)."""
    if not demand.channels:
        return np.ones(len(orders), np.int32)
    inside = _inside(demand.channels, space, orders)
    held: _Table = (_count_runs(inside) == 1).astype(np.int32)
    if demand.kind == "prefix":
        held *= inside[:, 0]
    if demand.kind == "suffix":
        held *= inside[:, -1]
    return held


def _copies(instance: Instance, reads: list[Read]) -> Callable[[frozenset[int]], int]:
    """The cost of the reads if these facts hold."""

    def rest(facts: frozenset[int]) -> int:
        return sum(_cost_of(place, read, facts) for place, read in enumerate(reads))

    def _cost_of(place: int, read: Read, facts: frozenset[int]) -> int:
        gathered = read_cost(read, facts)
        if read.window is None or not gathered:
            return gathered
        vain = (n for n in range(MAX_CHANNELS) if _window_fact(instance, place, n) in facts)
        return min([gathered, *(read.window.price * n for n in vain)])

    return rest


# The measure "blocks": runs are counted space by space. A run that goes on from one space into the
# next was then counted twice. A fact says that the one side (2 i) or the other (2 i + 1) of join
# number i is wanted.


@dataclass(frozen=True)
class _Join:
    """A place where one space follows another in the memory of a read of this weight."""

    weight: int
    left: Part
    right: Part


def _joins(instance: Instance, read: Read) -> list[_Join]:
    there = [part for part in read.parts if instance.spaces[part.space].channels]
    return [_Join(read.weight, *pair) for pair in itertools.pairwise(there)]


def _runs(instance: Instance, number: int, reads: list[Read], joins: list[_Join]) -> list[_Effect]:
    """The costs in runs of the orders of a space, with what they have at their ends."""
    space = instance.spaces[number]
    orders = _all_orders(space, number)
    parts = [(r.weight, p.channels) for r in reads for p in r.parts if p.space == number]
    sides: list[tuple[int, frozenset[int], int]] = []
    for index, join in enumerate(joins):
        if join.left.space == number:
            sides.append((2 * index, join.left.channels, -1))
        if join.right.space == number:
            sides.append((2 * index + 1, join.right.channels, 0))
    columns = [
        *(_count_runs(_inside(wanted, space, orders)) for _, wanted in parts),
        *(_inside(wanted, space, orders)[:, place] for _, wanted, place in sides),
    ]
    cheapest: dict[frozenset[int], _Effect] = {}
    for row, order in _distinct(columns, orders, space):
        inner = sum(weight * runs for (weight, _), runs in zip(parts, row, strict=False))
        ends = row[len(parts) :]
        facts = frozenset(side[0] for side, there in zip(sides, ends, strict=True) if there)
        if facts not in cheapest or inner < cheapest[facts].cost:
            cheapest[facts] = _Effect(inner, facts, order)
    return _undominated(cheapest.values())


def _saved(joins: list[_Join]) -> Callable[[frozenset[int]], int]:
    """The cost to be taken off again for runs that go on from one space into the next."""

    def rest(facts: frozenset[int]) -> int:
        return -sum(
            join.weight
            for index, join in enumerate(joins)
            if 2 * index in facts and 2 * index + 1 in facts
        )

    return rest


# Tables with one row per order.


def _all_orders(space: Space, number: int) -> _Table:
    """All orders allowed, as places in ``space.channels``, of shape (orders, channels)."""
    size = len(space.channels)
    if space.fixed:
        return np.arange(size, dtype=np.int32).reshape(1, size)
    if size > MAX_CHANNELS:
        raise SolverError(
            f"too much for brute force: it tries all orders of at most {MAX_CHANNELS} channels, "
            f"and space {number} has {size}; solve it with 'cp-sat'"
        )
    return _permutations(size)


@cache
def _permutations(size: int) -> _Table:
    orders = list(itertools.permutations(range(size)))
    return np.array(orders, np.int32).reshape(len(orders), size)


def _inside(wanted: frozenset[int], space: Space, orders: _Table) -> _Table:
    """Ones where the channel at a place is wanted, of shape (orders, channels)."""
    members = np.array([channel in wanted for channel in space.channels], np.int32)
    table: _Table = members[orders]
    return table


def _count_runs(inside: _Table) -> _Table:
    """The numbers of runs that the wanted channels form, of shape (orders,)."""
    starts = inside.copy()
    starts[:, 1:] &= 1 - inside[:, :-1]
    runs: _Table = starts.sum(axis=1, dtype=np.int32)
    return runs


def _distinct(
    columns: list[_Table], orders: _Table, space: Space
) -> Iterator[tuple[list[int], tuple[int, ...]]]:
    """The distinct rows of the table with these columns, each with the first order that has it."""
    first = np.zeros(1, np.int64)
    row = np.zeros(len(orders), np.int64)  # numbers of the distinct rows so far
    for column in columns:
        pairs = row * (int(column.max()) + 1) + column
        _, first, row = np.unique(pairs, return_index=True, return_inverse=True)
    for index in first.tolist():
        order = tuple(space.channels[place] for place in orders[index].tolist())
        yield [int(column[index]) for column in columns], order
