"""Orders under which windows are narrow: the program with windows, by annealing and by CP-SAT.

A window costs by the number of unwanted channels between those wanted, so what an order costs is no
longer a matter of which demands hold. Channels that no read tells apart are one *atom*; atoms are
moved about at random (simulated annealing), from the orders that are optimal without windows. Where
they are few, CP-SAT places them as intervals on a line and proves the optimum.
"""

from __future__ import annotations

import math
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from ortools.sat.python import cp_model

from upscale_opt.solver.instance import (
    Instance,
    Orders,
    Outcome,
    Progress,
    Proof,
    Read,
    cost,
    read_cost,
)
from upscale_opt.solver.interruptible import solve_interruptibly, whole_bound
from upscale_opt.solver.union_find import UnionFind

_STEPS_PER_ATOM = 60
_MOST_STEPS = 2_500
"""How long the annealing of one part takes."""

_STARTS = 3
"""How many reads are tried as the view that the others' windows lie around."""

_FEW_ATOMS = 14
"""Up to so many atoms CP-SAT is asked to prove the optimum."""

_EFFORT = 4.0
"""How long it may take for each part, in CP-SAT's deterministic seconds."""

Solve = Callable[[Instance, float], Outcome]
"""A solver for problems without windows: the problem, and seconds."""

_Array = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Part:
    """Reads that share spaces with each other and with no other reads."""

    reads: tuple[int, ...]
    spaces: tuple[int, ...]


def split(instance: Instance) -> tuple[list[int], list[Part]]:
    """The reads that no window concerns, and the others by the spaces that they share."""
    union = UnionFind()
    spaces = [_spaces(instance, read) for read in instance.reads]
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


def _spaces(instance: Instance, read: Read) -> list[int]:
    views = (read.view, *(piece.view for piece in read.pieces))
    return sorted({instance.demands[d].space for view in views for d in view or ()})


