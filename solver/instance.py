"""The optimisation problem itself: spaces to order, reads to serve, and what they cost.

An :class:`Instance` knows nothing of tensors or networks. A *space* is a set of channels that
needs an order. A *demand* asks that some channels of one space be consecutive in it (or be a
prefix or a suffix). A *read* is free when all demands of its view hold, and otherwise costs its
weight, unless it can be served piece by piece (the operands of a concatenation).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

DemandKind = Literal["interval", "prefix", "suffix"]


@dataclass(frozen=True)
class Space:
    """Channels that need an order.

    Attributes:
        channels: the channels in their original order; every order is a permutation of them.
        fixed: the original order is the only one allowed.
    """

    channels: tuple[int, ...]
    fixed: bool = False


@dataclass(frozen=True)
class Demand:
    """``channels`` (not empty) shall be consecutive in the order of space number ``space``.

    ``"interval"``: anywhere; ``"prefix"``: at its beginning; ``"suffix"``: at its end.
    """

    space: int
    kind: DemandKind
    channels: frozenset[int]


@dataclass(frozen=True)
class Piece:
    """One operand's share of a read that is served in front of a concatenation.

    Attributes:
        weight: what gathering this share costs.
        view: the demands (indices) that together make it a view; ``()`` if it always is one,
            ``None`` if it never is.
    """

    weight: int
    view: tuple[int, ...] | None


@dataclass(frozen=True)
class Read:
    """One read: free as a view, ``weight`` as a gather, or served piece by piece.

    Attributes:
        weight: the cost of one gather behind everything (copied channels).
        view: the demands that together make the read a view; ``()`` always, ``None`` never.
        pieces: the alternative in front of a concatenation; empty if there is none.
        max_gathers: the alternative may gather at most this many of the pieces.
    """

    weight: int
    view: tuple[int, ...] | None
    pieces: tuple[Piece, ...] = ()
    max_gathers: int = 0


@dataclass(frozen=True)
class Instance:
    """Spaces to order, demands on them, and the reads these demands make free.

    Minimise the sum of :func:`read_cost` over the reads, over one permutation per space.
    """

    spaces: tuple[Space, ...]
    demands: tuple[Demand, ...]
    reads: tuple[Read, ...]


Orders = tuple[tuple[int, ...], ...]
"""One permutation of ``Space.channels`` per space."""


def holds(demand: Demand, position: Mapping[int, int], size: int) -> bool:
    """Whether ``demand`` holds in a space of ``size`` channels with these channel positions."""
    places = [position[c] for c in demand.channels]
    low, high = min(places), max(places)
    if high - low + 1 != len(places):
        return False
    if demand.kind == "prefix":
        return low == 0
    if demand.kind == "suffix":
        return high == size - 1
    return True


def satisfied(instance: Instance, orders: Orders) -> frozenset[int]:
    """The demands (indices) that hold under ``orders``."""
    positions = [{c: i for i, c in enumerate(order)} for order in orders]
    return frozenset(
        index
        for index, demand in enumerate(instance.demands)
        if holds(demand, positions[demand.space], len(orders[demand.space]))
    )


def is_view(view: tuple[int, ...] | None, held: Collection[int]) -> bool:
    """Whether a read or piece with these demands is a view when the demands ``held`` hold."""
    return view is not None and all(demand in held for demand in view)


def gathered_pieces(read: Read, held: Collection[int]) -> tuple[int, ...] | None:
    """The pieces to gather if ``read`` is best served piece by piece, else ``None``.

    Piece by piece is chosen only where it copies strictly less than one gather.
    """
    if not read.pieces or is_view(read.view, held):
        return None
    gathers = tuple(i for i, piece in enumerate(read.pieces) if not is_view(piece.view, held))
    cost = sum(read.pieces[i].weight for i in gathers)
    return gathers if len(gathers) <= read.max_gathers and cost < read.weight else None


def read_cost(read: Read, held: Collection[int]) -> int:
    """What ``read`` costs when exactly the demands ``held`` hold."""
    if is_view(read.view, held):
        return 0
    gathers = gathered_pieces(read, held)
    if gathers is None:
        return read.weight
    return sum(read.pieces[i].weight for i in gathers)


def total_cost(instance: Instance, held: Collection[int]) -> int:
    """The objective: the sum of all reads' costs."""
    return sum(read_cost(read, held) for read in instance.reads)


def identity_orders(spaces: Sequence[Space]) -> Orders:
    """The original order of every space: no reordering at all."""
    return tuple(space.channels for space in spaces)


@dataclass(frozen=True)
class Outcome:
    """What a solver found.

    Attributes:
        orders: one permutation per space.
        objective: the cost under ``orders``.
        lower_bound: no orders cost less than this.
        conflicts: minimal sets of demands (indices) that cannot hold together; those the bound
            rests on. Empty for heuristics.
    """

    orders: Orders
    objective: int
    lower_bound: int
    conflicts: tuple[tuple[int, ...], ...] = ()

    @property
    def optimal(self) -> bool:
        """Whether the orders are proven optimal."""
        return self.objective == self.lower_bound
