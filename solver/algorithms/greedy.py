"""UPSCALE's heuristic (Wan et al., ICML 2023): order the readers, and the channels follow.

Every set of channels that a read wants is a node of a graph; sets that share channels are adjacent.
Along a chordless path of this graph every set touches only its neighbours, so the order "shared
with the previous, own, shared with the next" makes all its sets consecutive. The heuristic takes
the path that covers most, then the best one among the remaining nodes, and so on, and concatenates.
A set inside others is left out of the graph and ordered within them.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from upscale_opt.solver.algorithms.identity import heuristic_outcome
from upscale_opt.solver.problem.instance import (
    Demand,
    Instance,
    Orders,
    Outcome,
    Part,
    Read,
    holds,
)

_MAX_STEPS = 20_000
"""The number of extensions of paths that one search for a best path may try."""

_Channels = frozenset[int]
"""Channels, numbered across all spaces."""

_Partial = tuple[int, tuple[int, ...], int]


@dataclass(frozen=True)
class _Node:
    """A set of channels that is wanted.

    Attributes:
        channels: the set.
        parts: its channels in each of its spaces, in the sequence of the memory that is read.
        spaces: these spaces.
        weight: that of the heaviest read (or piece) that wants the set.
        rank: among equally good paths, those from and along nodes of lower rank are taken.
    """

    channels: _Channels
    parts: tuple[_Channels, ...]
    spaces: tuple[int, ...]
    weight: int
    rank: tuple[int, int]


def solve_greedy(instance: Instance) -> Outcome:
    """Order the channels by UPSCALE's heuristic, as faithfully as the instance allows."""
    return heuristic_outcome(instance, greedy_orders(instance))


GRACE = 2.0
"""Seconds by which solvers that start from the greedy orders let them be late."""


class _LateError(Exception):
    """The time is up."""


def greedy_orders(instance: Instance, *, whole: bool = True, deadline: float = math.inf) -> Orders:
    """Order the channels by UPSCALE's heuristic.

    A read that says what it wants of each space (``Read.parts``), and has no pieces, is one node,
    as in the original: spaces that reads tie together are ordered together, and each gets its share
    of the one order. Of other reads, and of all under the measure ``"blocks"``, every demand is a
    node, so each space is ordered by itself. Prefixes and suffixes are then nodes like all others;
    of an order and its reverse, which the heuristic cannot tell apart, the one is taken that puts
    the greater weight of them at the right end. Fixed spaces stay as they are.

    The original looks at all chordless paths, whose number is exponential in the number of sets if
    they overlap sparsely. Here a search ends after a fixed number of steps with the best path so
    far. It tries demands in the order of their weights, so that this is a good one; reads in their
    own order, as the original does, since that decides between equally good paths.

    Args:
        instance: the problem.
        whole: reads may be nodes. If not, all demands are, which is mostly better where reads want
            channels of several spaces.
        deadline: by ``time.monotonic()``; spaces not ordered by then stay as they are.
    """
    wholes = [
        (order, read)
        for order, read in enumerate(instance.reads)
        if whole and read.parts and not read.pieces and instance.measure == "copies"
    ]
    taken = {order for order, _ in wholes}
    others = [read for order, read in enumerate(instance.reads) if order not in taken]
    weights = _demand_weights(instance, others)
    orders = [space.channels for space in instance.spaces]
    names = [(i, c) for i, space in enumerate(instance.spaces) for c in space.channels]
    for group in _groups(_nodes(instance, names, weights, wholes)):
        ordered: dict[int, list[int]] = {space: [] for node in group for space in node.spaces}
        try:
            numbers = _order(group, deadline)
        except _LateError:
            break
        for number in numbers:
            space, channel = names[number]
            ordered[space].append(channel)
        for space, order in ordered.items():
            orders[space] = _completed(instance, space, order, weights)
    return tuple(orders)


# What is wanted.


