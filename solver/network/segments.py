"""Places of selections, and what every tensor stores: the reads that the program decides on.

Tensors joined by operations that keep channels in place form a *segment*; all of them store the
channels that any of them needs, in one order. Channels are selected where a segment ends:

* in front of a consumer;
* in front of a concatenation, of what gets twins there (of a tensor that it joins twice, say);
* in front of a chain of operations that only one channel set is read from ("hoisting"): a
  consumer's private batch norm and activation run on its own channels alone;
* at a sum, where an operand that is zero in some of the stored channels leaves them out: it is
  *placed* into the sum.

That is the selection ``"tensor"``. The selection ``"segment"`` is UPSCALE's: one channel set per
segment, and nothing but consumers (and slices) selects. With ``"arena"``, concatenations share
buffers, besides (:mod:`upscale_opt.solver.network.arenas`).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, get_args

from upscale_opt.ir.graph import (
    Attention,
    ChannelGraph,
    ChannelWise,
    Concat,
    Constant,
    Elementwise,
    Layer,
    Operation,
    Select,
    Symmetric,
    Tensor,
)
from upscale_opt.ir.masks import Masks
from upscale_opt.solver.network.evening import (
    agree,
    even_groups,
    fill_gaps,
    linked_tensors,
    links_of,
    whole_operands,
)
from upscale_opt.solver.network.sets import ChannelSets, Edge, Ids, channel_sets

Selection = Literal["tensor", "segment", "arena"]
"""The rules that say where channels are selected and what tensors store."""

SELECTIONS: tuple[Selection, ...] = get_args(Selection)


@dataclass(frozen=True)
class Arena:
    """A buffer that concatenations share.

    Attributes:
        cats: their results, in the order of execution.
        spaces: the spaces (of the graph) whose channels the buffer holds.
        channels: these channels, as far as they are stored, in their original sequence.
    """

    cats: tuple[str, ...]
    spaces: tuple[int, ...]
    channels: tuple[int, ...]


@dataclass(frozen=True)
class Segments:
    """The fixed part of the plan.

    Attributes:
        stored: for each structured tensor, the channels that it stores (before any trimming).
        selects: the edges at which channels are selected, with the channels taken.
        places: the edges at which a summand is placed into some of the sum's channels.
        sole_reader: for each concatenation that is read by one select alone, that edge; it may
            select in front of the concatenation instead. Empty for the selection ``"segment"``.
        selection: the rules followed.
        arenas: the buffers that concatenations share, for the selection ``"arena"``.
        whole: no tensor is trimmed, for a view of it would have to be copied.
    """

    stored: dict[str, Ids]
    selects: dict[Edge, Ids]
    places: frozenset[Edge]
    sole_reader: dict[str, Edge]
    selection: Selection = "tensor"
    arenas: tuple[Arena, ...] = ()
    whole: bool = False


def find_segments(
    graph: ChannelGraph,
    masks: Masks,
    selection: Selection = "tensor",
    extra: Mapping[Edge, Ids] | None = None,
    *,
    floors: Mapping[str, Ids] | None = None,
    whole: bool = False,
) -> tuple[ChannelSets, Segments]:
    """Fix where selections happen and what each tensor stores.

    A concatenation stores all channels of its segment, so an operand of which it needs none may
    yet have to deliver some: its place between the others must be filled. And a grouped convolution
    writes equally many channels in every group of which anything is stored; and operations that
    share a parameter read and write the same of it.

    Args:
        graph: the channel graph.
        masks: masks that fit it (:meth:`Masks.check`).
        selection: ``"tensor"``, all rules; ``"segment"``, without hoisting, placing at sums and
            early selection: the problem as UPSCALE states it (Wan et al., ICML 2023). For
            ``"arena"``, the arenas are yet to be found.
        extra: channels that edges shall deliver although nobody needs them.
        floors: channels that tensors shall store although nobody needs them.
        whole: leave nothing out at sums, and trim nothing: for runtimes in which adding a part, and
            viewing one, costs more than a few channels of zeros.
    """
    links = links_of(graph)
    extra = dict(extra or {})
    floors = dict(floors or {})
    while True:
        sets = channel_sets(graph, masks, extra=extra, floors=floors)
        finder = _Finder(graph, sets, selection, whole)
        segments = finder.find()
        stored = segments.stored
        gaps, uneven = fill_gaps(graph, sets, stored), even_groups(graph, sets, stored)
        apart, unlike = agree(links, sets, stored, segments.selects)
        short = finder.short(stored)
        joined = whole_operands(graph, sets, stored) if whole else {}
        if not (gaps or uneven or apart or unlike or short or joined):
            return sets, segments
        for edge, ids in (*gaps.items(), *apart.items()):
            extra[edge] = extra.get(edge, Ids()) | ids
        for name, ids in (*uneven.items(), *unlike.items(), *short.items(), *joined.items()):
            floors[name] = floors.get(name, Ids()) | ids


@dataclass(frozen=True)
class Joints:
    """The shape of segments, apart from what they store.

    Attributes:
        segment: for each structured tensor, a tensor that stands for its segment.
        hoisted: the operations that run on what their readers select.
        selects: the edges at which channels are selected.
    """

    segment: dict[str, str]
    hoisted: frozenset[str]
    selects: frozenset[Edge]


def find_joints(graph: ChannelGraph, masks: Masks) -> Joints:
    """The segments of the selection ``"tensor"``.

    Args:
        graph: the channel graph.
        masks: masks that fit it (:meth:`Masks.check`).
    """
    finder = _Finder(graph, channel_sets(graph, masks), "tensor")
    finder.find()
    return Joints(finder.segment, frozenset(finder.hoisted), frozenset(finder.selects))


_WHATEVER = Ids()
"""Selected by a slice that is not hoisted: it takes what its result stores, once that is known."""


class _Finder:
    def __init__(
        self, graph: ChannelGraph, sets: ChannelSets, selection: Selection, whole: bool = False
    ) -> None:
        self.graph = graph
        self.sets = sets
        self.selection = selection
        self.whole = whole
        self.operations = {op.name: op for op in graph.operations}
        self.producer = {name: op for op in graph.operations for name in op.outputs}
        self.readers: dict[str, list[Edge]] = defaultdict(list)
        for op in graph.operations:
            for operand, name in enumerate(op.inputs):
                if op.name in sets.live and sets.wants.get((op.name, operand)):
                    self.readers[name].append((op.name, operand))
        self.linked = linked_tensors(graph)
        self.hoisted: set[str] = set()
        self.selects: dict[Edge, Ids] = {}
        self.segment: dict[str, str] = {}
        self.fixed = {c for c, space in graph.space_of.items() if graph.spaces[space].fixed}

    def find(self) -> Segments:
        for op in reversed(self.graph.operations):
            if op.name in self.sets.live:
                self._visit(op)
        self.segment = self._join()
        stored = self._stored(self.segment)
        placing = self.selection != "segment" and not self.whole
        places = self._leave_out_zeros(stored) if placing else set()
        for (name, operand), ids in self.selects.items():
            if ids == _WHATEVER:
                self.selects[name, operand] = stored[self.operations[name].outputs[0]]
        if self.selection != "segment":
            readers = self._sole_readers()
            return Segments(
                stored, self.selects, frozenset(places), readers, self.selection, whole=self.whole
            )
        # Readers in the order of execution: it decides between paths that are equally good.
        selects = dict(reversed(self.selects.items()))
        return Segments(stored, selects, frozenset(), {}, self.selection, whole=self.whole)

    def short(self, stored: Mapping[str, Ids]) -> dict[str, Ids]:
        """Results of hoisted operations whose segment stores more than was selected for them."""
        results = [self.operations[name].outputs[0] for name in self.hoisted]
        return {name: stored[name] for name in results if stored[name] != self.sets.needed[name]}

    # Where channels are selected.

    def _visit(self, op: Operation) -> None:
        if isinstance(op, Layer):
            if op.inputs:
                self.selects[op.name, 0] = self.sets.wants[op.name, 0]
        elif isinstance(op, Attention):
            for operand in range(len(op.inputs)):
                self.selects[op.name, operand] = self.sets.wants[op.name, operand]
        elif self._hoists(op):
            self.hoisted.add(op.name)
            for operand in range(len(op.inputs)):
                self.selects[op.name, operand] = self.sets.needed[op.outputs[0]]
        elif isinstance(op, Select):
            self.selects[op.name, 0] = _WHATEVER
        elif isinstance(op, Concat) and op.positions is None:
            for operand in range(len(op.inputs)):
                edge = (op.name, operand)
                if edge in self.graph.renamed and self.sets.wants.get(edge):
                    self.selects[edge] = self.sets.wants[edge]

    def _hoists(self, op: Operation) -> bool:
        """The result stores just what all its readers want, so that we select before."""
        if self.selection == "segment" or not self._may_hoist(op):
            return False
        ids = self.sets.needed[op.outputs[0]]
        edges = self.readers[op.outputs[0]]
        return bool(edges) and all(self.selects.get(edge) == ids for edge in edges)

    def _may_hoist(self, op: Operation) -> bool:
        if isinstance(op, Select):
            return keeps_sequence(self.graph, op)
        if isinstance(op, ChannelWise):
            source, result = (self.graph.tensors[n] for n in (op.inputs[0], op.outputs[0]))
            return bool(op.parameters) or _elements(result) >= _elements(source)
        if not isinstance(op, Elementwise) or len(set(op.inputs)) < len(op.inputs):
            return False
        if sum(not self._absorbs(name) for name in op.inputs) > 1:
            return False
        ids = self.sets.needed[op.outputs[0]]
        return not op.additive or all(ids <= self.sets.defined[name] for name in op.inputs)

    def _absorbs(self, name: str) -> bool:
        """The tensor can store just what its only reader wants."""
        op = self.producer[name]
        if len(self.readers[name]) != 1:
            return False
        if name in self.linked:  # which may store more: what the others need
            return False
        if isinstance(op, Layer):
            return op.groups == 1  # or else it may write more, for its groups to be equal
        return isinstance(op, Constant) or self._may_hoist(op)

    # What is stored.

    def _join(self) -> dict[str, str]:
        """Segments, as a union-find; edges inside a segment select nothing."""
        parent = {name: name for name in self.sets.needed}

        def find(name: str) -> str:
            while parent[name] != name:
                parent[name] = parent[parent[name]]
                name = parent[name]
            return name

        for op in self.graph.operations:
            if op.name not in self.sets.live or op.kind not in _IN_PLACE:
                continue
            interleaved = isinstance(op, Concat) and op.positions is not None
            if interleaved or (isinstance(op, Symmetric) and op.reduces):
                continue
            for operand, name in enumerate(op.inputs):
                if not self.sets.wants.get((op.name, operand)):
                    continue
                if (op.name, operand) in self.graph.renamed:
                    continue
                if op.name in self.hoisted:
                    if not self._absorbs(name):
                        continue
                    del self.selects[op.name, operand]
                parent[find(name)] = find(op.outputs[0])
        return {name: find(name) for name in parent}

    def _stored(self, segment: dict[str, str]) -> dict[str, Ids]:
        union: dict[str, set[int]] = defaultdict(set)
        for name, root in segment.items():
            union[root] |= self.sets.needed[name]
        return {
            name: frozenset(union[root].intersection(self.graph.tensors[name].channels))
            for name, root in segment.items()
        }

    def _leave_out_zeros(self, stored: dict[str, Ids]) -> set[Edge]:
        """Shrink what summands store to what is not zero there; the edges where that shows."""
        chains: dict[str, list[str]] = {}
        for op in self.graph.operations:
            if isinstance(op, Constant) or (isinstance(op, Layer) and op.groups == 1):
                chains[op.outputs[0]] = [op.outputs[0]]
            elif isinstance(op, ChannelWise) and op.name not in self.hoisted:
                chain = chains.get(op.inputs[0])
                if chain is not None:
                    chain.append(op.outputs[0])
                    chains[op.outputs[0]] = chain
        places: set[Edge] = set()
        for chain in {id(chain): chain for chain in chains.values()}.values():
            live = [name for name in chain if name in stored]
            if not live or self.fixed.intersection(stored[live[0]]):
                continue
            if not self.linked.isdisjoint(live):
                continue
            edges = [edge for name in live for edge in self.readers[name]]
            sums = [edge for edge in edges if self._is_sum(edge)]
            others = [edge for edge in edges if edge not in self.selects and edge not in sums]
            results = [name for edge in others for name in self.operations[edge[0]].outputs[:1]]
            if not sums or len(results) < len(others) or not set(results) <= set(live):
                continue
            kept: set[int] = set()
            for name in live:
                kept |= self.sets.needed[name]
            for name, operand in sums:
                source = self.operations[name].inputs[operand]
                kept |= stored[source] & self.sets.defined[source]
            for edge in edges:
                if self.selects.get(edge) == _WHATEVER:
                    kept |= stored[self.operations[edge[0]].outputs[0]]
            if kept != stored[live[0]]:
                for name in live:
                    stored[name] = frozenset(kept)
                places.update(sums)
        return places

    def _is_sum(self, edge: Edge) -> bool:
        op = self.operations[edge[0]]
        return isinstance(op, Elementwise) and op.additive and op.name not in self.hoisted

    def _sole_readers(self) -> dict[str, Edge]:
        return {
            op.outputs[0]: self.readers[op.outputs[0]][0]
            for op in self.graph.operations
            if isinstance(op, Concat)
            and op.positions is None  # that takes what its readers want as it is
            and not self.graph.makes_twins(op)
            and op.name in self.sets.live
            and len(self.readers[op.outputs[0]]) == 1
            and self.readers[op.outputs[0]][0] in self.selects
        }


_IN_PLACE = frozenset({"channelwise", "symmetric", "elementwise", "concat", "select"})


def keeps_sequence(graph: ChannelGraph, op: Select) -> bool:
    """A selection's result is stored in the sequence of what it selects from.

    That is so if the spaces lie in the same sequence in both, and neither repeats anything.
    """
    if graph.repeats(op.inputs[0]) or graph.repeats(op.outputs[0]):
        return False
    place = {space: place for place, (space, _) in enumerate(graph.runs(op.inputs[0]))}
    return all(
        place[one] < place[other] for (one, _), (other, _) in pairwise(graph.runs(op.outputs[0]))
    )


def _elements(tensor: Tensor) -> int:
    """Elements per channel."""
    return math.prod(tensor.shape) // max(len(tensor.channels), 1)
