"""UPSCALE's heuristic (Wan et al., ICML 2023): order the readers, and the channels follow.

Per space, every set of channels that a read wants is a node of a graph; sets that share channels
are adjacent. Along a chordless path of this graph every set touches only its neighbours, so the
order "shared with the previous, own, shared with the next" makes all its sets consecutive. The
heuristic takes the path that covers most, then the best one among the remaining nodes, and so on,
and concatenates. A set inside another is left out of the graph and ordered within its parent.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from upscale_opt.solver.identity import heuristic_outcome
from upscale_opt.solver.instance import Demand, Instance, Outcome, holds

_MAX_STEPS = 20_000
"""How many extensions of paths one search for a best path may try."""

Channels = frozenset[int]
_Partial = tuple[int, tuple[int, ...], int]


def solve_greedy(instance: Instance) -> Outcome:
    """Order each space by UPSCALE's heuristic.

    A node's weight is the weight of the read (or piece) that wants the set. Prefixes and suffixes
    are nodes like all others, as in the original; of an order and its reverse, which the heuristic
    cannot tell apart, the one is taken that puts the greater weight of them at the right end. Fixed
    spaces stay as they are.

    The original looks at all chordless paths, whose number is exponential in the number of sets if
    they overlap sparsely. Here a search ends after a fixed number of steps with the best path so
    far; it tries heavy nodes first, so that this is a good one.
    """
    weights = _demand_weights(instance)
    per_space: list[list[int]] = [[] for _ in instance.spaces]
    for index, demand in enumerate(instance.demands):
        if weights[index] > 0:
            per_space[demand.space].append(index)
    orders: list[tuple[int, ...]] = []
    for space, demands in zip(instance.spaces, per_space, strict=True):
        if space.fixed or not demands:
            orders.append(space.channels)
            continue
        nodes: dict[Channels, int] = {}
        for index in demands:
            channels = instance.demands[index].channels
            nodes[channels] = max(nodes.get(channels, 0), weights[index])
        place = {channel: i for i, channel in enumerate(space.channels)}
        order = _order(nodes, place)
        wanted = [(instance.demands[index], weights[index]) for index in demands]
        taken = set(order)
        rest = [channel for channel in space.channels if channel not in taken]
        forward, backward = (*order, *rest), (*rest, *reversed(order))
        turn = _end_weight(backward, wanted) > _end_weight(forward, wanted)
        orders.append(backward if turn else forward)
    return heuristic_outcome(instance, tuple(orders))


def _demand_weights(instance: Instance) -> list[int]:
    """Per demand, the weight of the heaviest read or piece that mentions it."""
    weights = [0] * len(instance.demands)
    for read in instance.reads:
        views = [(read.view, read.weight), *((p.view, p.weight) for p in read.pieces)]
        for view, weight in views:
            for demand in view or ():
                weights[demand] = max(weights[demand], weight)
    return weights


def _end_weight(order: Sequence[int], wanted: Iterable[tuple[Demand, int]]) -> int:
    """The weight of the prefixes and suffixes that hold under ``order``."""
    position = {channel: i for i, channel in enumerate(order)}
    return sum(
        weight
        for demand, weight in wanted
        if demand.kind != "interval" and holds(demand, position, len(order))
    )


def _order(nodes: dict[Channels, int], place: dict[int, int]) -> list[int]:
    """The channels of all sets in ``nodes`` (with their weights), in the heuristic's order."""
    inside: dict[Channels, list[int]] = {}
    for parent, children in _nest(nodes).items():
        order = _order({child: nodes[child] for child in children}, place) if children else []
        inside[parent] = _appended(order, sorted(parent, key=place.__getitem__))
    tops = sorted(inside, key=lambda node: (-nodes[node], min(map(place.__getitem__, node))))
    weights = [nodes[node] for node in tops]
    shared = [
        {j: len(node & other) for j, other in enumerate(tops) if j != i and node & other}
        for i, node in enumerate(tops)
    ]
    channels: list[int] = []
    nothing: Channels = frozenset()
    left = list(range(len(tops)))
    while left:
        numbers = _best_path(left, weights, shared)
        left = [number for number in left if number not in numbers]
        path = [tops[number] for number in numbers]
        for before, node, after in zip(
            [nothing, *path[:-1]], path, [*path[1:], nothing], strict=True
        ):
            own = inside[node]
            channels.extend(c for c in own if c in before)
            channels.extend(c for c in own if c not in before and c not in after)
            channels.extend(c for c in own if c in after and c not in before)
    return list(dict.fromkeys(channels))


def _nest(nodes: Iterable[Channels]) -> dict[Channels, list[Channels]]:
    """The sets that are in no other, each with all the sets inside it.

    A set inside several is given to the largest only.
    """
    nested: dict[Channels, list[Channels]] = {}
    for node in sorted(nodes, key=len, reverse=True):
        parent = next((other for other in nested if node < other), None)
        if parent is None:
            nested[node] = []
        else:
            nested[parent].append(node)
    return nested


def _best_path(
    nodes: Sequence[int], weights: Sequence[int], shared: Sequence[dict[int, int]]
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


def _appended(order: list[int], rest: Iterable[int]) -> list[int]:
    return list(dict.fromkeys([*order, *rest]))
