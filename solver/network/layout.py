"""From channel orders back to the network: layouts, plans and index lists.

Given the orders, every tensor's stored channels lie in a definite sequence. What nothing needs at
either end of it is trimmed, which is free: the reads become narrower views.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from upscale_opt.ir.graph import (
    Attention,
    ChannelGraph,
    Concat,
    Elementwise,
    Layer,
    Operation,
    Select,
)
from upscale_opt.ir.solution import Read
from upscale_opt.solver.network.evening import linked_tensors
from upscale_opt.solver.network.formulate import Formulation
from upscale_opt.solver.network.index_lists import index_lists
from upscale_opt.solver.network.segments import Segments
from upscale_opt.solver.network.sets import ChannelSets, Edge, Ids
from upscale_opt.solver.problem.instance import Orders, gathered_pieces, is_view


@dataclass(frozen=True)
class Layout:
    """The network's plan.

    Attributes:
        tensors: for each live structured tensor, the entries of its channel sequence stored.
        reads: the plans.
        parameters: for each parameter and axis that changes, the indices kept.
    """

    tensors: dict[str, tuple[int, ...]]
    reads: tuple[Read, ...]
    parameters: dict[str, dict[int, tuple[int, ...]]]


def lay_out(
    graph: ChannelGraph,
    sets: ChannelSets,
    segments: Segments,
    formulation: Formulation,
    orders: Orders,
    held: Collection[int],
) -> Layout:
    """Turn ``orders``, under which the demands ``held`` hold, into a plan for every tensor."""
    return _Writer(graph, sets, segments, formulation, orders, held).write()


class _Writer:
    def __init__(
        self,
        graph: ChannelGraph,
        sets: ChannelSets,
        segments: Segments,
        formulation: Formulation,
        orders: Orders,
        held: Collection[int],
    ) -> None:
        self.graph = graph
        self.sets = sets
        self.segments = segments
        self.rank = {c: i for order in orders for i, c in enumerate(order)}
        self.rigid = {
            name
            for op in graph.operations
            for name in (*op.inputs, *op.outputs)
            if op.kind == "symmetric" or (name in op.outputs and _has_groups(op))
        } | linked_tensors(graph)
        arena_of = {space: i for i, arena in enumerate(segments.arenas) for space in arena.spaces}
        self.arena_of = arena_of
        self.rigid |= {
            name
            for name in segments.stored
            if any(space in arena_of for space, _ in graph.runs(name))
        }
        if segments.whole:
            self.rigid |= segments.stored.keys()
        self.selects = dict(segments.selects)
        self.stored = dict(segments.stored)
        self.gathers: set[Edge] = set()
        self.early: set[str] = set()
        self._choose(formulation, held)
        self.full: dict[str, tuple[int, ...]] = {}
        self.layout: dict[str, tuple[int, ...]] = {}
        self.spans: dict[str, tuple[int, int]] = {}
        self.place: dict[str, dict[int, int]] = {}
        self._cached_shares: tuple[object, list[tuple[int, ...]]] = (None, [])

    def _choose(self, formulation: Formulation, held: Collection[int]) -> None:
        """Decide each read's plan as the instance's costs say."""
        cats = {edge: name for name, edge in self.segments.sole_reader.items()}
        for read, edge, edges in zip(
            formulation.instance.reads, formulation.reads, formulation.pieces, strict=True
        ):
            if is_view(read.view, held):
                continue
            gathered = gathered_pieces(read, held)
            if gathered is None:
                self.gathers.add(edge)
                continue
            cat = cats[edge]
            ids = self.selects[edge]
            self.early.add(cat)
            self.stored[cat] = ids
            for piece in edges:
                self.selects[piece] = ids
            self.gathers.update(edges[i] for i in gathered)

    def write(self) -> Layout:
        for name, stored in self.stored.items():
            self.full[name] = self._sequence(name, stored)
        for op in reversed(self.graph.operations):
            if self._runs(op):
                self._trim(op)
        for name in self.full:
            low, high = self.spans.get(name, (0, 0))
            if low < high:
                self.layout[name] = self.full[name][low:high]
        reads = [read for op in self.graph.operations if self._runs(op) for read in self._reads(op)]
        lists = index_lists(self.graph, self.layout, reads)
        return Layout(self.layout, tuple(reads), lists)

    def _runs(self, op: Operation) -> bool:
        """Anything of the result is left after trimming, or the operation must run."""
        structured = [name for name in op.outputs if name in self.full]
        return op.name in self.sets.live and (
            not structured
            or op.kind in ("input", "opaque")
            or any(name in self.spans for name in structured)
        )

    # Sequences.

    def _sequence(self, name: str, stored: Ids) -> tuple[int, ...]:
        """The stored entries of the tensor's channel sequence: space by space, each in order."""
        sequence, originals = self.graph.tensors[name].channels, self.graph.sequence(name)
        runs: list[list[int]] = []
        last: int | None = None
        for space, run in self.graph.runs(name):
            entries = [i for i in run if sequence[i] in stored]
            if not entries:  # as if it were not there: an arena goes on behind it
                continue
            arena = self.arena_of.get(space)
            if arena is None or arena != last:
                runs.append([])
            last = arena
            runs[-1] += entries
        result: list[int] = []
        for together in runs:
            rank = dict(zip(together, [self.rank[originals[i]] for i in together], strict=True))
            result.extend(sorted(together, key=rank.__getitem__))
        return tuple(result)

    def _among(self, name: str, ids: Collection[int]) -> tuple[int, ...]:
        """Those entries of the untrimmed layout whose channels are among ``ids``."""
        sequence = self.graph.tensors[name].channels
        return tuple(entry for entry in self.full[name] if sequence[entry] in ids)

    # Trimming, from the outputs backwards.

    def _trim(self, op: Operation) -> None:
        for operand, source in enumerate(op.inputs):
            if (op.name, operand) in self.gathers and op.outputs:
                self._keep_gathered(op, source)
        for operand, source in enumerate(op.inputs):
            if source not in self.full or not self._is_live(op, operand):
                continue
            self._need(source, self._delivered(op, operand))
        for source in op.whole:
            if source in self.full:
                self._need(source, self.full[source])
        for source in op.sizes:
            if source in self.full:
                self._need(source, self.full[source][:1])
        if op.kind in ("input", "opaque"):
            for name in op.outputs:
                if name in self.full:
                    self._need(name, self.full[name])

    def _keep_gathered(self, op: Operation, source: str) -> None:
        """Keep untrimmed what is gathered anyway: the copies are those that were counted."""
        if isinstance(op, Select) or (isinstance(op, Concat) and self.graph.makes_twins(op)):
            self._need(op.outputs[0], self.full[op.outputs[0]])
        elif isinstance(op, Elementwise) and op.additive and op.outputs[0] in self.full:
            self._need(op.outputs[0], self._among(op.outputs[0], self.stored[source]))

    def _is_live(self, op: Operation, operand: int) -> bool:
        return bool(self.sets.wants.get((op.name, operand)))

    def _need(self, name: str, entries: tuple[int, ...]) -> None:
        if not entries:
            return
        if name in self.rigid or self.graph.repeats(name):
            entries = self.full[name]  # what holds a channel twice is not trimmed
        if entries is self.full[name]:
            self.spans[name] = 0, len(entries)
            return
        if name not in self.place:
            self.place[name] = {entry: i for i, entry in enumerate(self.full[name])}
        place = self.place[name]
        places = [place[entry] for entry in entries]
        low, high = self.spans.get(name, (len(place), 0))
        self.spans[name] = min(low, min(places)), max(high, max(places) + 1)

    def _trimmed(self, name: str) -> tuple[int, ...]:
        low, high = self.spans.get(name, (0, 0))
        full = self.full[name]
        return full if high - low == len(full) else full[low:high]

    def _delivered(self, op: Operation, operand: int) -> tuple[int, ...]:
        """The entries of its input that the operation gets, in order."""
        source = op.inputs[operand]
        edge = (op.name, operand)
        if isinstance(op, (Layer, Attention)):
            return self._among(source, self.selects[edge])
        if op.kind in ("opaque", "output", "symmetric"):
            return self.full[source]
        result = op.outputs[0]
        kept = self._trimmed(result)
        if isinstance(op, Select):
            return tuple(op.positions[entry] for entry in kept)
        if isinstance(op, Concat):
            share = self._shares(op, kept)[operand]
            if op.positions is not None:  # which takes them from wherever they lie
                taken = set(share)
                share = tuple(entry for entry in self.full[source] if entry in taken)
            return share
        if edge in self.segments.places:
            stored = self.stored[source]
            return tuple(e for e in kept if self.graph.tensors[source].channels[e] in stored)
        return kept

    def _shares(self, op: Concat, kept: tuple[int, ...]) -> list[tuple[int, ...]]:
        """The share of each operand of a concatenation in the entries ``kept``."""
        key = (op.name, kept)
        if self._cached_shares[0] != key:
            owners: list[tuple[int, int]] = []
            for operand, name in enumerate(op.inputs):
                start = len(owners)
                size = len(self.graph.tensors[name].channels)
                owners.extend((operand, start) for _ in range(size))
            shares: list[list[int]] = [[] for _ in op.inputs]
            for entry in kept if op.positions is None else map(op.positions.__getitem__, kept):
                operand, start = owners[entry]
                shares[operand].append(entry - start)
            self._cached_shares = key, [tuple(share) for share in shares]
        return self._cached_shares[1]

    # Reads and parameters.

    def _reads(self, op: Operation) -> list[Read]:
        reads: list[Read] = []
        for operand, source in enumerate(op.inputs):
            if source not in self.layout:
                continue
            edge = (op.name, operand)
            if isinstance(op, Concat) and op.positions is not None:
                continue
            if not self._is_live(op, operand):
                if isinstance(op, Elementwise):
                    reads.append(self._read(source, edge, (), gather=False, optional=True))
                continue
            channels = self._delivered(op, operand)
            if not channels:
                continue
            gather = edge in self.gathers
            selected = channels != self.layout[source]
            if edge in self.segments.places:
                if selected:
                    reads.append(self._read(source, edge, channels, gather=False, optional=True))
                reads.append(self._read(source, edge, channels, gather=gather, place=True))
            elif selected or edge in self.selects:
                optional = edge not in self.selects
                reads.append(self._read(source, edge, channels, gather=gather, optional=optional))
        return reads

    def _read(
        self,
        source: str,
        edge: Edge,
        channels: tuple[int, ...],
        *,
        gather: bool,
        optional: bool = False,
        place: bool = False,
    ) -> Read:
        return Read(
            tensor=source,
            op=edge[0],
            operand=edge[1],
            kind="place" if place else "select",
            plan="gather" if gather else "view",
            channels=channels,
            optional=optional,
        )


def _has_groups(op: Operation) -> bool:
    return isinstance(op, Attention) or (isinstance(op, Layer) and op.groups > 1)
