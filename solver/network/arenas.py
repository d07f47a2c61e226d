"""Arenas: concatenations that share one buffer, in an order of its own.

Where networks concatenate the same tensors again and again (DenseNet), every result can be a part
of one buffer, into which each tensor is written once. And as each channel is written to a place of
its own, channels of several tensors may lie between each other: the spaces of the buffer become one
space for the program, so that a read can be a view of channels that several layers wrote.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import groupby, pairwise

from upscale_opt.disjoint_sets import UnionFind
from upscale_opt.ir.graph import ChannelGraph, ChannelWise, Concat, Elementwise, Layer, Operation
from upscale_opt.solver.network.evening import linked_tensors
from upscale_opt.solver.network.formulate import Formulation
from upscale_opt.solver.network.segments import Arena, Segments
from upscale_opt.solver.network.sets import ChannelSets, Edge, Ids
from upscale_opt.solver.problem.instance import Orders, satisfied


def with_arenas(graph: ChannelGraph, sets: ChannelSets, segments: Segments) -> Segments:
    """The segments, with concatenations in arenas where they can share a buffer.

    Concatenations belong together if they join a tensor in common, or one joins another's result.
    They share a buffer where every read of the buffer's channels is a read of one of them, of a
    tensor that holds all of the buffer, or of a whole tensor; and where all tensors with these
    channels allow any order. No other concatenation may join tensors with these channels (results
    of activations, say) one behind the other, and no space is a part of two buffers.
    """
    finder = _Finder(graph, sets, segments)
    arenas: list[Arena] = []
    taken: set[int] = set()
    for arena in (arena for cats in finder.families() for arena in finder.arena(cats)):
        if taken.isdisjoint(arena.spaces):
            arenas.append(arena)
            taken.update(arena.spaces)
    cats = {name for arena in arenas for name in arena.cats}
    readers = {name: edge for name, edge in segments.sole_reader.items() if name not in cats}
    return replace(segments, sole_reader=readers, arenas=tuple(arenas))


def tidied(
    segments: Segments, formulation: Formulation, orders: Orders, windows: Collection[Edge]
) -> Orders:
    """The orders, in which arenas hold channels of one tensor side by side where that is free.

    Every run of adjacent channels of a tensor is one copy into the buffer. Only channels that no
    view and no window tells apart change places, so both remain what they are; and only where that
    makes copies fewer. Where no solver has seen to it, further reads may become views.

    Args:
        segments: with the arenas.
        formulation: the problem.
        orders: of all its spaces; the arenas' are the last.
        windows: the edges at which windows are read.
    """
    instance = formulation.instance
    shown = set(satisfied(instance, orders))
    for read, edge in zip(instance.reads, formulation.reads, strict=True):
        if edge in windows:
            shown.update(read.view or ())
    result = list(orders)
    first = len(orders) - len(segments.arenas)
    for number, arena in enumerate(segments.arenas, first):
        own = [instance.demands[d] for d in sorted(shown)]
        demands = [demand.channels for demand in own if demand.space == number]
        rank = {channel: place for place, channel in enumerate(arena.channels)}
        signs = {c: tuple(c in channels for channels in demands) for c in arena.channels}
        runs = groupby(orders[number], signs.__getitem__)
        sorted_ = tuple(c for _, run in runs for c in sorted(run, key=rank.__getitem__))
        if _pieces(sorted_, rank) < _pieces(result[number], rank):
            result[number] = sorted_
    return tuple(result)


def _pieces(order: Sequence[int], rank: Mapping[int, int]) -> int:
    """The number of copies that write the channels, if each writes adjacent ones."""
    return 1 + sum(rank[b] != rank[a] + 1 for a, b in pairwise(order))


class _Finder:
    def __init__(self, graph: ChannelGraph, sets: ChannelSets, segments: Segments) -> None:
        self.graph = graph
        self.sets = sets
        self.segments = segments
        self.linked = linked_tensors(graph)
        self.operations = {op.name: op for op in graph.operations}
        self.users: dict[str, list[Operation]] = defaultdict(list)
        for op in graph.operations:
            for name in (*op.inputs, *op.whole, *op.outputs):
                self.users[name].append(op)
        self.holders: dict[int, list[str]] = defaultdict(list)
        for name in segments.stored:
            for space, _ in graph.runs(name):
                self.holders[space].append(name)
        self.reads: dict[str, list[Edge]] = defaultdict(list)
        for edge in (*segments.selects, *segments.places):
            op = self.operations[edge[0]]
            self.reads[op.inputs[edge[1]]].append(edge)
            if edge in segments.places:
                self.reads[op.outputs[0]].append(edge)

    def families(self) -> Iterator[tuple[Concat, ...]]:
        """The live concatenations, by what they join."""
        union = UnionFind()
        names: dict[str, int] = {}
        cats = [
            op
            for op in self.graph.operations
            if isinstance(op, Concat) and op.name in self.sets.live and op.positions is None
        ]
        for op in cats:
            joined = [n for n in (*op.inputs, *op.outputs) if n in self.segments.stored]
            union.join([names.setdefault(name, len(names)) for name in joined])
        families: dict[int, list[Concat]] = defaultdict(list)
        for op in cats:
            families[union.find(names[op.outputs[0]])].append(op)
        for family in families.values():
            yield tuple(family)

    def arena(self, cats: Sequence[Concat]) -> Iterator[Arena]:
        """The arena of these concatenations, if they can share one."""
        results = {op.outputs[0] for op in cats}
        pieces = list(dict.fromkeys(n for op in cats for n in op.inputs if n not in results))
        held = [n for n in pieces if self.segments.stored.get(n)]
        listed = [c for n in held for c in self.graph.tensors[n].channels]
        channels = Ids().union(*(self.segments.stored[n] for n in held))
        spaces = sorted({space for n in held for space, _ in self.graph.runs(n)})
        if (
            len(held) > 1
            and self._pays(cats)
            and len(set(listed)) == len(listed)
            and self._one_shape(cats)
            and not any(self.graph.spaces[space].fixed for space in spaces)
            and all(self._fits(n, results, channels, spaces) for n in self._holding(spaces))
        ):
            order = [c for s in spaces for c in self.graph.spaces[s].channels if c in channels]
            yield Arena(tuple(op.outputs[0] for op in cats), tuple(spaces), tuple(order))

    def _pays(self, cats: Sequence[Concat]) -> bool:
        """There is something to gain: tensors joined twice, or reads that compete."""
        partial = [
            edge
            for name in (op.outputs[0] for op in cats)
            for edge in self.reads[name]
            if self.segments.selects[edge] != self.segments.stored[name]
        ]
        return len(cats) > 1 or len(partial) > 1

    def _one_shape(self, cats: Sequence[Concat]) -> bool:
        """All that is joined is alike but for the channels, and joined along these."""
        kinds = set()
        for name in (name for op in cats for name in (*op.inputs, *op.outputs)):
            tensor = self.graph.tensors[name]
            if tensor.axis is None or tensor.features > 1:
                return False
            rest = (*tensor.shape[: tensor.axis], *tensor.shape[tensor.axis + 1 :])
            kinds.add((rest, tensor.axis, tensor.dtype))
        return len(kinds) == 1

    def _holding(self, spaces: Iterable[int]) -> list[str]:
        return list(dict.fromkeys(name for space in spaces for name in self.holders[space]))

    def _fits(self, name: str, cats: set[str], channels: Ids, spaces: Iterable[int]) -> bool:
        """A tensor with some of the channels can be stored in the buffer's order."""
        if name in self.linked or not all(_plain(op) for op in self.users[name]):
            return False
        stored = self.segments.stored[name]
        if any(stored.intersection(self.graph.spaces[s].channels) - channels for s in spaces):
            return False
        if self.graph.repeats(name):
            return False
        if name in cats:
            return stored <= channels
        if self._joins(name, spaces):
            return False
        reads = self.reads[name]
        if any(edge in self.segments.places for edge in reads):
            return False
        return channels <= stored or all(self.segments.selects[edge] == stored for edge in reads)

    def _joins(self, name: str, spaces: Iterable[int]) -> bool:
        """The tensor is joined of several that hold channels of these spaces."""
        shared = set(spaces)
        return any(
            sum(any(s in shared for s, _ in self.graph.runs(n)) for n in op.inputs) > 1
            for op in self.users[name]
            if isinstance(op, Concat) and name in op.outputs
        )


def _plain(op: Operation) -> bool:
    """The operation does the same under all orders of channels."""
    if isinstance(op, Layer):
        return op.groups == 1
    if isinstance(op, Concat):
        return op.positions is None
    return isinstance(op, (ChannelWise, Elementwise))
