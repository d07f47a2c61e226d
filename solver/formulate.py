"""From channel sets to an instance: which demands make which reads views."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from upscale_opt.ir.graph import ChannelGraph, Concat, Select
from upscale_opt.solver.instance import Demand, DemandKind, Instance, Piece, Read, Space
from upscale_opt.solver.segments import Segments, ascends
from upscale_opt.solver.sets import Edge, Ids

MAX_GATHERS_BEFORE_CAT = 4
"""In front of a concatenation at most this many gathers; more small kernels cost more than the
one gather behind it."""

MAX_PIECES = 8
"""Concatenations of which more operands would have to be selected are always read behind."""


@dataclass(frozen=True)
class Formulation:
    """An instance, and what its parts stand for.

    Attributes:
        instance: the problem.
        reads: for each read of the instance, the edge in the graph.
        pieces: for each read of the instance, the edges of its pieces (in front of the
            concatenation), aligned with ``Read.pieces``.
    """

    instance: Instance
    reads: tuple[Edge, ...]
    pieces: tuple[tuple[Edge, ...], ...]


def formulate(graph: ChannelGraph, segments: Segments) -> Formulation:
    """State the problem of serving all reads of ``segments``.

    The spaces are those of the graph, each restricted to its stored channels.
    """
    return _Formulator(graph, segments).formulate()


class _Formulator:
    def __init__(self, graph: ChannelGraph, segments: Segments) -> None:
        self.graph = graph
        self.segments = segments
        self.space_of = {c: i for i, space in enumerate(graph.spaces) for c in space.channels}
        self.operations = {op.name: op for op in graph.operations}
        self.demands: dict[Demand, int] = {}

    def formulate(self) -> Formulation:
        kept = frozenset().union(*self.segments.stored.values())
        spaces = tuple(
            Space(tuple(c for c in space.channels if c in kept), space.fixed is not None)
            for space in self.graph.spaces
        )
        reads: list[Read] = []
        edges: list[Edge] = []
        pieces: list[tuple[Edge, ...]] = []
        cats = {edge: name for name, edge in self.segments.sole_reader.items()}
        for edge in (*self.segments.selects, *sorted(self.segments.places)):
            read, parts = self._read(edge, cats.get(edge))
            reads.append(read)
            edges.append(edge)
            pieces.append(parts)
        instance = Instance(spaces, tuple(self.demands), tuple(reads))
        return Formulation(instance, tuple(edges), tuple(pieces))

    def _read(self, edge: Edge, cat: str | None) -> tuple[Read, tuple[Edge, ...]]:
        op = self.operations[edge[0]]
        source = op.inputs[edge[1]]
        if edge in self.segments.places:
            ids = self.segments.stored[source]
            result = op.outputs[0]
            return Read(self._count(result, ids), self._view(result, ids)), ()
        ids = self.segments.selects[edge]
        weight = self._count(source, ids)
        if isinstance(op, Select):
            weight = self._count(op.outputs[0], ids)
            sequence = self.graph.tensors[source].channels
            if op.positions == tuple(range(op.positions[0], op.positions[-1] + 1)):
                view = self._view(source, ids) if len(set(sequence)) == len(sequence) else ()
            elif ascends(op.positions) and len(set(sequence)) == len(sequence):
                view = self._view(source, ids)
            else:
                view = None  # another sequence than the source's
            return Read(weight, view), ()
        read = Read(weight, self._view(source, ids))
        return self._with_pieces(read, cat, ids) if cat is not None else (read, ())

    def _count(self, tensor: str, ids: Ids) -> int:
        """How many entries of the tensor's channel sequence are among ``ids``."""
        return sum(c in ids for c in self.graph.tensors[tensor].channels)

    def _with_pieces(self, read: Read, cat: str, ids: Ids) -> tuple[Read, tuple[Edge, ...]]:
        op = next(op for op in self.graph.operations if cat in op.outputs)
        assert isinstance(op, Concat)
        pieces: list[Piece] = []
        edges: list[Edge] = []
        for operand, name in enumerate(op.inputs):
            share = ids.intersection(self.graph.tensors[name].channels)
            if share and share != self.segments.stored[name]:
                pieces.append(Piece(self._count(name, share), self._view(name, share)))
                edges.append((op.name, operand))
        if not 0 < len(pieces) <= MAX_PIECES:
            return read, ()
        with_pieces = Read(read.weight, read.view, tuple(pieces), MAX_GATHERS_BEFORE_CAT)
        return with_pieces, tuple(edges)

    def _view(self, tensor: str, ids: Ids) -> tuple[int, ...] | None:
        """The demands under which ``ids`` are consecutive in the tensor, or ``None``."""
        stored = self.segments.stored[tensor]
        sequence = self.graph.tensors[tensor].channels
        parts: list[tuple[int, Ids, bool]] = []
        at = 0
        while at < len(sequence):
            space = self.space_of[sequence[at]]
            there = stored.intersection(self.graph.spaces[space].channels)
            at += len(self.graph.spaces[space].channels)
            if there:
                wanted = ids & there
                parts.append((space, wanted, wanted == there))
        used = [i for i, (_, wanted, _) in enumerate(parts) if wanted]
        first, last = used[0], used[-1]
        if any(not full for _, _, full in parts[first + 1 : last]):
            return None
        if first == last:
            space, wanted, full = parts[first]
            return () if full else (self._demand(space, "interval", wanted),)
        needs: list[int] = []
        kinds: Sequence[tuple[int, DemandKind]] = ((first, "suffix"), (last, "prefix"))
        for index, kind in kinds:
            space, wanted, full = parts[index]
            if not full:
                needs.append(self._demand(space, kind, wanted))
        return tuple(needs)

    def _demand(self, space: int, kind: DemandKind, ids: Ids) -> int:
        return self.demands.setdefault(Demand(space, kind, ids), len(self.demands))