def _demand_weights(instance: Instance, reads: Iterable[Read]) -> list[int]:
    """Per demand, the weight of the heaviest of ``reads`` or their pieces that mentions it."""
    weights = [0] * len(instance.demands)
    for read in reads:
        views = [(read.view, read.weight), *((p.view, p.weight) for p in read.pieces)]
        for view, weight in views:
            for demand in view or ():
                weights[demand] = max(weights[demand], weight)
    return weights


def _nodes(
    instance: Instance,
    names: Iterable[tuple[int, int]],
    weights: Sequence[int],
    wholes: Iterable[tuple[int, Read]],
) -> list[_Node]:
    """All sets of channels that are wanted, each once.

    Args:
        instance: the problem.
        names: for each channel by its number, its space and its id there.
        weights: those of the demands; where they are 0, demands are no nodes.
        wholes: the reads that are nodes, with their numbers.
    """
    number = {name: i for i, name in enumerate(names)}
    nodes: dict[_Channels, _Node] = {}

    def want(weight: int, parts: Iterable[Part], order: int | None) -> None:
        shares: dict[int, _Channels] = {}
        for part in parts:
            if part.channels and not instance.spaces[part.space].fixed:
                here = frozenset(number[part.space, channel] for channel in part.channels)
                shares[part.space] = shares.get(part.space, frozenset()) | here
        channels = frozenset[int]().union(*shares.values())
        known = nodes.get(channels)
        if channels and weight > (0 if known is None else known.weight):
            rank = (-weight, min(channels)) if order is None else (0, order)
            rank = rank if known is None else min(rank, known.rank)
            nodes[channels] = _Node(channels, tuple(shares.values()), tuple(shares), weight, rank)

    for demand, weight in zip(instance.demands, weights, strict=True):
        want(weight, [Part(demand.space, demand.channels)], None)
    for order, read in wholes:
        want(read.weight, read.parts, order)
    return list(nodes.values())


def _groups(nodes: Iterable[_Node]) -> list[list[_Node]]:
    """The nodes, those together whose spaces are tied together by nodes."""
    groups: list[tuple[set[int], list[_Node]]] = []
    for node in nodes:
        spaces, members = set(node.spaces), [node]
        for group in [group for group in groups if spaces & group[0]]:
            groups.remove(group)
            spaces, members = spaces | group[0], group[1] + members
        groups.append((spaces, members))
    return [members for _, members in groups]


# The order.


def _check(deadline: float) -> None:
    if time.monotonic() >= deadline:
        raise _LateError


def _order(nodes: Iterable[_Node], deadline: float) -> list[int]:
    """The channels of all sets in ``nodes``, in the heuristic's order.

    The smallest sets come first, each after those inside it; last comes what holds all of them.
    """
    largest_first = sorted(nodes, key=lambda node: len(node.channels), reverse=True)
    everything = frozenset[int]().union(*(node.channels for node in largest_first))
    orders: dict[_Channels, list[int]] = {}
    within: list[set[int]] = [set() for _ in largest_first]
    for i in reversed(range(-1, len(largest_first))):
        _check(deadline)
        channels = everything if i < 0 else largest_first[i].channels
        inside: set[int] = set()
        outermost: list[_Node] = []
        for j, other in enumerate(largest_first[i + 1 :], i + 1):
            if j not in inside and other.channels <= channels:
                inside |= {j} | within[j]
                outermost.append(other)
        order = _along_paths(outermost, orders, deadline)
        orders[channels] = list(dict.fromkeys([*order, *sorted(channels)]))
        if i >= 0:
            within[i] = inside
    return orders[everything]


