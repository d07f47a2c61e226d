"""Windows: reads of adjacent channels, some of which only zero columns read.

A layer that wants channels which do not lie side by side can read all that lie between, too, if its
weight keeps zeros for them: nothing is copied, for some multiply-adds more. The same holds where a
chain of per-channel operations lies between the selection and the layers that want it, and where a
concatenation selects what gets twins there.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from upscale_opt.ir.graph import ChannelGraph, ChannelWise, Concat, Layer
from upscale_opt.solver.network.evening import linked_tensors
from upscale_opt.solver.network.formulate import Formulation
from upscale_opt.solver.network.segments import Segments
from upscale_opt.solver.network.sets import ChannelSets, Edge, Ids
from upscale_opt.solver.problem.instance import (
    Instance,
    Orders,
    Window,
    gathered_pieces,
    is_view,
    read_cost,
    satisfied,
    unwanted,
    window_costs,
)

Price = Callable[[Edge, "Chain"], int]
"""The price of a channel more, from the edge at which it is read and what lies behind."""


class Chain:
    """The readers of the channels selected at an edge.

    Attributes:
        layers: those that read them in the end.
        between: the per-channel operations before, and concatenations in which the channels get
            twins.
        renamed: for every layer, the edges at which they do, on the way to it.
    """

    def __init__(self) -> None:
        self.layers: list[Layer] = []
        self.between: list[ChannelWise | Concat] = []
        self.renamed: list[tuple[Edge, ...]] = []


class Windows:
    """The reads of a network that may be served by windows, and the prices.

    Args:
        graph: the channel graph.
        sets: what is needed of every tensor.
        segments: where channels are selected.
    """

    def __init__(self, graph: ChannelGraph, sets: ChannelSets, segments: Segments) -> None:
        self.graph = graph
        self.sets = sets
        self.segments = segments
        self._linked = linked_tensors(graph)
        self._operations = {op.name: op for op in graph.operations}
        self._readers: dict[str, list[Edge]] = defaultdict(list)
        for op in graph.operations:
            for operand, name in enumerate(op.inputs):
                if op.name in sets.live and sets.wants.get((op.name, operand)):
                    self._readers[name].append((op.name, operand))

    def chain(self, edge: Edge) -> Chain | None:
        """Find what lies behind an edge; ``None`` if it must select exactly what it does."""
        chain = Chain()
        waiting: list[tuple[Edge, tuple[Edge, ...]]] = [(edge, ())]
        while waiting:
            there, renamed = waiting.pop()
            op = self._operations[there[0]]
            if renamed and self._is_partial(there):
                return None  # it selects among the twins, and would read those in vain, too
            if isinstance(op, Layer) and op.groups == 1 and op.outputs[0] not in self._linked:
                chain.layers.append(op)
                chain.renamed.append(renamed)
                continue
            if there in self.graph.renamed and isinstance(op, Concat) and op.positions is None:
                renamed = (*renamed, there)
            elif not isinstance(op, ChannelWise):
                return None
            if not self._readers[op.outputs[0]]:
                return None
            chain.between.append(op)
            waiting += [(reader, renamed) for reader in self._readers[op.outputs[0]]]
        return chain

    def _is_partial(self, edge: Edge) -> bool:
        """A read of less than is stored."""
        stored = self.segments.stored[self._operations[edge[0]].inputs[edge[1]]]
        return self.segments.selects.get(edge, stored) != stored

    def twins(self, ids: Ids, edges: Sequence[Edge]) -> Ids:
        """The names of channels behind concatenations in which they get twins."""
        for name, operand in edges:
            op = self._operations[name]
            assert isinstance(op, Concat)
            ids = self.graph.given(op, operand, ids)
        return ids

    def offer(self, formulation: Formulation, price: Price) -> Instance:
        """The instance, in which reads may be served by windows."""
        instance = formulation.instance
        reads = []
        for read, edge in zip(instance.reads, formulation.reads, strict=True):
            chain = self.chain(edge) if edge in self.segments.selects else None
            if chain is not None and read.view is not None and len(read.view) == 1 and read.weight:
                space = instance.spaces[instance.demands[read.view[0]].space]
                source = self._operations[edge[0]].inputs[edge[1]]
                if not self.graph.originals.keys().isdisjoint(self.segments.stored[source]):
                    reads.append(read)  # orders are not of its channels, but of their originals
                    continue
                allowed = self.segments.stored[source].intersection(space.channels)
                interval = instance.demands[read.view[0]].kind == "interval"
                if interval and not space.fixed:
                    read = replace(read, window=Window(max(price(edge, chain), 1), allowed))
            reads.append(read)
        return replace(instance, reads=tuple(reads))

    def multiply_adds(self, chain: Chain) -> int:
        """The multiply-adds that reading one channel more costs, in the example's sizes."""
        return sum(self.of_layer(layer) for layer in chain.layers)

    def multiply_adds_at(self, edge: Edge) -> int:
        """The same, of an edge that may be a window."""
        chain = self.chain(edge)
        return 0 if chain is None else self.multiply_adds(chain)

    def total(self) -> int:
        """The multiply-adds of all layers that are left, in the example's sizes."""
        total = 0
        for op in self.graph.operations:
            if isinstance(op, Layer) and op.name in self.sets.live and op.inputs:
                read = self.segments.selects.get((op.name, 0), Ids())
                count = self._entries(op.inputs[0], read)
                total += count * self.of_layer(op) // op.groups
        return total

    def _entries(self, tensor: str, ids: Ids) -> int:
        """The number of entries of the tensor's channel sequence that are among ``ids``."""
        return sum(map(ids.__contains__, self.graph.tensors[tensor].channels))

    def of_layer(self, layer: Layer) -> int:
        """The multiply-adds of a layer with one channel of its input."""
        written, read = self.graph.tensors[layer.outputs[0]], self.graph.tensors[layer.inputs[0]]
        transposed = layer.in_axis == 0 and len(self.graph.parameters[layer.weight]) > 2
        held = read if transposed else written
        positions = math.prod(held.shape) // (len(held.channels) * held.features)
        return positions * self.weights(layer)

    def weights(self, layer: Layer) -> int:
        """The numbers in a layer's weight for one channel of its input."""
        written, read = self.graph.tensors[layer.outputs[0]], self.graph.tensors[layer.inputs[0]]
        shape = self.graph.parameters[layer.weight]
        both = (layer.in_axis, layer.out_axis)
        kernel = math.prod(size for axis, size in enumerate(shape) if axis not in both)
        stored = self.segments.stored.get(layer.outputs[0], Ids())
        rows = self._entries(layer.outputs[0], stored) * written.features
        return kernel * rows * read.features


