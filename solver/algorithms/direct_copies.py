"""The direct model of copies: a position per channel, and windows for demands.

A demand for k channels holds if they lie in a window of k positions. Where it is to hold, all other
channels lie left or right of the window. That follows, as positions are all different, but CP-SAT
finds it out very late: with it, 24 sets over 30 channels take a second, without it more than 20.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from itertools import pairwise

from ortools.sat.python import cp_model

from upscale_opt.solver.algorithms.direct_program import Program, Values
from upscale_opt.solver.problem.instance import (
    Demand,
    Instance,
    Orders,
    Read,
    Space,
    gathered_pieces,
    holds,
    is_view,
    satisfied,
)

_Positions = dict[int, cp_model.IntVar]


def count_copies_literals(instance: Instance) -> int:
    """About how many truth values the model has."""
    return sum(
        len(instance.spaces[instance.demands[demand].space].channels)
        for demand in _mentioned(instance)
    )


def model_copies(program: Program, instance: Instance, start: Orders) -> Callable[[Values], Orders]:
    """Add the orders and what they copy.

    Args:
        program: the model to add to.
        instance: under the measure ``"copies"``.
        start: orders to hint at.

    Returns:
        A function that reads the orders off a solution.
    """
    demands: dict[int, dict[int, Demand]] = {}
    for index in _mentioned(instance):
        demand = instance.demands[index]
        demands.setdefault(demand.space, {})[index] = demand
    hints = list(start)
    positions: dict[int, _Positions] = {}
    held: dict[int, cp_model.IntVar] = {}
    for number, here in demands.items():
        space = instance.spaces[number]
        if space.fixed:
            place = {channel: i for i, channel in enumerate(space.channels)}
            for index, demand in here.items():
                held[index] = program.model.new_constant(holds(demand, place, len(place)))
            continue
        hints[number] = _canonical(space, here.values(), start[number])
        positions[number] = _order(program, space, here.values(), hints[number])
        for index, demand in here.items():
            held[index] = _held(program, demand, positions[number], hints[number])
    hint = satisfied(instance, tuple(hints))
    for read in instance.reads:
        _serve(program, read, held, hint)

    def orders(value: Values) -> Orders:
        found = list(start)
        for number, place in positions.items():
            found[number] = tuple(sorted(place, key=lambda channel: value(place[channel])))
        return tuple(found)

    return orders


def _mentioned(instance: Instance) -> list[int]:
    """The demands that some read or piece asks for."""
    views = [
        view for read in instance.reads for view in (read.view, *(p.view for p in read.pieces))
    ]
    return sorted({demand for view in views for demand in view or ()})


def _order(
    program: Program, space: Space, demands: Collection[Demand], hint: tuple[int, ...]
) -> _Positions:
    """The positions of a space's channels, less what no demand can tell from another order."""
    last = len(space.channels) - 1
    place = {channel: i for i, channel in enumerate(hint)}
    position = {c: program.number(0, last, place[c]) for c in space.channels}
    program.model.add_all_different(position.values())
    twins = _twins(space, demands)
    for group in twins:
        for left, right in pairwise(group):
            program.model.add(position[left] < position[right])
    if twins and _reversible(demands):
        program.model.add(position[twins[0][0]] + position[twins[0][-1]] <= last)
    return position


def _canonical(
    space: Space, demands: Collection[Demand], order: tuple[int, ...]
) -> tuple[int, ...]:
    """``order`` as :func:`_order` allows it: twins ascend, the first twins are rather left."""
    twins = _twins(space, demands)
    place = {channel: i for i, channel in enumerate(order)}
    if twins and _reversible(demands):
        outer = [place[channel] for channel in twins[0]]
        if min(outer) + max(outer) > len(order) - 1:
            place = {channel: len(order) - 1 - i for channel, i in place.items()}
    for group in twins:
        places = sorted(place[channel] for channel in group)
        place.update(zip(group, places, strict=True))
    return tuple(sorted(order, key=place.__getitem__))


def _twins(space: Space, demands: Collection[Demand]) -> list[list[int]]:
    """The channels in groups that no demand tells apart, in their original order."""
    groups: dict[tuple[bool, ...], list[int]] = {}
    for channel in space.channels:
        key = tuple(channel in demand.channels for demand in demands)
        groups.setdefault(key, []).append(channel)
    return list(groups.values())


def _reversible(demands: Collection[Demand]) -> bool:
    return all(demand.kind == "interval" for demand in demands)


def _held(
    program: Program, demand: Demand, position: _Positions, hint: tuple[int, ...]
) -> cp_model.IntVar:
    """A literal that implies the demand."""
    model = program.model
    size, wanted = len(position), len(demand.channels)
    place = {channel: i for i, channel in enumerate(hint)}
    known = holds(demand, place, size)
    held = program.literal(known)
    if not demand.channels:
        return held
    low = min(place[channel] for channel in demand.channels) if known else 0
    first: cp_model.IntVar | int = 0
    if demand.kind == "suffix":
        first = size - wanted
    elif demand.kind == "interval":
        first = program.number(0, size - wanted, low)
    for channel, where in position.items():
        if channel in demand.channels:
            model.add(where >= first).only_enforce_if(held)
            model.add(where < first + wanted).only_enforce_if(held)
        elif demand.kind == "prefix":
            model.add(where >= wanted).only_enforce_if(held)
        elif demand.kind == "suffix":
            model.add(where < first).only_enforce_if(held)
        else:
            left = program.literal(place[channel] < low)
            model.add(where < first).only_enforce_if(held, left)
            model.add(where >= first + wanted).only_enforce_if(held, ~left)
    return held


def _serve(
    program: Program, read: Read, held: dict[int, cp_model.IntVar], hint: frozenset[int]
) -> None:
    """Pay for ``read``: nothing as a view, its gathered pieces, or one gather.

    That a read is served piece by piece only where this copies strictly less needs no constraint:
    otherwise the one gather is no dearer.
    """
    piecewise = gathered_pieces(read, hint)
    ways = [program.literal(not is_view(read.view, hint) and piecewise is None)]
    program.pay(read.weight, ways[0])
    if read.view is not None:
        ways.append(_all(program, [held[demand] for demand in read.view], is_view(read.view, hint)))
    if read.pieces:
        chosen = program.literal(piecewise is not None)
        gathers = []
        for number, piece in enumerate(read.pieces):
            gather = program.literal(piecewise is not None and number in piecewise)
            program.pay(piece.weight, gather)
            gathers.append(gather)
            if piece.view is None:
                program.model.add_implication(chosen, gather)
            else:
                for demand in piece.view:
                    program.model.add_bool_or([~chosen, gather, held[demand]])
        program.model.add(cp_model.LinearExpr.sum(gathers) <= read.max_gathers)
        ways.append(chosen)
    program.model.add_bool_or(ways)


def _all(program: Program, literals: list[cp_model.IntVar], hint: bool) -> cp_model.IntVar:
    """A literal that implies all of ``literals``."""
    result = program.literal(hint)
    for literal in literals:
        program.model.add_implication(result, literal)
    return result
