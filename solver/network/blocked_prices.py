"""Prices of reads where no view is free: in onnxruntime, OpenVINO, and by torch.compile.

There a view of channels is a slice. A slice and a gather copy alike, and in onnxruntime both come
out of the blocked layout and go back into it; in OpenVINO a gather alone does. The third way is to
read the whole tensor, with zeros in the reader's weight: it copies nothing, for more multiply-adds.
The fourth, where a concatenation is read by one alone, is to slice or gather what it joins: so it
copies less itself.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

from upscale_opt.ir.cost_model import CostModel, whole_blocks
from upscale_opt.ir.graph import ChannelGraph, ChannelWise, Concat
from upscale_opt.solver.network.formulate import MAX_PIECES, Formulation, Whole
from upscale_opt.solver.network.objectives import bytes_per_channel, bytes_per_number
from upscale_opt.solver.network.prices import Pricing, kind_between
from upscale_opt.solver.network.segments import Segments
from upscale_opt.solver.network.sets import ChannelSets, Edge, Ids
from upscale_opt.solver.network.windows import Chain, Windows

_ROW = 6.4
"""Nanoseconds of a row of an image, in what scales channels out of OpenVINO's layout, on the CPU of
its built-in prices: it goes row by row there, and rows of 28, 14 and 7 numbers take as long."""


@dataclass(frozen=True)
class Ways:
    """Nanoseconds of the ways to serve one read.

    Attributes:
        view: by a slice.
        gather: by a gather.
        whole: by reading the whole tensor; ``None`` if that cannot be.
        ahead: by slices in front of a concatenation, less what that need not copy then; ``None`` if
            that cannot be.
    """

    view: float
    gather: float
    whole: float | None
    ahead: float | None = None

    @property
    def sliced(self) -> float:
        """Of a read whose channels lie side by side, by slices behind or in front."""
        return self.view if self.ahead is None else min(self.view, self.ahead)

    @property
    def least(self) -> float:
        """Of such a read, by the best way."""
        return self.sliced if self.whole is None else min(self.sliced, self.whole)


class BlockedPricing(Pricing):
    """Nanoseconds of gathers beyond those of slices, and of whole tensors in place of both.

    Coming out of the blocked layout is paid once for each tensor, whatever reads it: every read of
    a part of it is charged an equal share.

    Args:
        graph: the channel graph, in the sizes that matter (its batch above all).
        cost_model: of the runtime.
    """

    def __init__(self, graph: ChannelGraph, cost_model: CostModel) -> None:
        super().__init__(graph, cost_model)
        self._block = cost_model.read_block
        self._makers = {name: op for op in graph.operations for name in op.outputs}
        self._readers = Counter(name for op in graph.operations for name in set(op.inputs))

    def gather(self, edge: Edge, tensor: str, count: int) -> int:
        """The cost of gathering ``count`` channels of ``tensor`` beyond that of slicing them.

        At least 1, so that among equals the order is taken that has more slices. Where a gather
        alone leaves the layout, with the way out for these channels; :meth:`ways` knows what else
        is stored.
        """
        moved = 2 * count * bytes_per_channel(self._graph.tensors[tensor])
        gathered = self._model.nanoseconds("gather", bytes=moved)
        if self._model.slices_inside:
            gathered += self._in(tensor, moved) + self._out(tensor, count)
        return max(round(self._sane(gathered) - self._model.nanoseconds("slice", bytes=moved)), 1)

    def of_views(self, sets: ChannelSets, segments: Segments) -> float:
        """The cost of serving all reads of parts by the cheaper of slices and whole tensors."""
        windows = Windows(self._graph, sets, segments)
        return self._sane(sum(ways.least for ways in self.ways(segments, windows).values()))

    def ways(self, segments: Segments, windows: Windows) -> dict[Edge, Ways]:
        """The ways to serve every read of a part of a tensor.

        Args:
            segments: what is read of which tensor.
            windows: which reads may be of more channels than are wanted.
        """
        partial = {
            edge: (self._operations[edge[0]].inputs[edge[1]], ids)
            for edge, ids in segments.selects.items()
        }
        partial = {
            edge: (source, ids)
            for edge, (source, ids) in partial.items()
            if ids and source in segments.stored and ids != segments.stored[source]
        }
        readers = Counter(source for source, _ in partial.values())
        cats = {edge: name for name, edge in segments.sole_reader.items()}
        found: dict[Edge, Ways] = {}
        for edge, (source, ids) in partial.items():
            stored = segments.stored[source]
            structure = self._graph.tensors[source]
            count = self._count(source, ids)
            moved = 2 * count * bytes_per_channel(structure)
            way_out = self._out(source, len(stored)) / readers[source]
            around = self._in(source, moved)
            if not self._is_plain(source, segments):
                around += way_out
            chain = windows.chain(edge)
            whole = None
            if chain is not None:
                served = [self._behind(windows, chain, width) for width in (len(stored), count)]
                whole = self._sane(served[0]) - served[1]
            view = self._model.nanoseconds("slice", bytes=moved)
            gather = view + self.gather(edge, source, count)
            ahead = self._ahead(cats[edge], ids, segments) if edge in cats else None
            if self._model.slices_inside:  # all that is stored comes out, once for all readers
                gather += way_out - self._out(source, count)
                gather += self._row_by_row(chain, count)
            else:
                view, gather = view + around, gather + around
            found[edge] = Ways(self._sane(view), self._sane(gather), whole, ahead)
        return found

    def offer(self, formulation: Formulation, segments: Segments, windows: Windows) -> Formulation:
        """The problem, in which reads of parts may be of the whole tensor.

        A whole tensor costs the same under every order. So a read costs, beyond the best way to
        serve it by slices, the least of a gather and the whole, and nothing if the whole is the
        best way anyhow: it is the problem of views and gathers, with other weights.
        """
        ways = self.ways(segments, windows)
        wholes: dict[Edge, Whole] = {}
        reads = []
        for read, edge in zip(formulation.instance.reads, formulation.reads, strict=True):
            way = ways.get(edge)
            if way is not None and read.weight:
                source = self._operations[edge[0]].inputs[edge[1]]
                count = self._count(source, segments.selects[edge])
                factor = read.weight / self.gather(edge, source, count)  # of the user's
                read = replace(read, weight=max(round(factor * (way.gather - way.sliced)), 1))
                if way.whole is not None and way.whole < way.gather:
                    best = way.whole < way.sliced
                    wholes[edge] = Whole(segments.stored[source] - segments.selects[edge], best)
                    weight = 0 if best else max(round(way.whole - way.sliced), 1)
                    read = replace(read, weight=weight)
                    if best or way.ahead is None:
                        read = replace(read, pieces=(), max_gathers=0)
            reads.append(read)
        pieces = tuple(
            own if read.pieces else () for read, own in zip(reads, formulation.pieces, strict=True)
        )
        instance = replace(formulation.instance, reads=tuple(reads))
        return replace(formulation, instance=instance, pieces=pieces, wholes=wholes)

    def _count(self, tensor: str, ids: Ids) -> int:
        """The entries of the tensor's channel sequence that are among ``ids``."""
        return sum(map(ids.__contains__, self._graph.tensors[tensor].channels))

    def _is_plain(self, tensor: str, segments: Segments) -> bool:
        """The tensor is concatenated outside of the blocked layout."""
        op = self._makers.get(tensor)
        return isinstance(op, Concat) and any(
            len(segments.stored.get(name, ())) % self._block for name in op.inputs
        )

    def _ahead(self, cat: str, ids: Ids, segments: Segments) -> float | None:
        """The cost of slices in front of a concatenation, less what it need not copy then.

        Compiled models select behind it: that is part of the next loop, and slices in front take
        the concatenation out of its layout.
        """
        if self._model.runtime == "compiled":
            return None
        cost, slices = 0.0, 0
        stays_out = self._model.slices_inside or self._is_plain(cat, segments)
        for name in self._makers[cat].inputs:
            stored = segments.stored.get(name, Ids())
            share = ids.intersection(self._graph.tensors[name].channels)
            if not stays_out:
                cost += self._out(name, self._count(name, stored)) / self._readers[name]
            if share and share != stored:
                slices += 1
                cost += self._model.nanoseconds("slice", bytes=self._moved(name, share))
        if not 0 < slices <= MAX_PIECES:
            return None
        moved = self._moved(cat, ids)
        cost += self._model.nanoseconds("copy", bytes=moved)
        cost -= self._model.nanoseconds("copy", bytes=self._moved(cat, segments.stored[cat]))
        return self._sane(cost if self._model.slices_inside else cost + self._in(cat, moved))

    def _moved(self, tensor: str, ids: Ids) -> int:
        """The bytes read and written by whoever copies these channels."""
        return 2 * self._count(tensor, ids) * bytes_per_channel(self._graph.tensors[tensor])

    def _row_by_row(self, chain: Chain | None, count: int) -> float:
        """The cost of scaling gathered channels of images, before a convolution takes them back."""
        rows = 0.0
        for step in chain.between if chain is not None else ():
            written = self._graph.tensors[step.outputs[0]]
            if self._convolves(step):
                break
            if isinstance(step, ChannelWise) and step.parameters and len(written.shape) == 4:
                numbers = count * bytes_per_channel(written) / bytes_per_number(written)
                rows += numbers / max(written.shape[-1], 1)
        return rows * _ROW

    def _convolves(self, step: ChannelWise | Concat) -> bool:
        """It is a depthwise convolution, which computes in the layout."""
        return isinstance(step, ChannelWise) and any(
            len(self._graph.parameters[use.name]) > 1 for use in step.parameters
        )

    def _behind(self, windows: Windows, chain: Chain, width: int) -> float:
        """The cost of all that lies behind a read of ``width`` channels."""
        cost = 0.0
        for step in chain.between:
            moved = 2 * width * bytes_per_channel(self._graph.tensors[step.outputs[0]])
            kind = kind_between(step)
            cost += self._model.nanoseconds(kind, bytes=moved)
        for layer in chain.layers:
            blocks = whole_blocks(width, self._block)
            cost += self._model.nanoseconds(
                self._kind(layer),
                bytes=blocks * bytes_per_channel(self._graph.tensors[layer.inputs[0]]),
                macs=blocks * windows.of_layer(layer),
            )
        return cost

    def _in(self, tensor: str, moved: int) -> float:
        """The cost of going back into the blocked layout."""
        if len(self._graph.tensors[tensor].shape) != 4:
            return 0.0
        return self._model.nanoseconds("reorder_in", bytes=moved)

    def _out(self, tensor: str, count: int) -> float:
        """The cost of coming out of it."""
        structure = self._graph.tensors[tensor]
        if len(structure.shape) != 4:
            return 0.0
        return self._model.nanoseconds(
            "reorder_out", bytes=2 * count * bytes_per_channel(structure)
        )


def pricing_of(graph: ChannelGraph, cost_model: CostModel) -> Pricing:
    """The prices of reads in the runtime that a cost model is of."""
    return (BlockedPricing if cost_model.in_blocks else Pricing)(graph, cost_model)
