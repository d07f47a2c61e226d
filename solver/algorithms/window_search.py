"""Orders under which windows are narrow: the program with windows, by annealing and by CP-SAT.

A window costs by the number of unwanted channels between those wanted, so what an order costs is no
longer a matter of which demands hold. Channels that no read tells apart are one *atom*; atoms are
moved about at random (simulated annealing), from the orders that are optimal without windows. Where
they are few, CP-SAT places them as intervals on a line and proves the optimum.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from upscale_opt.disjoint_sets import UnionFind
from upscale_opt.solver.algorithms.window_annealing import anneal
from upscale_opt.solver.algorithms.window_line import Line, spaces_of
from upscale_opt.solver.algorithms.window_proof import is_small, prove
from upscale_opt.solver.problem.instance import (
    Improvement,
    Instance,
    Orders,
    Outcome,
    Proof,
    cost,
)

Solve = Callable[[Instance, float], Outcome]
"""A solver for problems without windows: the problem, and seconds."""


@dataclass(frozen=True)
class Part:
    """Reads that share spaces with each other and with no other reads."""

    reads: tuple[int, ...]
    spaces: tuple[int, ...]


def split(instance: Instance) -> tuple[list[int], list[Part]]:
    """The reads that no window concerns, and the others by the spaces that they share."""
    union = UnionFind()
    spaces = [spaces_of(instance, read) for read in instance.reads]
    for own in spaces:
        if own:
            union.join(own)
    concerned = {
        union.find(own[0])
        for read, own in zip(instance.reads, spaces, strict=True)
        if read.window is not None and own
    }
    members: dict[int, list[int]] = {root: [] for root in sorted(concerned)}
    rest: list[int] = []
    for number, own in enumerate(spaces):
        root = union.find(own[0]) if own else None
        members.get(root, rest).append(number) if root is not None else rest.append(number)
    parts = []
    for root, reads in members.items():
        used = tuple(space for space in union.members() if union.find(space) == root)
        parts.append(Part(tuple(reads), used))
    return rest, parts


def solve_with_windows(
    instance: Instance,
    solve: Solve,
    *,
    time_limit: float,
    seed: int = 0,
    progress: Improvement | None = None,
) -> Outcome:
    """The orders that ``solve`` finds, improved where reads may be served by windows.

    The bound is that of a relaxation, in which every window is as narrow as can be; or the optimum,
    where that is proven.

    Args:
        instance: the problem.
        solve: solves problems without windows, within so many seconds.
        time_limit: in seconds.
        seed: of the annealing.
        progress: told the best cost, and the bound.
    """
    deadline = time.monotonic() + time_limit
    instance = _without_empty_demands(instance)
    rest, parts = split(instance)
    outcome = solve(without_windows(instance, rest), time_limit / 3)
    orders, interrupted = list(outcome.orders), outcome.interrupted
    bound = outcome.lower_bound
    for number, part in enumerate(parts):
        own = replace(instance, reads=tuple(instance.reads[r] for r in part.reads), wishes=())
        left = max(deadline - time.monotonic(), 0.05) / (len(parts) - number)
        plain = solve(without_windows(own, range(len(own.reads))), left / 4)
        low = solve(relaxed(own), left / 4)
        best, least = plain.orders, low.lower_bound
        interrupted |= plain.interrupted or low.interrupted
        if not interrupted:
            try:
                until = time.monotonic() + left / 2
                best, proven = improve_part(own, best, seed=seed, deadline=until)
                least = max(least, proven or 0)
            except KeyboardInterrupt:
                interrupted = True
        bound += least
        for space in part.spaces:
            orders[space] = best[space]
        if progress is not None:
            progress(cost(instance, tuple(orders)), bound if number == len(parts) - 1 else 0)
    value = cost(instance, tuple(orders))
    proof = _renumbered(outcome.proof, rest)
    return Outcome(tuple(orders), value, min(bound, value), proof, interrupted)


def _without_empty_demands(instance: Instance) -> Instance:
    """The same problem, without the demands of no channels, which always hold."""

    def kept(view: tuple[int, ...] | None) -> tuple[int, ...] | None:
        return view and tuple(d for d in view if instance.demands[d].channels)

    reads = []
    for read in instance.reads:
        pieces = tuple(replace(piece, view=kept(piece.view)) for piece in read.pieces)
        view = kept(read.view)
        reads.append(replace(read, view=view, pieces=pieces, window=read.window if view else None))
    return replace(instance, reads=tuple(reads))


def _renumbered(proof: Proof, reads: Sequence[int]) -> Proof:
    """A proof about some reads, by the numbers that these have in the whole problem."""
    cases = tuple(
        replace(case, shares={(reads[r], d): price for (r, d), price in case.shares.items()})
        for case in proof.cases
    )
    return replace(proof, cases=cases)


def improve_part(
    instance: Instance, orders: Orders, *, seed: int, deadline: float
) -> tuple[Orders, int | None]:
    """Better orders, and a bound on what any orders cost, if one is found.

    Args:
        instance: a problem whose reads share their spaces.
        orders: to begin with.
        seed: of the annealing.
        deadline: when to stop, by ``time.monotonic()``.
    """
    line = Line(instance, orders)
    best = anneal(line, random.Random(seed), deadline)
    proven = None
    if is_small(line) and time.monotonic() < deadline:
        best, proven = prove(line, best, deadline)
    return line.orders(best, orders), proven


def without_windows(instance: Instance, reads: Sequence[int]) -> Instance:
    """Some reads of a problem, as if there were no windows."""
    kept = tuple(replace(instance.reads[number], window=None) for number in reads)
    return replace(instance, reads=kept)


def relaxed(instance: Instance) -> Instance:
    """A problem that costs no more: every window costs what the narrowest one would."""
    return replace(
        instance,
        reads=tuple(
            read
            if read.window is None
            else replace(read, weight=min(read.weight, read.window.price), window=None)
            for read in instance.reads
        ),
    )