def chosen_windows(formulation: Formulation, instance: Instance, orders: Orders) -> dict[Edge, Ids]:
    """For the reads that are best served by windows, the channels read and not wanted.

    A whole tensor is the widest of windows.
    """
    held = satisfied(instance, orders)
    chosen: dict[Edge, Ids] = {}
    for read, edge in zip(instance.reads, formulation.reads, strict=True):
        whole = formulation.wholes.get(edge)
        aside = is_view(read.view, held) or gathered_pieces(read, held) is not None
        if whole is not None and (whole.best or not aside):
            chosen[edge] = whole.unwanted
    for read, edge, price in zip(
        instance.reads, formulation.reads, window_costs(instance, orders), strict=True
    ):
        if price is not None and price < read_cost(read, held) and read.view:
            order = orders[instance.demands[read.view[0]].space]
            between = unwanted(instance, read, order)
            if between:
                chosen[edge] = between
    return chosen


def extra_wants(windows: Windows, chosen: Mapping[Edge, Ids]) -> dict[Edge, Ids]:
    """Channels that layers must want besides what they need, for these windows to be selected.

    And those wanted as it is: one that a layer only has because it needs any would be dropped else.
    """
    extra: dict[Edge, Ids] = {}
    for edge, ids in chosen.items():
        chain = windows.chain(edge)
        for layer, renamed in zip(chain.layers, chain.renamed, strict=True) if chain else ():
            own = windows.sets.wants.get((layer.name, 0), Ids())
            named = windows.twins(ids, renamed)
            extra[layer.name, 0] = extra.get((layer.name, 0), own) | named
    return extra
