"""The optimisation problem itself: spaces to order, reads to serve, and what they cost.

An :class:`Instance` knows nothing of tensors or networks. A *space* is a set of channels that
needs an order. A *demand* asks that some channels of one space be consecutive in it (or be a
prefix or a suffix). A *read* is free when all demands of its view hold, and otherwise costs its
weight, unless it can be served piece by piece (the operands of a concatenation).

That is the measure ``"copies"``; channels, bytes and numbers of gathers differ in the weights only.
The measure ``"blocks"`` asks into how many contiguous runs the orders cut every read (*consecutive
block minimisation*).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import Field

from upscale_opt.ir.ids import MAX_LENGTH, Ids, IdSet
from upscale_opt.shown import Shown

# The types say how these records are written to and read from JSON (``instance_file.py``); nothing
# is checked when solvers make them.
Index = Annotated[int, Field(strict=True, ge=0, le=MAX_LENGTH)]
Weight = Annotated[int, Field(strict=True, ge=0)]
View = tuple[Index, ...] | None

DemandKind = Literal["interval", "prefix", "suffix"]

Measure = Literal["copies", "blocks"]
"""The cost of orders: the weights of the reads that are not views, or the runs of all reads."""


@dataclass(frozen=True, repr=False)
class Space(Shown):
    """Channels that need an order.

    Attributes:
        channels: the channels in their original order; every order is a permutation of them.
        fixed: the original order is the only one allowed.
    """

    channels: Ids
    fixed: bool = False


@dataclass(frozen=True, repr=False)
class Demand(Shown):
    """Channels of a space that shall be consecutive in its order.

    No channels are always consecutive.

    Attributes:
        space: the index of the space.
        kind: ``"interval"``: anywhere; ``"prefix"``: at the beginning; ``"suffix"``: at the end.
        channels: the ids.
    """

    space: Index
    kind: Annotated[DemandKind, Field(default="interval")]
    channels: IdSet


@dataclass(frozen=True)
class Piece:
    """One operand's share of a read that is served in front of a concatenation.

    Attributes:
        weight: what gathering this share costs.
        view: the demands (indices) that together make it a view; empty if it always is one,
            ``None`` if it never is.
    """

    weight: Weight
    view: View


@dataclass(frozen=True)
class Part:
    """The share of a read in one space of the memory it reads; possibly nothing.

    Attributes:
        space: the index of the space.
        channels: the ids wanted of it.
    """

    space: Index
    channels: IdSet


@dataclass(frozen=True)
class Window:
    """The alternative of reading adjacent channels of which some are not wanted.

    Attributes:
        price: what each channel costs that is read and not wanted.
        allowed: the channels that may be among them; the wanted ones are.
    """

    price: Weight
    allowed: IdSet


@dataclass(frozen=True, repr=False)
class Read(Shown):
    """One read: free as a view, ``weight`` as a gather, or served piece by piece.

    Attributes:
        weight: the cost of one gather behind everything (copied channels, say). Under the measure
            ``"blocks"``: the cost of one run; of the whole read if there are no ``parts``.
        view: the demands (indices) that together make the read a view; empty if it always is one,
            ``None`` if it never is.
        pieces: the alternative in front of a concatenation; empty if there is none.
        max_gathers: the alternative may gather at most this many of the pieces.
        parts: the spaces that lie one behind the other in the memory read, and what is wanted of
            each. Looked at under the measure ``"blocks"``, and by the greedy heuristic, to which a
            read with parts and without pieces is one node.
        window: the alternative of a window, for reads whose view is one interval.
    """

    weight: Weight
    view: View
    pieces: tuple[Piece, ...] = ()
    max_gathers: Index = 0
    parts: tuple[Part, ...] = ()
    window: Window | None = None


@dataclass(frozen=True, repr=False)
class Instance(Shown):
    """Spaces to order, demands on them, and the reads these demands make free.

    Minimise :func:`cost` over one permutation per space.

    Attributes:
        spaces: to be ordered.
        demands: what reads refer to, by index.
        reads: what the orders are for.
        measure: what the orders cost.
        wishes: reads (without pieces) that decide among orders of least cost: what they would cost
            comes second.
    """

    spaces: tuple[Space, ...]
    demands: tuple[Demand, ...]
    reads: tuple[Read, ...]
    measure: Measure = "copies"
    wishes: tuple[Read, ...] = ()


Orders = tuple[tuple[int, ...], ...]
"""One permutation of ``Space.channels`` per space."""


def holds(demand: Demand, position: Mapping[int, int], size: int) -> bool:
    """``demand`` holds in a space of ``size`` channels with these channel positions."""
    if not demand.channels:
        return True
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
    """A read or piece with these demands is a view when the demands ``held`` hold."""
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
    """The cost of ``read`` when exactly the demands ``held`` hold."""
    if is_view(read.view, held):
        return 0
    gathers = gathered_pieces(read, held)
    if gathers is None:
        return read.weight
    return sum(read.pieces[i].weight for i in gathers)


def unwanted(instance: Instance, read: Read, order: Sequence[int]) -> frozenset[int] | None:
    """The channels between those that ``read`` wants, or ``None`` if they allow no window.

    Args:
        instance: the problem.
        read: one of its reads.
        order: of the space that its view is in.
    """
    if read.window is None or read.view is None or len(read.view) != 1:
        return None
    wanted = instance.demands[read.view[0]].channels
    if not wanted:
        return frozenset()
    places = [place for place, channel in enumerate(order) if channel in wanted]
    between = frozenset(order[places[0] : places[-1] + 1]) - wanted
    return between if between <= read.window.allowed else None


def window_costs(instance: Instance, orders: Orders) -> list[int | None]:
    """For every read, what serving it by a window costs, if it can be."""
    costs: list[int | None] = []
    for read in instance.reads:
        between = None
        if read.window is not None and read.view:
            order = orders[instance.demands[read.view[0]].space]
            between = unwanted(instance, read, order)
        if between is None or read.window is None:
            costs.append(None)
        else:
            costs.append(read.window.price * len(between))
    return costs


def total_cost(instance: Instance, held: Collection[int]) -> int:
    """The sum of all reads' costs under the measure ``"copies"``, windows apart."""
    return sum(read_cost(read, held) for read in instance.reads)