def solve_with_windows(
    instance: Instance,
    solve: Solve,
    *,
    time_limit: float,
    seed: int = 0,
    progress: Progress | None = None,
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
    line = _Line(instance, orders)
    best = line.anneal(random.Random(seed), deadline)
    proven = None
    if len(line.sizes) <= _FEW_ATOMS and line.simple and time.monotonic() < deadline:
        best, proven = line.prove(best, deadline)
    return line.orders(best, orders), proven


class _Line:
    """The spaces of a part one behind the other, as a sequence of atoms."""

    def __init__(self, instance: Instance, orders: Orders) -> None:
        self.reads = list(instance.reads)
        self.spaces = sorted({s for read in self.reads for s in _spaces(instance, read)})
        numbers = sorted({d for r in self.reads for d in _demands(r)})
        self.place = {demand: i for i, demand in enumerate(numbers)}
        demands = [instance.demands[number] for number in numbers]
        windows = [(i, read) for i, read in enumerate(self.reads) if read.window is not None]
        self.atoms: list[list[int]] = []
        self.home: list[int] = []
        signs: list[tuple[bool, ...]] = []
        for space in self.spaces:
            found: dict[tuple[bool, ...], list[int]] = {}
            for channel in orders[space]:
                sign = (
                    *(d.space == space and channel in d.channels for d in demands),
                    *(channel in r.window.allowed for _, r in windows if r.window is not None),
                )
                found.setdefault(sign, []).append(channel)
            if instance.spaces[space].fixed:
                found = {(*sign, True): [c] for sign, cs in found.items() for c in cs}
            self.atoms += found.values()
            self.home += [space] * len(found)
            signs += found
        self.sizes: _Array = np.array([len(atom) for atom in self.atoms], dtype=np.int64)
        table = np.array([sign[: len(demands) + len(windows)] for sign in signs], dtype=bool).T
        self.wanted = table[: len(demands)]
        self.foreign = ~table[len(demands) :]
        self.windows = [
            (i, self.place[read.view[0]], read.window.price)
            for i, read in windows
            if read.view and read.window is not None
        ]
        self.needed: _Array = np.array([len(d.channels) for d in demands], dtype=np.int64)
        starts = np.cumsum([0, *(len(orders[space]) for space in self.spaces)])
        self.low = {space: int(starts[i]) for i, space in enumerate(self.spaces)}
        self.high = {space: int(starts[i + 1]) for i, space in enumerate(self.spaces)}
        self.kinds = [(d.kind, self.low[d.space], self.high[d.space]) for d in demands]
        self.free = [s for s in self.spaces if not instance.spaces[s].fixed]
        self.start = self._begin(orders)
        self.simple = not any(read.pieces for read in self.reads) and len(self.free) == len(
            self.spaces
        )

    def _begin(self, orders: Orders) -> list[int]:
        """The atoms in the sequence of their middle channels."""
        middle = {}
        for number, atom in enumerate(self.atoms):
            rank = {c: i for i, c in enumerate(orders[self.home[number]])}
            middle[number] = sorted(rank[c] for c in atom)[len(atom) // 2]
        places = {space: i for i, space in enumerate(self.spaces)}
        return sorted(middle, key=lambda a: (places[self.home[a]], middle[a]))

    def orders(self, sequence: Sequence[int], orders: Orders) -> Orders:
        """The channels in this sequence of atoms."""
        result = list(orders)
        for space in self.free:
            result[space] = tuple(
                c for a in sequence if self.home[a] == space for c in sorted(self.atoms[a])
            )
        return tuple(result)

    # What a sequence costs.

    def cost(self, sequence: Sequence[int]) -> int:
        """The cost of all reads of the part."""
        chosen = np.asarray(sequence)
        ends = np.cumsum(self.sizes[chosen])
        starts = ends - self.sizes[chosen]
        wanted = self.wanted[:, chosen]
        first = np.where(wanted, starts, np.iinfo(np.int64).max).min(axis=1)
        last = np.where(wanted, ends, -1).max(axis=1)
        extra = last - first - self.needed
        held = {
            number
            for number, place in self.place.items()
            if extra[place] == 0 and self._at_end(place, int(first[place]), int(last[place]))
        }
        costs = [read_cost(read, held) for read in self.reads]
        for row, (read, place, price) in enumerate(self.windows):
            if 0 < extra[place] * price < costs[read]:
                inside = (starts >= first[place]) & (ends <= last[place])
                if not (inside & self.foreign[row, chosen]).any():
                    costs[read] = int(extra[place]) * price
        return sum(costs)

    def _at_end(self, place: int, first: int, last: int) -> bool:
        kind, low, high = self.kinds[place]
        return (kind != "prefix" or first == low) and (kind != "suffix" or last == high)

    # The search.

    def anneal(self, rng: random.Random, deadline: float) -> list[int]:
        """The best sequence of atoms found."""
        sizes = Counter(self.home)
        movable = [i for i, s in enumerate(self.spaces) if s in self.free and sizes[s] > 1]
        best, value = list(self.start), self.cost(self.start)
        if not movable:
            return best
        for start in self._starts():
            cost = self.cost(start)
            if cost < value:
                best, value = start, cost
        current = value
        now = [[a for a in best if self.home[a] == space] for space in self.spaces]
        steps = min(_STEPS_PER_ATOM * len(self.start), _MOST_STEPS)
        hot = max((read.weight for read in self.reads), default=1) * 0.3
        for step in range(steps):
            if current == 0 or (step % 32 == 0 and time.monotonic() >= deadline):
                break
            heat = hot * (1 - step / steps) ** 2 + 1e-9
            which = rng.choice(movable)
            moved = [*now[:which], _moved(now[which], rng), *now[which + 1 :]]
            sequence = [a for block in moved for a in block]
            cost = self.cost(sequence)
            if cost <= current or rng.random() < math.exp((current - cost) / heat):
                now, current = moved, cost
                if cost < value:
                    best, value = sequence, cost
        return best

    def _starts(self) -> Iterator[list[int]]:
        """Sequences in which one read is a view, and other reads' windows hold little else.

        What few windows may hold lies outside: in an arena, the tensors written last.
        """
        spread = (~self.foreign).sum(axis=0)
        dearest = sorted(self.windows, key=lambda w: -self.reads[w[0]].weight)[:_STARTS]
        for _, place, _ in dearest:
            wanted = self.wanted[place]
            side = np.where(wanted, -1, 1) * (spread.max(initial=0) + 1 - spread)
            rank = {a: i for i, a in enumerate(self.start)}
            order = {space: i for i, space in enumerate(self.spaces)}
            yield sorted(
                self.start,
                key=lambda a: (
                    order[self.home[a]],
                    int(side[a]) if self.home[a] in self.free else 0,
                    rank[a],
                ),
            )

    def prove(self, hint: Sequence[int], deadline: float) -> tuple[list[int], int | None]:
        """The optimum by CP-SAT, if it can be proven in the time."""
        model = cp_model.CpModel()
        ends = np.cumsum(self.sizes[np.asarray(hint)])
        begin = {a: int(e - self.sizes[a]) for a, e in zip(hint, ends, strict=True)}
        places: list[cp_model.IntVar] = []
        for atom, space in enumerate(self.home):
            size = int(self.sizes[atom])
            places.append(model.new_int_var(self.low[space], self.high[space] - size, ""))
            model.add_hint(places[atom], begin[atom])
        model.add_no_overlap(
            model.new_fixed_size_interval_var(places[a], int(self.sizes[a]), "")
            for a in range(len(places))
        )
        spans = [self._span(model, places, place) for place in range(len(self.needed))]
        window_of = {read: (row, place, p) for row, (read, place, p) in enumerate(self.windows)}
        costs: list[cp_model.LinearExprT] = []
        for number, read in enumerate(self.reads):
            if read.view is None:
                costs.append(read.weight)
                continue
            view = model.new_bool_var("")
            for demand in read.view:
                place = self.place[demand]
                first, last = spans[place]
                kind, low, high = self.kinds[place]
                model.add(last - first == int(self.needed[place])).only_enforce_if(view)
                if kind == "prefix":
                    model.add(first == low).only_enforce_if(view)
                if kind == "suffix":
                    model.add(last == high).only_enforce_if(view)
            gathers = [view]
            if number in window_of:
                window, paid = self._window(model, places, spans, window_of[number], read.weight)
                gathers.append(window)
                costs.append(paid)
            costs.append(read.weight * (1 - sum(gathers)))
            model.add(sum(gathers) <= 1)
        model.minimize(cp_model.LinearExpr.sum(costs))
        solver = cp_model.CpSolver()
        solver.parameters.num_workers = 1
        solver.parameters.max_deterministic_time = _EFFORT
        solver.parameters.max_time_in_seconds = max(deadline - time.monotonic(), 0.01)
        status, interrupted = solve_interruptibly(solver, model, _Nobody())
        if interrupted:
            raise KeyboardInterrupt
        if status not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
            return list(hint), None
        sequence = sorted(range(len(places)), key=lambda a: solver.value(places[a]))
        if self.cost(sequence) > self.cost(hint):
            sequence = list(hint)
        total = sum(read.weight for read in self.reads)
        bound = whole_bound(solver.best_objective_bound, total)
        return sequence, min(bound, self.cost(sequence))

    def _span(
        self, model: cp_model.CpModel, places: Sequence[cp_model.IntVar], place: int
    ) -> tuple[cp_model.IntVar, cp_model.IntVar]:
        """Where the channels of a demand begin and end."""
        _, low, high = self.kinds[place]
        first, last = model.new_int_var(low, high, ""), model.new_int_var(low, high, "")
        members = np.flatnonzero(self.wanted[place]).tolist()
        model.add_min_equality(first, [places[a] for a in members])
        model.add_max_equality(last, [places[a] + int(self.sizes[a]) for a in members])
        return first, last

    def _window(
        self,
        model: cp_model.CpModel,
        places: Sequence[cp_model.IntVar],
        spans: Sequence[tuple[cp_model.IntVar, cp_model.IntVar]],
        window: tuple[int, int, int],
        weight: int,
    ) -> tuple[cp_model.IntVar, cp_model.IntVar]:
        """Whether a read is served by a window, and what that costs then."""
        row, place, price = window
        first, last = spans[place]
        chosen = model.new_bool_var("")
        paid = model.new_int_var(0, weight, "")
        extra = last - first - int(self.needed[place])
        model.add(paid >= price * extra).only_enforce_if(chosen)
        for atom in np.flatnonzero(self.foreign[row]).tolist():
            before = model.new_bool_var("")
            model.add(places[atom] + int(self.sizes[atom]) <= first).only_enforce_if(before, chosen)
            model.add(places[atom] >= last).only_enforce_if(~before, chosen)
        return chosen, paid


class _Nobody(cp_model.CpSolverSolutionCallback):
    """Is told of solutions."""

    def on_solution_callback(self) -> None:
        """Wait for the last one."""


def _demands(read: Read) -> set[int]:
    views = (read.view, *(piece.view for piece in read.pieces))
    return {demand for view in views for demand in view or ()}


def _moved(block: Sequence[int], rng: random.Random) -> list[int]:
    """A few neighbours put elsewhere, perhaps turned round."""
    size = len(block)
    length = min(size - 1, 1 + int(rng.expovariate(0.5)))
    first = rng.randrange(size - length + 1)
    taken = list(block[first : first + length])
    rest = [*block[:first], *block[first + length :]]
    if rng.random() < 0.5:
        taken.reverse()
    place = rng.randrange(len(rest) + 1)
    return [*rest[:place], *taken, *rest[place:]]


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
