"""Instance → core: drop what is decided, merge what is equal, split what is independent.

:func:`reduce_instance` is the step, :class:`Core` remembers how to go back: a conflict between core
demands translates into one between demands of the instance by :meth:`Core.original`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace

from upscale_opt.disjoint_sets import UnionFind
from upscale_opt.solver.problem.instance import (
    Case,
    Demand,
    Group,
    Instance,
    Piece,
    Read,
    identity_orders,
    satisfied,
)
from upscale_opt.solver.problem.pqtree import End, PQTree


@dataclass(frozen=True)
class CoreDemand:
    """A demand that some orders meet and some do not; only intervals and prefixes remain.

    Attributes:
        space: the space's number in the instance.
        mask: the channels as bits of a :class:`PQTree` over the space (its ``mask``).
        prefix: the set is wanted at the beginning; ``mask`` then contains the left sentinel.
    """

    space: int
    mask: int
    prefix: bool


@dataclass(frozen=True)
class Component:
    """Reads that share no space with any other component's.

    Attributes:
        spaces: numbers of the instance's spaces.
        demands: numbers of core demands.
        reads: their views and pieces name core demands.
        numbers: the reads' numbers in the instance.
    """

    spaces: tuple[int, ...]
    demands: tuple[int, ...]
    reads: tuple[Read, ...]
    numbers: tuple[int, ...]


@dataclass(frozen=True)
class Core:
    """The problem that is left to decide.

    Attributes:
        demands: the distinct demands that matter to some read.
        members: per core demand, the instance's demands (indices) equivalent to it.
        components: independent parts, the smallest first.
        constant: what the reads without a choice cost.
        wishes: those that orders can meet and fail to meet; their demands come last, if no read
            makes them.
    """

    demands: tuple[CoreDemand, ...]
    members: tuple[tuple[int, ...], ...]
    components: tuple[Component, ...]
    constant: int
    wishes: tuple[Read, ...] = ()

    def number(self) -> dict[int, int]:
        """The core demand of every demand of the instance that has one."""
        return {index: core for core, members in enumerate(self.members) for index in members}

    def original(self, demands: Iterable[int]) -> tuple[int, ...]:
        """Core demands as demands of the instance."""
        return tuple(sorted(self.members[demand][0] for demand in demands))

    def original_group(self, group: Group) -> Group:
        """A group of core demands as one of demands of the instance."""
        return Group(self.original(group.demands), group.limit)

    def original_case(self, case: Case, place: Mapping[int, int]) -> Case:
        """A case in core demands as one in demands of the instance.

        Args:
            case: the case.
            place: the new numbers of the groups.
        """
        return Case(
            self.original(case.holds),
            self.original(case.fails),
            {place[index]: price for index, price in case.prices.items()},
            {(read, self.members[d][0]): price for (read, d), price in case.shares.items()},
            case.unit,
        )

    def restrict(self, held: Collection[int]) -> frozenset[int]:
        """The core demands among the instance's demands ``held``."""
        return frozenset(d for d, members in enumerate(self.members) if members[0] in held)


def reduce_instance(instance: Instance) -> Core:
    """Evaluate constant demands and reads, merge equal demands, and split into components."""
    certain = _certain(instance)
    reads: dict[int, Read] = {}
    constant = 0
    for place, read in enumerate(instance.reads):
        simple = _simplify(read, certain)
        if isinstance(simple, Read):
            reads[place] = simple
        else:
            constant += simple

    wishes = [w for wish in instance.wishes if isinstance(w := _simplify(wish, certain), Read)]

    number: dict[CoreDemand, int] = {}
    translate: dict[int, int] = {}
    trees = {}
    by_reads = sorted({d for read in reads.values() for d in demands_of(read)})
    by_wishes = sorted({d for wish in wishes for d in demands_of(wish)}.difference(by_reads))
    for index in (*by_reads, *by_wishes):
        demand = instance.demands[index]
        if demand.space not in trees:
            trees[demand.space] = PQTree(instance.spaces[demand.space].channels, ends=True)
        key = _canonical(demand, trees[demand.space])
        translate[index] = number.setdefault(key, len(number))
    members: list[list[int]] = [[] for _ in number]
    for index, core_index in translate.items():
        members[core_index].append(index)
    demands = tuple(number)
    made = len({translate[index] for index in by_reads})
    core_reads = {place: _renumber(read, translate) for place, read in reads.items()}
    return Core(
        demands,
        tuple(map(tuple, members)),
        _components(demands[:made], core_reads),
        constant,
        tuple(_renumber(wish, translate) for wish in wishes),
    )


