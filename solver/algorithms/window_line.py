"""Atoms on a line: what windows cost under an order of the channels of one part of a program.

Channels that no read tells apart are one *atom*. The spaces of a part lie one behind the other, so
that a sequence of atoms says all of its orders, and where each demand begins and ends.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from upscale_opt.solver.problem.instance import Instance, Orders, Read, read_cost

_Array = npt.NDArray[np.int64]
_Flags = npt.NDArray[np.bool_]


def spaces_of(instance: Instance, read: Read) -> list[int]:
    """The spaces that a read demands something of."""
    views = (read.view, *(piece.view for piece in read.pieces))
    return sorted({instance.demands[d].space for view in views for d in view or ()})


def demands_of(read: Read) -> set[int]:
    """The demands of a read, of its pieces, too."""
    views = (read.view, *(piece.view for piece in read.pieces))
    return {demand for view in views for demand in view or ()}


class Line:
    """The spaces of a part one behind the other, as a sequence of atoms.

    Attributes:
        reads: the reads of the part.
        spaces: numbers of spaces, ascending; they lie one behind the other in this sequence.
        free: those of them that may be ordered.
        place: the row, in arrays, of every demand (by its number in the instance).
        atoms: the channels of each atom.
        home: each atom's space.
        sizes: int64 of shape (atoms,): each atom's channels.
        wanted: bool of shape (demands, atoms): the demand wants the atom.
        foreign: bool of shape (windows, atoms): the window must not hold the atom.
        windows: read, row of its demand, and price of each.
        needed: int64 of shape (demands,): each demand's channels.
        low, high: the places on the line where each space begins and ends.
        kinds: of each demand: its kind, and where its space begins and ends.
        start: the sequence of atoms to begin with.
        simple: all spaces are free, and no read has pieces.
    """

    def __init__(self, instance: Instance, orders: Orders) -> None:
        self.reads = list(instance.reads)
        self.spaces = sorted({s for read in self.reads for s in spaces_of(instance, read)})
        numbers = sorted({d for r in self.reads for d in demands_of(r)})
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
        self.wanted: _Flags = table[: len(demands)]
        self.foreign: _Flags = ~table[len(demands) :]
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