def _along_paths(
    nodes: Iterable[_Node], orders: Mapping[_Channels, Sequence[int]], deadline: float
) -> list[int]:
    """The channels of ``nodes``, none in another, along one best path after the other.

    Args:
        nodes: the sets.
        orders: the order that each set would have by itself.
        deadline: when to give up.
    """
    ranked = sorted(nodes, key=lambda node: node.rank)
    shared = []
    for node in ranked:
        _check(deadline)
        shared.append(
            {j: _shared(node, other) for j, other in enumerate(ranked) if _leads_to(node, other)}
        )
    channels: list[int] = []
    nothing: _Channels = frozenset()
    left = list(range(len(ranked)))
    while left:
        numbers = _best_path(left, [node.weight for node in ranked], shared, deadline)
        left = [number for number in left if number not in numbers]
        path = [ranked[number].channels for number in numbers]
        for before, here, after in zip(
            [nothing, *path[:-1]], path, [*path[1:], nothing], strict=True
        ):
            own = orders[here]
            channels.extend(c for c in own if c in before)
            channels.extend(c for c in own if c not in before and c not in after)
            channels.extend(c for c in own if c in after and c not in before)
    return list(dict.fromkeys(channels))


def _leads_to(node: _Node, other: _Node) -> bool:
    """``other`` may follow ``node`` on a path: what they share can lie at its end.

    It can if all that ``node`` wants of its last spaces is shared, and of the space before them
    some, and of earlier ones nothing. Of where the shared channels lie in ``other`` the original
    asks nothing.
    """
    if node is other or node.channels.isdisjoint(other.channels):
        return False
    for i, part in reversed(list(enumerate(node.parts))):
        if not part <= other.channels:
            return all(earlier.isdisjoint(other.channels) for earlier in node.parts[:i])
    return True


def _shared(node: _Node, other: _Node) -> int:
    """The weight of the channels that two nodes share, so that a path does not count them twice.

    As a read's weight need not be its number of channels, it is at most proportional to either's.
    """
    shared = len(node.channels & other.channels)
    return min(shared, *(n.weight * shared // len(n.channels) for n in (node, other)))


def _best_path(
    nodes: Sequence[int],
    weights: Sequence[int],
    shared: Sequence[Mapping[int, int]],
    deadline: float,
) -> tuple[int, ...]:
    """The chordless path of greatest cost: weights of its nodes minus what neighbours share.

    Depth first with an explicit stack: an entry is a path's cost, the path, and as bits the nodes
    that may continue it.
    """
    best_cost = -1
    best: tuple[int, ...] = ()
    near = [sum(1 << other for other in row) for row in shared]
    everyone = sum(1 << node for node in nodes)
    steps = max(1, _MAX_STEPS // len(nodes))
    for source in nodes:
        _check(deadline)
        stack: list[_Partial] = [(weights[source], (source,), everyone & ~(1 << source))]
        for _ in range(steps):
            if not stack:
                break
            cost, path, free = stack.pop()
            if cost > best_cost:
                best_cost, best = cost, path
            end = path[-1]
            behind = free & ~near[end]
            onward = free & near[end]
            while onward:
                node = onward.bit_length() - 1
                onward ^= 1 << node
                stack.append((cost + weights[node] - shared[end][node], (*path, node), behind))
    return best


def _completed(
    instance: Instance, space: int, order: Sequence[int], weights: Sequence[int]
) -> tuple[int, ...]:
    """``order`` and the rest of the space, turned round if more weight of ends holds then."""
    taken = set(order)
    rest = [channel for channel in instance.spaces[space].channels if channel not in taken]
    ends = [
        (demand, weight)
        for demand, weight in zip(instance.demands, weights, strict=True)
        if demand.space == space and demand.kind != "interval" and weight > 0
    ]
    forward, backward = (*order, *rest), (*rest, *reversed(order))
    return backward if _held(backward, ends) > _held(forward, ends) else forward


def _held(order: Sequence[int], wanted: Iterable[tuple[Demand, int]]) -> int:
    """The weight of the demands that hold under ``order``."""
    position = {channel: i for i, channel in enumerate(order)}
    return sum(weight for demand, weight in wanted if holds(demand, position, len(order)))
