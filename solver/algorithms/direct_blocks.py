"""The direct model of blocks: every order is a path through the channels, a run a step into a set.

CP-SAT knows paths as circuits through one more node, which stands for both ends. Positions, as in
the model of copies, would do as well, but take minutes for ten channels.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import pairwise

from ortools.sat.python import cp_model

from upscale_opt.solver.algorithms.direct_program import Program, Values
from upscale_opt.solver.problem.instance import Instance, Orders, Part, Read, Space

Channels = frozenset[int]


@dataclass(frozen=True)
class _Path:
    """The order of a space.

    Attributes:
        groups: the channels, in groups that stay together.
        first: per group, whether the order begins with it.
        last: per group, whether the order ends with it.
        steps: whether the one group is followed by the other.
    """

    groups: tuple[tuple[int, ...], ...]
    first: dict[int, cp_model.IntVar]
    last: dict[int, cp_model.IntVar]
    steps: dict[tuple[int, int], cp_model.IntVar]


def count_blocks_literals(instance: Instance) -> int:
    """About how many truth values the model has."""
    wanted = _wanted(instance.reads)
    return sum(
        (len(_groups(instance.spaces[number], sets)) + 1) ** 2 for number, sets in wanted.items()
    )


def model_blocks(program: Program, instance: Instance, start: Orders) -> Callable[[Values], Orders]:
    """Add the orders and the runs they cut reads into.

    Args:
        program: the model to add to.
        instance: under the measure ``"blocks"``.
        start: orders to hint at.

    Returns:
        A function that reads the orders off a solution.
    """
    paths: dict[int, _Path] = {}
    for number, sets in _wanted(instance.reads).items():
        space = instance.spaces[number]
        if space.channels:
            paths[number] = _path(program, space, sets, start[number])
            _count_runs(program, paths[number], sets)
    for read in instance.reads:
        if not read.parts:
            program.constant += read.weight
        there = [part for part in read.parts if part.space in paths]
        for left, right in pairwise(there):
            _merge(program, read.weight, paths, left, right)
    _break_symmetry(program, instance, paths)

    def orders(value: Values) -> Orders:
        found = list(start)
        for number, path in paths.items():
            if not instance.spaces[number].fixed:
                found[number] = _read_off(path, value)
        return tuple(found)

    return orders


def _wanted(reads: Iterable[Read]) -> dict[int, dict[Channels, int]]:
    """Per space the sets of channels that reads want, with what a run of each costs."""
    wanted: dict[int, dict[Channels, int]] = {}
    for read in reads:
        for part in read.parts:
            sets = wanted.setdefault(part.space, {})
            sets[part.channels] = sets.get(part.channels, 0) + read.weight
    return wanted


def _groups(space: Space, sets: Iterable[Channels]) -> tuple[tuple[int, ...], ...]:
    """The channels that no read tells apart, together; on a fixed space, every one for itself.

    Moving a channel next to its twin merges runs or leaves them as they are.
    """
    if space.fixed:
        return tuple((channel,) for channel in space.channels)
    groups: dict[tuple[bool, ...], list[int]] = {}
    for channel in space.channels:
        groups.setdefault(tuple(channel in wanted for wanted in sets), []).append(channel)
    return tuple(map(tuple, groups.values()))


def _path(
    program: Program, space: Space, sets: Iterable[Channels], start: tuple[int, ...]
) -> _Path:
    """The order of one space, as the arcs of a circuit; node 0 is its ends."""
    groups = _groups(space, sets)
    number = {channel: i for i, group in enumerate(groups, 1) for channel in group}
    tour = [0, *dict.fromkeys(number[channel] for channel in start), 0]
    known = set(pairwise(tour))
    arcs: dict[tuple[int, int], cp_model.IntVar] = {}
    nodes = range(len(groups) + 1)
    for left in nodes:
        for right in nodes:
            if left == right or (space.fixed and (left, right) not in known):
                continue
            arcs[left, right] = program.literal((left, right) in known)
    program.model.add_circuit([(left, right, arc) for (left, right), arc in arcs.items()])
    return _Path(
        groups,
        first={j - 1: arc for (i, j), arc in arcs.items() if i == 0},
        last={i - 1: arc for (i, j), arc in arcs.items() if j == 0},
        steps={(i - 1, j - 1): arc for (i, j), arc in arcs.items() if i and j},
    )


def _count_runs(program: Program, path: _Path, sets: dict[Channels, int]) -> None:
    """Pay for every step into a set from outside it."""
    sets_of = [
        {number for number, wanted in enumerate(sets) if group[0] in wanted}
        for group in path.groups
    ]
    prices = list(sets.values())
    for group, arc in path.first.items():
        program.pay(sum(prices[number] for number in sets_of[group]), arc)
    for (left, right), arc in path.steps.items():
        program.pay(sum(prices[number] for number in sets_of[right] - sets_of[left]), arc)


def _merge(program: Program, weight: int, paths: dict[int, _Path], left: Part, right: Part) -> None:
    """Pay back a run that goes on from one space into the next."""
    before, after = paths[left.space], paths[right.space]
    ends = [arc for i, arc in before.last.items() if before.groups[i][-1] in left.channels]
    begins = [arc for i, arc in after.first.items() if after.groups[i][0] in right.channels]
    if ends and begins:
        merged = program.literal(False)
        program.model.add_bool_or([~merged, *ends])
        program.model.add_bool_or([~merged, *begins])
        program.pay(-weight, merged)


def _break_symmetry(program: Program, instance: Instance, paths: dict[int, _Path]) -> None:
    """Of an order and its reverse, which no read tells apart, allow one."""
    tied: dict[int, bool] = defaultdict(bool)
    for read in instance.reads:
        for part in read.parts:
            tied[part.space] |= len(read.parts) > 1
    for number, path in paths.items():
        if tied[number] or instance.spaces[number].fixed or len(path.groups) < 2:
            continue
        first, last = (
            cp_model.LinearExpr.weighted_sum(list(ends.values()), list(ends))
            for ends in (path.first, path.last)
        )
        program.model.add(first < last)


def _read_off(path: _Path, value: Values) -> tuple[int, ...]:
    """The order that a solution's circuit stands for."""
    after = {left: right for (left, right), arc in path.steps.items() if value(arc)}
    (group,) = (i for i, arc in path.first.items() if value(arc))
    order = list(path.groups[group])
    while group in after:
        group = after[group]
        order.extend(path.groups[group])
    return tuple(order)