def demands_of(read: Read) -> frozenset[int]:
    """All demands that the read or one of its pieces mentions."""
    views = [read.view, *(piece.view for piece in read.pieces)]
    return frozenset(demand for view in views if view for demand in view)


def _certain(instance: Instance) -> dict[int, bool]:
    """The demands that hold under all orders (True) or under none (False)."""
    result = {}
    in_place = satisfied(instance, identity_orders(instance.spaces)) if instance.demands else ()
    for index, demand in enumerate(instance.demands):
        space = instance.spaces[demand.space]
        size = len(demand.channels)
        if space.fixed:
            result[index] = index in in_place
        elif size in (0, len(space.channels)) or (size == 1 and demand.kind == "interval"):
            result[index] = True
    return result


def _simplify(read: Read, certain: dict[int, bool]) -> Read | int:
    """The read without its constant demands, or its cost if that is constant."""
    view = _undecided(read.view, certain)
    if view == () or read.weight == 0:
        return 0
    pieces = tuple(Piece(piece.weight, _undecided(piece.view, certain)) for piece in read.pieces)
    gathered = [piece.weight for piece in pieces if piece.view is None]
    open_pieces = tuple(piece for piece in pieces if piece.view != ())
    if not pieces or len(gathered) > read.max_gathers or sum(gathered) >= read.weight:
        open_pieces = ()
    elif len(gathered) == len(open_pieces) and view is None:
        return sum(gathered)
    elif not open_pieces:
        return 0
    if view is None and not open_pieces:
        return read.weight
    return replace(read, view=view, pieces=open_pieces)


def _undecided(view: tuple[int, ...] | None, certain: dict[int, bool]) -> tuple[int, ...] | None:
    if view is None or any(certain.get(demand) is False for demand in view):
        return None
    return tuple(dict.fromkeys(demand for demand in view if demand not in certain))


def demand_mask(tree: PQTree, demand: Demand) -> int:
    """The set that must be consecutive for the demand to hold, as bits of its space's tree.

    A suffix is its complement's being a prefix, so the right sentinel is never needed, and
    equivalent demands have equal masks.
    """
    mask = tree.mask(demand.channels)
    if demand.kind == "suffix":
        mask = tree.mask(tree.elements) & ~mask
    return mask if demand.kind == "interval" else mask | tree.mask([End.LEFT])


def _canonical(demand: Demand, tree: PQTree) -> CoreDemand:
    """Equal for equivalent demands."""
    return CoreDemand(demand.space, demand_mask(tree, demand), demand.kind != "interval")


def _renumber(read: Read, translate: dict[int, int]) -> Read:
    def new(view: tuple[int, ...] | None) -> tuple[int, ...] | None:
        return None if view is None else tuple(sorted({translate[demand] for demand in view}))

    pieces = tuple(Piece(piece.weight, new(piece.view)) for piece in read.pieces)
    return replace(read, view=new(read.view), pieces=pieces)


def _components(demands: tuple[CoreDemand, ...], reads: dict[int, Read]) -> tuple[Component, ...]:
    union = UnionFind()
    homes = {}
    for place, read in reads.items():
        spaces = [demands[demand].space for demand in demands_of(read)]
        union.join(spaces)
        homes[place] = spaces[0]
    parts = []
    for root in sorted({union.find(space) for space in union.members()}):
        own = tuple(d for d, demand in enumerate(demands) if union.find(demand.space) == root)
        spaces_here = tuple(sorted({demands[d].space for d in own}))
        numbers = tuple(place for place, home in homes.items() if union.find(home) == root)
        parts.append(Component(spaces_here, own, tuple(reads[n] for n in numbers), numbers))
    return tuple(sorted(parts, key=lambda part: (len(part.demands), part.demands)))
