"""From channel sets to an instance: which demands make which reads views, and what copies cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from upscale_opt.errors import SolverError
from upscale_opt.ir.graph import ChannelGraph, Concat, Select
from upscale_opt.solver.network.objectives import price
from upscale_opt.solver.network.segments import Segments, keeps_sequence
from upscale_opt.solver.network.sets import ChannelSets, Edge, Ids
from upscale_opt.solver.problem.instance import (
    Demand,
    DemandKind,
    Instance,
    Part,
    Piece,
    Read,
    Space,
)

if TYPE_CHECKING:
    from upscale_opt.solver.network.prices import Pricing

MAX_GATHERS_BEFORE_CAT = 4
"""In front of a concatenation at most this many gathers; more small kernels cost more than the
one gather behind it."""

MAX_PIECES = 8
"""Concatenations of which more operands would have to be selected are always read behind."""


@dataclass(frozen=True)
class Whole:
    """The alternative of reading a whole tensor, with zeros where nothing is wanted.

    Attributes:
        unwanted: the channels read in vain.
        best: even where the wanted channels lie side by side, which elsewhere are gathered.
    """

    unwanted: Ids
    best: bool


@dataclass(frozen=True)
class Formulation:
    """An instance, and what its parts stand for.

    Attributes:
        instance: the problem.
        reads: for each read of the instance, the edge in the graph.
        pieces: for each read of the instance, the edges of its pieces (in front of the
            concatenation), aligned with ``Read.pieces``.
        hindrances: for each edge that no order makes a view, why.
        wholes: the edges at which reading the whole tensor is cheaper than gathering.
    """

    instance: Instance
    reads: tuple[Edge, ...]
    pieces: tuple[tuple[Edge, ...], ...]
    hindrances: dict[Edge, str]
    wholes: Mapping[Edge, Whole] = field(default_factory=dict)


def formulate(
    graph: ChannelGraph,
    sets: ChannelSets,
    segments: Segments,
    objective: str = "copied_channels",
    weights: Mapping[str, int] | None = None,
    pricing: Pricing | None = None,
) -> Formulation:
    """State the problem of serving all reads of ``segments``.

    The spaces are those of the graph, each restricted to its stored channels; then one for each
    arena, with the channels of the spaces that it replaces, which are left without any.

    Args:
        graph: the channel graph.
        sets: what is needed of every tensor.
        segments: where channels are selected, and what every tensor stores.
        objective: one of :data:`upscale_opt.solver.network.objectives.OBJECTIVES`.
        weights: whole factors for the reads of some operations, by ``"operation"`` or
            ``"operation[operand]"``.
        pricing: what gathers cost, for the objective ``"latency"``.

    Raises:
        SolverError: if ``weights`` names something that does not read.
    """
    return _Formulator(graph, sets, segments, objective, dict(weights or {}), pricing).formulate()


def edge_name(edge: Edge) -> str:
    """An edge as text, such as ``"conv2[0]"``."""
    return f"{edge[0]}[{edge[1]}]"


class _Formulator:
    def __init__(
        self,
        graph: ChannelGraph,
        sets: ChannelSets,
        segments: Segments,
        objective: str,
        factors: dict[str, int],
        pricing: Pricing | None,
    ) -> None:
        self.graph = graph
        self.sets = sets
        self.segments = segments
        self.objective = objective
        self.factors = factors
        self.pricing = pricing
        self.hindrances: dict[Edge, str] = {}
        self.operations = {op.name: op for op in graph.operations}
        self.demands: dict[Demand, int] = {}
        arenas = list(enumerate(segments.arenas, len(graph.spaces)))
        self.arena_of = {space: number for number, arena in arenas for space in arena.spaces}
        self.buffer_of = {name: number for number, arena in arenas for name in arena.cats}
        self.buffers = {number: frozenset(arena.channels) for number, arena in arenas}

    def formulate(self) -> Formulation:
        kept = self._originals(frozenset().union(*self.segments.stored.values()))
        spaces = tuple(
            Space(
                tuple(c for c in space.channels if c in kept and number not in self.arena_of),
                space.fixed is not None,
            )
            for number, space in enumerate(self.graph.spaces)
        )
        spaces += tuple(Space(arena.channels) for arena in self.segments.arenas)
        reads: list[Read] = []
        edges = (*self.segments.selects, *sorted(self.segments.places))
        pieces: list[tuple[Edge, ...]] = []
        cats = {edge: name for name, edge in self.segments.sole_reader.items()}
        self._check_factors(edges)
        for edge in edges:
            read, parts = self._read(edge, cats.get(edge))
            reads.append(read)
            pieces.append(parts)
        blocks = self.objective == "blocks"
        instance = Instance(
            spaces,
            demands=(),
            reads=tuple(reads),
            measure="blocks" if blocks else "copies",
            wishes=() if blocks else self._wishes(),
        )
        instance = replace(instance, demands=tuple(self.demands))
        return Formulation(instance, edges, tuple(pieces), self.hindrances)

    def _check_factors(self, edges: Sequence[Edge]) -> None:
        known = {name for edge in edges for name in (edge[0], edge_name(edge))}
        for name in self.factors:
            if name not in known:
                raise SolverError(
                    f"weights name {name!r}, which selects no channels of any tensor; name an "
                    "operation that does, or one of its operands as 'operation[operand]'"
                )

    # Reads.

    def _read(self, edge: Edge, cat: str | None) -> tuple[Read, tuple[Edge, ...]]:
        op = self.operations[edge[0]]
        source = op.inputs[edge[1]]
        if edge in self.segments.places:
            result = op.outputs[0]
            ids = self.segments.stored[source]
            return self._select(edge, result, result, ids), ()
        ids = self.segments.selects[edge]
        if not isinstance(op, Select):
            read = self._select(edge, source, source, ids)
            return self._with_pieces(edge, read, cat, ids) if cat is not None else (read, ())
        read = self._select(edge, source, op.outputs[0], ids)
        if keeps_sequence(self.graph, op):
            return read, ()
        self.hindrances.pop(edge, None)
        if op.positions == tuple(range(op.positions[0], op.positions[-1] + 1)):
            return replace(read, view=(), parts=(), weight=self._run_weight(edge, 1, read)), ()
        self.hindrances[edge] = "it takes the channels in another sequence than its source's"
        count = self._count(op.outputs[0], ids)
        return replace(read, view=None, parts=(), weight=self._run_weight(edge, count, read)), ()

    def _run_weight(self, edge: Edge, runs: int, read: Read) -> int:
        """The weight of a read whose number of runs is the same under all orders."""
        return read.weight * runs if self.objective == "blocks" else read.weight

    def _select(self, edge: Edge, tensor: str, copied: str, ids: Ids) -> Read:
        """A read of ``ids`` that is a view if they lie side by side in ``tensor``.

        A gather copies the channels ``ids`` of the tensor ``copied``.
        """
        read = Read(self._price(edge, copied, ids), self._view(edge, tensor, ids))
        if self.objective != "blocks" and self.segments.selection != "segment":
            return read  # its parts are nobody's business
        parts = self._parts(tensor, ids)
        listed = (Part(space, self._originals(wanted)) for space, wanted, _ in parts)
        return replace(read, parts=tuple(listed))

    def _price(self, edge: Edge, tensor: str, ids: Ids) -> int:
        factor = self.factors.get(edge_name(edge), self.factors.get(edge[0], 1))
        count = self._count(tensor, ids)
        if self.pricing is not None:
            return factor * self.pricing.gather(edge, tensor, count) if count else 0
        return factor * price(self.objective, self.graph.tensors[tensor], count)

    def _count(self, tensor: str, ids: Ids) -> int:
        """The number of entries of the tensor's channel sequence that are among ``ids``."""
        return sum(map(ids.__contains__, self.graph.tensors[tensor].channels))

    def _with_pieces(
        self, edge: Edge, read: Read, cat: str, ids: Ids
    ) -> tuple[Read, tuple[Edge, ...]]:
        op = next(op for op in self.graph.operations if cat in op.outputs)
        assert isinstance(op, Concat)
        if self.objective == "blocks":
            return read, ()
        pieces: list[Piece] = []
        edges: list[Edge] = []
        for operand, name in enumerate(op.inputs):
            share = ids.intersection(self.graph.tensors[name].channels)
            if share and share != self.segments.stored[name]:
                piece = (op.name, operand)
                view = self._view(piece, name, share)
                pieces.append(Piece(self._price(edge, name, share), view))
                edges.append(piece)
        if not 0 < len(pieces) <= MAX_PIECES:
            return read, ()
        with_pieces = replace(read, pieces=tuple(pieces), max_gathers=MAX_GATHERS_BEFORE_CAT)
        return with_pieces, tuple(edges)

    def _wishes(self) -> tuple[Read, ...]:
        """Wishes that would let tensors that store more than they need be narrower, by a view."""
        gains: dict[tuple[int, ...], int] = {}
        for name, stored in self.segments.stored.items():
            needed = self.sets.needed[name]
            if not needed or needed >= stored or self.graph.repeats(name):
                continue
            if any(space in self.arena_of for space, _ in self.graph.runs(name)):
                continue
            view = self._view(None, name, needed)
            if view:
                spared = self._count(name, stored) - self._count(name, needed)
                gains[view] = gains.get(view, 0) + spared
        return tuple(Read(gain, view) for view, gain in gains.items())

    # Views.

    def _parts(self, tensor: str, ids: Ids) -> list[tuple[int, Ids, bool]]:
        """The spaces in the tensor's memory, what is wanted of each, and whether that is all."""
        buffer = self.buffer_of.get(tensor)
        if buffer is not None:
            return [(buffer, ids, ids == self.buffers[buffer])]
        stored = self.segments.stored[tensor]
        parts: list[tuple[int, Ids, bool]] = []
        channels = self.graph.tensors[tensor].channels
        for space, entries in self.graph.runs(tensor):
            number = self.arena_of.get(space, space)
            if parts and number in self.buffers and parts[-1][0] == number:
                continue
            there = self.buffers.get(number, Ids(map(channels.__getitem__, entries))) & stored
            if there:
                wanted = ids & there
                parts.append((number, wanted, wanted == there))
        return parts

    def _view(self, edge: Edge | None, tensor: str, ids: Ids) -> tuple[int, ...] | None:
        """The demands under which ``ids`` are consecutive in the tensor, or ``None``."""
        parts = self._parts(tensor, ids)
        used = [i for i, (_, wanted, _) in enumerate(parts) if wanted]
        first, last = used[0], used[-1]
        gap = next((space for space, _, full in parts[first + 1 : last] if not full), None)
        if gap is not None:
            if edge is not None:
                self.hindrances[edge] = f"it reads on both sides of space {gap}, but not all of it"
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
        demand = Demand(space, kind, self._originals(ids))
        return self.demands.setdefault(demand, len(self.demands))

    def _originals(self, ids: Ids) -> Ids:
        """The channels that an order is of, in place of their twins."""
        return Ids(map(self.graph.original, ids)) if self.graph.twins else ids