def blocks(read: Read, orders: Orders) -> int:
    """The contiguous runs that the read's channels form in the memory it reads."""
    runs = 0
    inside = False
    for part in read.parts:
        for channel in orders[part.space]:
            wanted = channel in part.channels
            runs += wanted and not inside
            inside = wanted
    return runs


def cost(instance: Instance, orders: Orders) -> int:
    """The objective: what ``orders`` cost under the instance's measure."""
    if instance.measure == "copies":
        held = satisfied(instance, orders)
        saved = sum(
            read_cost(read, held) - price
            for read, price in zip(instance.reads, window_costs(instance, orders), strict=True)
            if price is not None and price < read_cost(read, held)
        )
        return total_cost(instance, held) - saved
    return sum(
        read.weight * blocks(read, orders) if read.parts else read.weight for read in instance.reads
    )


Improvement = Callable[[int, int], None]
"""Told the best cost so far and the bound, whenever one of them improves."""


def as_copies(instance: Instance) -> tuple[Instance, int]:
    """A relaxation of an instance of measure ``"blocks"``, and what to add to its cost.

    A read that is not one run has two at least. So it costs its weight once anyway, and once more
    if it is no view. The instance's demands keep their numbers.
    """
    demands = list(instance.demands)
    number = {demand: index for index, demand in enumerate(demands)}
    reads = []
    constant = 0
    for read in instance.reads:
        if not read.parts:
            constant += read.weight
        elif any(part.channels for part in read.parts):
            constant += read.weight
            view = _one_run(instance, read)
            for demand in view or ():
                if demand not in number:
                    number[demand] = len(demands)
                    demands.append(demand)
            numbers = None if view is None else tuple(number[demand] for demand in view)
            reads.append(Read(read.weight, numbers))
    return Instance(instance.spaces, tuple(demands), tuple(reads)), constant


def _one_run(instance: Instance, read: Read) -> list[Demand] | None:
    """The demands under which the read's parts are one run, or ``None``."""
    used = [i for i, part in enumerate(read.parts) if part.channels]
    first, last = used[0], used[-1]
    full = [len(p.channels) == len(instance.spaces[p.space].channels) for p in read.parts]
    if not all(full[first + 1 : last]):
        return None
    kinds: list[tuple[int, DemandKind]] = [(first, "suffix"), (last, "prefix")]
    if first == last:
        kinds = [(first, "interval")]
    view = []
    for place, kind in kinds:
        if not full[place]:
            part = read.parts[place]
            view.append(Demand(part.space, kind, part.channels))
    return view


def identity_orders(spaces: Sequence[Space]) -> Orders:
    """The original order of every space: no reordering at all."""
    return tuple(space.channels for space in spaces)


@dataclass(frozen=True, repr=False)
class Group(Shown):
    """At most ``limit`` of the ``demands`` (indices, on one space) can hold together.

    Any ``limit + 1`` of them are a conflict.
    """

    demands: tuple[int, ...]
    limit: int


@dataclass(frozen=True, repr=False)
class Case(Shown):
    """The part of a proof for orders under which some demands hold and some do not.

    Attributes:
        holds: demands that hold in this case.
        fails: demands that do not.
        prices: per group (index), what each of its demands is charged; groups at 0 left out.
        shares: where several reads make one demand, how much of its price each is charged: by
            read and demand.
        unit: prices and shares are multiples of 1 / ``unit``.
    """

    holds: tuple[int, ...] = ()
    fails: tuple[int, ...] = ()
    prices: Mapping[int, int] = field(default_factory=dict)
    shares: Mapping[tuple[int, int], int] = field(default_factory=dict)
    unit: int = 1


@dataclass(frozen=True, repr=False)
class Proof(Shown):
    """The proof that no orders cost less: see ``proof.py``.

    Attributes:
        groups: of demands in conflict.
        cases: for every part of the problem, cases that cover all orders.
    """

    groups: tuple[Group, ...] = ()
    cases: tuple[Case, ...] = ()

    def demands(self) -> frozenset[int]:
        """All demands (indices) that it speaks of."""
        spoken_of = {demand for group in self.groups for demand in group.demands}
        for case in self.cases:
            spoken_of.update(case.holds, case.fails, (demand for _, demand in case.shares))
        return frozenset(spoken_of)


@dataclass(frozen=True, repr=False)
class Outcome(Shown):
    """The result of a solver.

    Attributes:
        orders: one permutation per space.
        objective: the cost under ``orders``.
        lower_bound: no orders cost less than this.
        proof: the conflicts the bound rests on. Empty for heuristics.
        interrupted: by Ctrl-C; whoever called the solver may want to stop as well.
    """

    orders: Orders
    objective: int
    lower_bound: int
    proof: Proof = Proof()
    interrupted: bool = False

    @property
    def optimal(self) -> bool:
        """The orders are proven optimal."""
        return self.objective == self.lower_bound
