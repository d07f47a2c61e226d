"""The segments of a network, each with the channels that it stores and the reads of them.

With the graph, every read is known channel by channel. Without it, reads are known by what they
demand of the orders; those that every order serves alike are named, but not drawn.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from upscale_opt.disjoint_sets import UnionFind
from upscale_opt.ir.graph import ChannelGraph, Concat, Operation, Symmetric
from upscale_opt.ir.solution import Demand, Read, Solution
from upscale_opt.solver.problem import instance

_IN_PLACE = frozenset({"channelwise", "symmetric", "elementwise", "concat", "select"})


@dataclass(frozen=True)
class Row:
    """A read, as it is drawn.

    Attributes:
        read: the read.
        channels: the ids that it takes; empty if they are not known.
        unwanted: those among them that a window takes in vain.
        before: whether they lie side by side in the original order, too.
    """

    read: Read
    channels: frozenset[int]
    unwanted: frozenset[int]
    before: bool


@dataclass(frozen=True)
class Column:
    """The channels of one space that a segment stores.

    Attributes:
        space: its number in ``Solution.orders``.
        after: the channel ids as they are stored.
        before: the same in their original order.
    """

    space: int
    after: tuple[int, ...]
    before: tuple[int, ...]


@dataclass(frozen=True)
class Segment:
    """Tensors that share one order of channels, and what reads them.

    Attributes:
        tensors: their names, in the order of execution.
        columns: what they store.
        rows: the reads.
    """

    tensors: tuple[str, ...]
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]


def name_of(read: Read) -> str:
    """The read as text, such as ``"conv2[0]"``."""
    return f"{read.op}[{read.operand}]"


def find_segments(solution: Solution, graph: ChannelGraph | None) -> tuple[Segment, ...]:
    """The segments that are read, in the order of execution."""
    if graph is not None:
        return tuple(_WithGraph(solution, graph).segments())
    return tuple(_WithoutGraph(solution).segments())


class _Finder:
    """The base of both ways to find segments."""

    def __init__(self, solution: Solution, rank: dict[int, int]) -> None:
        self.solution = solution
        self.rank = rank
        self.home = {c: number for number, order in enumerate(solution.orders) for c in order}
        self.reads = [read for read in solution.reads if not read.optional]
        self.demands: dict[str, list[Demand]] = defaultdict(list)
        for demand in solution.demands:
            for name in demand.reads:
                self.demands[name].append(demand)
        self.original = [tuple(sorted(o, key=self._rank)) for o in solution.orders]
        self._after = [{c: i for i, c in enumerate(order)} for order in solution.orders]
        self._before = [{c: i for i, c in enumerate(order)} for order in self.original]

    def _rank(self, channel: int) -> int:
        return self.rank.get(channel, channel)

    def row(self, read: Read, channels: frozenset[int]) -> Row:
        own = self.demands.get(name_of(read), [])
        unwanted: frozenset[int] = frozenset()
        if read.plan == "window":
            unwanted = channels.difference(*(demand.channels for demand in own))
        return Row(read, channels, unwanted, self._lay_side_by_side(read, own))

    def _lay_side_by_side(self, read: Read, own: Sequence[Demand]) -> bool:
        if not own or (read.plan == "view" and not self._hold(own, self._after)):
            return read.plan == "view"  # as under every order; or its pieces are chosen earlier
        return self._hold(own, self._before)

    def _hold(self, demands: Iterable[Demand], places: list[dict[int, int]]) -> bool:
        return all(
            instance.holds(
                instance.Demand(demand.space, demand.kind, frozenset(demand.channels)),
                places[demand.space],
                len(places[demand.space]),
            )
            for demand in demands
        )


class _WithGraph(_Finder):
    def __init__(self, solution: Solution, graph: ChannelGraph) -> None:
        listed = [c for space in graph.spaces for c in space.channels]
        super().__init__(solution, {channel: place for place, channel in enumerate(listed)})
        self.graph = graph
        self.operations = {op.name: op for op in graph.operations}

    def segments(self) -> Iterator[Segment]:
        members: dict[str, list[str]] = defaultdict(list)
        leader = self._leaders()
        for name, root in leader.items():
            members[root].append(name)
        rows: dict[str, list[Row]] = defaultdict(list)
        for read in self.reads:
            tensor = self._memory(read)
            sequence = self.graph.tensors[tensor].channels
            channels = frozenset(sequence[entry] for entry in read.channels)
            rows[leader[tensor]].append(self.row(read, channels))
        for root, tensors in members.items():
            if rows[root]:
                yield Segment(tuple(tensors), self._columns(tensors), tuple(rows[root]))

    def _memory(self, read: Read) -> str:
        """The tensor whose channels a read is about: what it takes from, or is placed into."""
        return self.operations[read.op].outputs[0] if read.kind == "place" else read.tensor

    def _leaders(self) -> dict[str, str]:
        """For every stored tensor, in the order of execution, the first one of its segment."""
        written = [name for op in self.graph.operations for name in op.outputs]
        stored = [name for name in dict.fromkeys(written) if name in self.solution.tensors]
        number = {name: i for i, name in enumerate(stored)}
        union = UnionFind()
        for i in range(len(stored)):
            union.find(i)
        selecting = {(read.op, read.operand) for read in self.reads if read.kind == "select"}
        for op in self.graph.operations:
            if not _in_place(op) or op.outputs[0] not in number:
                continue
            for operand, name in enumerate(op.inputs):
                if name in number and (op.name, operand) not in selecting:
                    union.join([number[op.outputs[0]], number[name]])
        for arena in self.solution.arenas:
            union.join([number[name] for name in arena.tensors if name in number])
        first: dict[int, str] = {}
        return {name: first.setdefault(union.find(i), name) for name, i in number.items()}

    def _columns(self, tensors: Sequence[str]) -> tuple[Column, ...]:
        """The longest tensor says in which sequence the spaces lie."""
        named: dict[tuple[int, int], dict[int, int]] = defaultdict(dict)
        for tensor in sorted(tensors, key=lambda n: len(self.solution.tensors[n]), reverse=True):
            channels = self.graph.tensors[tensor].channels
            stored = {channels[entry] for entry in self.solution.tensors[tensor]}
            for _, entries in self.graph.runs(tensor):
                run = [channels[entry] for entry in entries]
                for channel in stored.intersection(run):
                    original = self.graph.original(channel)
                    if original not in self.home:
                        continue
                    home = self.home[original]  # twins by themselves; a buffer holds many spaces
                    by_itself = min(run) if home < len(self.graph.spaces) else 0
                    named[home, by_itself][original] = channel
        return tuple(
            Column(
                space,
                _renamed(self.solution.orders[space], names),
                _renamed(self.original[space], names),
            )
            for (space, _), names in named.items()
        )


def _renamed(order: Sequence[int], names: Mapping[int, int]) -> tuple[int, ...]:
    """The channels of an order that have a name, by their names: those of twins."""
    return tuple(names[channel] for channel in order if channel in names)


class _WithoutGraph(_Finder):
    def __init__(self, solution: Solution) -> None:
        super().__init__(solution, {})

    def segments(self) -> Iterator[Segment]:
        """Tensors and spaces belong together if a read says so."""
        union = UnionFind()
        spaces = len(self.solution.orders)
        number: dict[str, int] = {}
        for read in self.reads:
            tensor = number.setdefault(read.tensor, spaces + len(number))
            own = [demand.space for demand in self.demands.get(name_of(read), ())]
            union.join([tensor, *own])
        rows: dict[int, list[Row]] = defaultdict(list)
        for read in self.reads:
            own_demands = self.demands.get(name_of(read), ())
            channels = frozenset(c for demand in own_demands for c in demand.channels)
            rows[union.find(number[read.tensor])].append(self.row(read, channels))
        for found in rows.values():
            tensors = tuple(dict.fromkeys(row.read.tensor for row in found))
            homes = sorted({self.home[c] for row in found for c in row.channels})
            columns = [Column(h, self.solution.orders[h], self.original[h]) for h in homes]
            yield Segment(tensors, tuple(columns), tuple(found))


def _in_place(op: Operation) -> bool:
    """Tell whether the result's channels are where its inputs' are."""
    interleaved = isinstance(op, Concat) and op.positions is not None
    reduced = isinstance(op, Symmetric) and op.reduces
    return op.kind in _IN_PLACE and not interleaved and not reduced
