"""Proofs of lower bounds that anyone can check: conflicts, their prices, and whole numbers.

A *group* says that at most ``limit`` of its demands hold together. Charge its price for every
demand of it that does hold: whatever the orders are, these charges come to at most limit times
price. So for any prices p >= 0, no orders cost less than

    sum over reads of min(cost + charges of the demands made use of)  -  sum of limit * p

where each read may be served by itself in whatever way is cheapest. This is a Lagrangian bound; for
reads of one demand each, it is the fractional covering of the conflicts. Where the best prices
prove too little, the proof distinguishes *cases*: a demand holds, or it does not. Prices and cases
are found in ``pricing.py``, but whoever checks the bound need not know or trust how.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence

from upscale_opt.solver.problem.conflicts import three_conflict
from upscale_opt.solver.problem.instance import (
    Case,
    Group,
    Instance,
    Proof,
    Read,
    Space,
)
from upscale_opt.solver.problem.pqtree import PQTree
from upscale_opt.solver.problem.reduction import (
    Component,
    demand_mask,
    demands_of,
    reduce_instance,
)

_MAX_LOOKED_AT = 2_000_000
"""Cases, over all demands that they are distinguished by."""

_MAX_SUBSETS = 20_000_000
"""A group of which more subsets would have to be tried is not believed."""


def proven_bound(instance: Instance, proof: Proof) -> int:
    """The bound on all orders' cost, if the groups of ``proof`` are right (:func:`false_group`).

    Whole numbers throughout. Costs are sums of the reads' weights, so every component's bound is
    rounded up to the next multiple of their greatest common divisor.

    Args:
        instance: the problem; of measure ``"copies"``, or a relaxation (``as_copies``).
        proof: parts of it that speak of nothing in the instance prove nothing and do no harm.
    """
    core = reduce_instance(instance)
    home = {d: place for place, part in enumerate(core.components) for d in part.demands}
    number = {index: d for index, d in core.number().items() if d in home}
    groups = [_translated_group(group, number) for group in proof.groups]
    cases: list[list[Case]] = [[] for _ in core.components]
    for case in proof.cases:
        translated = _translated_case(case, number, groups)
        if translated is not None:
            spoken_of = [*translated.holds, *translated.fails]
            spoken_of += [groups[index].demands[0] for index in translated.prices]
            for place in {home[demand] for demand in spoken_of}:
                cases[place].append(translated)
    bound = core.constant
    for component, own in zip(core.components, cases, strict=True):
        if not complete([(case.holds, case.fails) for case in own]):
            own = [Case()]  # no prices: every read for itself
        bound += min(case_bound(component, groups, case) for case in own)
    return bound


def false_group(instance: Instance, proof: Proof) -> tuple[int, ...] | None:
    """Demands that a group of the proof says to exclude each other, but which do not."""
    for group in proof.groups:
        spaces = {instance.demands[demand].space for demand in group.demands}
        if len(spaces) != 1 or len(set(group.demands)) < len(group.demands):
            return group.demands
        if group.limit < 0 or math.comb(len(group.demands), group.limit + 1) > _MAX_SUBSETS:
            return group.demands
        found = _compatible(instance, instance.spaces[spaces.pop()], group)
        if found is not None:
            return found
    return None


def _compatible(instance: Instance, space: Space, group: Group) -> tuple[int, ...] | None:
    """The first ``limit + 1`` demands of the group that can hold together."""
    tree = PQTree(space.channels, ends=True)
    masks = {d: demand_mask(tree, instance.demands[d]) for d in group.demands}
    everything = tree.mask(space.channels)
    for subset in itertools.combinations(group.demands, group.limit + 1):
        if len(subset) == 3:
            first, second, third = (masks[d] for d in subset)
            if not three_conflict((first, second, third), everything):
                return subset
            continue
        trial = tree.copy()
        if all(trial.reduce_mask(masks[demand]) for demand in subset):
            return subset
    return None


def _translated_group(group: Group, number: Mapping[int, int]) -> Group:
    """The group in core demands; empty if some of its demands matter to no read."""
    if all(demand in number for demand in group.demands):
        return Group(tuple({number[demand] for demand in group.demands}), group.limit)
    return Group((), 0)


def _translated_case(case: Case, number: Mapping[int, int], groups: Sequence[Group]) -> Case | None:
    """The case in core demands; ``None`` if its demands do not matter, or a price is negative."""
    if any(demand not in number for demand in (*case.holds, *case.fails)):
        return None
    if case.unit < 1 or min((0, *case.prices.values(), *case.shares.values())) < 0:
        return None
    return Case(
        holds=tuple(number[demand] for demand in case.holds),
        fails=tuple(number[demand] for demand in case.fails),
        prices={g: p for g, p in case.prices.items() if g < len(groups) and groups[g].demands},
        shares={(read, number[d]): p for (read, d), p in case.shares.items() if d in number},
        unit=case.unit,
    )


def complete(cases: Collection[tuple[Collection[int], Collection[int]]]) -> bool:
    """At least one of the cases (demands that hold, demands that fail) is always given.

    Cases that take very long to look through are taken for incomplete.
    """
    waiting = [[(frozenset(holds), frozenset(fails)) for holds, fails in cases]]
    looked_at = 0
    while waiting:
        here = waiting.pop()
        looked_at += 1 + len(here)
        if any(not holds and not fails for holds, fails in here):
            continue
        if not here or looked_at > _MAX_LOOKED_AT:
            return False
        demand = min(here[0][0] | here[0][1])
        one = frozenset((demand,))
        waiting.append([(holds - one, fails) for holds, fails in here if demand not in fails])
        waiting.append([(holds, fails - one) for holds, fails in here if demand not in holds])
    return True


def case_bound(component: Component, groups: Sequence[Group], case: Case) -> int:
    """The least that orders of this case cost; everything speaks of core demands."""
    price: Counter[int] = Counter()
    total = 0
    for index, value in case.prices.items():
        total -= groups[index].limit * value
        for demand in groups[index].demands:
            price[demand] += value
    free = dict.fromkeys(case.holds, 0)
    total += sum(price[demand] for demand in free)
    charges = _charges(component, {**price, **free}, case.shares)
    never = frozenset(case.fails)
    for read, number in zip(component.reads, component.numbers, strict=True):
        total += _least(read, charges[number], never, case.unit)
    step = common_weight(component) or 1
    return max(0, -(-total // (step * case.unit)) * step)


def common_weight(component: Component) -> int:
    """The greatest common divisor of all weights: costs are multiples of it."""
    weights = [read.weight for read in component.reads]
    return math.gcd(*weights, *(piece.weight for read in component.reads for piece in read.pieces))


def _charges(
    component: Component, price: Mapping[int, int], shares: Mapping[tuple[int, int], int]
) -> dict[int, dict[int, int]]:
    """Per read, what each of its demands is charged: no more, over all reads, than its price."""
    charges: dict[int, dict[int, int]] = {number: {} for number in component.numbers}
    for demand, reads in users(component).items():
        left = price.get(demand, 0)
        for number in reads:
            charge = left if len(reads) == 1 else min(left, shares.get((number, demand), 0))
            charges[number][demand] = charge
            left -= charge
    return charges


def users(component: Component) -> dict[int, list[int]]:
    """Per demand, the numbers of the reads that make it."""
    found: dict[int, list[int]] = defaultdict(list)
    for read, number in zip(component.reads, component.numbers, strict=True):
        for demand in demands_of(read):
            found[demand].append(number)
    return found


def _least(read: Read, charge: Mapping[int, int], never: frozenset[int], unit: int) -> int:
    """The least that the read can cost with charges, in units."""
    best = read.weight * unit
    if read.view is not None and never.isdisjoint(read.view):
        best = min(best, sum(charge[demand] for demand in set(read.view)))
    if read.pieces:
        best = min(best, _least_by_pieces(read, charge, never, unit))
    return best


def _least_by_pieces(
    read: Read, charge: Mapping[int, int], never: frozenset[int], unit: int
) -> int:
    """The same if the read is served piece by piece.

    A demand of several pieces is charged to each of them in part, so that they can be looked at one
    by one.
    """
    times = Counter(demand for piece in read.pieces for demand in set(piece.view or ()))
    total = 0
    gathers = 0
    savings: list[int] = []
    for piece in read.pieces:
        gather = piece.weight * unit
        if piece.view is None or not never.isdisjoint(piece.view):
            total += gather
            gathers += 1
            continue
        view = sum(charge[demand] // times[demand] for demand in set(piece.view))
        total += view
        if view > gather:
            savings.append(view - gather)
    if gathers > read.max_gathers:
        return read.weight * unit
    return total - sum(sorted(savings, reverse=True)[: read.max_gathers - gathers])
