"""The time of a plan in another runtime, from the plan alone: its kernels, in or out of blocks."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence

from upscale_opt.ir.cost_model import CostModel, whole_blocks
from upscale_opt.ir.graph import (
    ChannelGraph,
    ChannelWise,
    Concat,
    Constant,
    Elementwise,
    Layer,
    Operation,
    Select,
)
from upscale_opt.ir.solution import Read, Solution
from upscale_opt.solver.network.objectives import bytes_per_channel, bytes_per_number
from upscale_opt.solver.network.sets import Edge
from upscale_opt.solver.selection.rates import kind_of

_IMAGE = 4
"""Axes of an image."""


def forecast(graph: ChannelGraph, solution: Solution, cost_model: CostModel) -> float:
    """The nanoseconds of one forward pass of an export in onnxruntime, or the like.

    What onnxruntime's optimiser does is repeated on the channel graph: convolutions whose inputs'
    widths allow it run in the blocked layout, what lies between them stays there if it can, and
    everything else lies between reorders, of which each tensor needs one for all that read it.
    Norms, activations and sums behind a convolution are a part of it. Activations that onnxruntime
    does not run in blocks (such as SiLU) are not known as such.

    Args:
        graph: the channel graph, in the sizes that matter.
        solution: a plan for it.
        cost_model: of a runtime other than eager PyTorch. In OpenVINO, images leave its layout for
            gathers alone.

    Raises:
        SolverError: if the cost model lacks a kind of kernel.
    """
    return _Forecast(graph, solution.tensors, solution.reads, cost_model).run()


class _Forecast:
    def __init__(
        self,
        graph: ChannelGraph,
        tensors: Mapping[str, Sequence[int]],
        reads: Sequence[Read],
        cost_model: CostModel,
    ) -> None:
        self.graph = graph
        self.tensors = tensors
        self.model = cost_model
        self.always = cost_model.slices_inside  # no width falls out of the layout
        self.operations = {op.name: op for op in graph.operations}
        self.reads = {(r.op, r.operand): r for r in reads if r.kind == "select"}
        self.placed = {(r.op, r.operand) for r in reads if r.kind == "place"}
        self.blocked: set[str] = set()
        self.out: set[str] = set()
        self.back: set[str] = set()
        self.absorbing: set[str] = set()  # results of kernels that norms and activations join
        self.readers = Counter(name for op in graph.operations for name in {*op.inputs})
        self.nanoseconds = 0.0

    def run(self) -> float:
        for op in self.graph.operations:
            if not op.outputs or self._computed(op.outputs[0]):
                self._visit(op)
        return self.nanoseconds

    def _computed(self, name: str) -> bool:
        return self.graph.tensors[name].axis is None or name in self.tensors

    def _visit(self, op: Operation) -> None:
        if isinstance(op, Layer):
            self._layer(op)
        elif isinstance(op, Elementwise):
            self._elementwise(op)
        elif isinstance(op, Concat):
            self._concat(op)
        elif isinstance(op, Select):
            self._plain(op.inputs[0])
            if self._size(op.outputs[0]) < self._size(op.inputs[0]):
                self._charge("slice", 2 * self._size(op.outputs[0]))
        elif isinstance(op, ChannelWise):
            self._channelwise(op)
        elif not isinstance(op, Constant):
            for operand in range(len(op.inputs)):
                self._take(op, operand, inside=False)
            kind = kind_of(self.graph, op)
            if kind is not None:
                self._charge(kind, sum(map(self._size, (*op.inputs, *op.outputs))))

    # Operations.

    def _layer(self, op: Layer) -> None:
        result = self.graph.tensors[op.outputs[0]]
        shape = self.graph.parameters[op.weight]
        if not op.inputs:
            return
        source = self.graph.tensors[op.inputs[0]]
        kernel = math.prod(s for at, s in enumerate(shape) if at not in (op.in_axis, op.out_axis))
        transposed = op.in_axis == 0 and len(shape) > 2
        held = source if transposed else result
        positions = math.prod(held.shape) // max(len(held.channels) * held.features, 1)
        wide, tall = self._taken((op.name, 0)) * source.features, self._width(op.outputs[0])
        tall *= result.features
        image = len(shape) == 4 and not transposed
        block, align = self.model.block, self.model.align
        if op.groups > 1:
            each = min(wide, tall) // op.groups
            inside = image and (self.always or (block > 1 and each % block == 0))
            kind = "grouped"
            wide //= op.groups
        else:
            fits = block > 1 and (wide < block or wide % align == 0)
            inside = image and (self.always or fits)
            point = kernel == 1
            kind = ("conv1x1" if point else "conv") if inside else "plain1x1" if point else "plain"
            kind = kind if image else "transposed" if transposed else "linear"
        self._take(op, 0, inside=inside and (self.always or wide * op.groups >= block))
        if inside:
            tall = whole_blocks(tall, self._block(kind))
            wide = wide if wide < block else whole_blocks(wide, self.model.read_block)
        moved = self._taken((op.name, 0)) * bytes_per_channel(source) + self._size(op.outputs[0])
        moved += wide * tall * kernel * bytes_per_number(result)
        self._charge(kind, moved, wide * tall * kernel * positions)
        self._made(op, inside)
        self.absorbing.add(op.outputs[0])

    def _channelwise(self, op: ChannelWise) -> None:
        source, result = op.inputs[0], op.outputs[0]
        kind = kind_of(self.graph, op)
        whole = self._is_whole((op.name, 0))
        if kind == "depthwise":
            width = self._width(result)
            inside = self.always or (self.model.block > 1 and width % self.model.align == 0)
            self._take(op, 0, inside=inside)
            weight = next(u for u in op.parameters if len(self.graph.parameters[u.name]) > 2)
            taps = math.prod(self.graph.parameters[weight.name][2:])
            structure = self.graph.tensors[result]
            positions = math.prod(structure.shape) // max(len(structure.channels), 1)
            macs = (whole_blocks(width, self._block(kind)) if inside else width) * positions * taps
            moved = self._taken((op.name, 0)) * bytes_per_channel(self.graph.tensors[source])
            kind = "depthwise" if inside else "plain_depthwise"
            self._charge(kind, moved + self._size(result), macs)
            self._made(op, inside)
            self.absorbing.add(result)
            return
        joins = whole and source in self.absorbing and self.readers[source] == 1
        inside = self._stays(op) or (whole and source in self.blocked)
        self._take(op, 0, inside=inside)
        if kind in ("norm", "elementwise") and joins:
            self.absorbing.add(result)
        elif kind is not None:
            self._charge(
                kind, self._size(source) + self._size(result) if whole else 2 * self._size(result)
            )
            if kind == "norm" and inside:
                self.absorbing.add(result)
        self._made(op, inside)

    def _elementwise(self, op: Elementwise) -> None:
        whole = all(self._is_whole((op.name, operand)) for operand in range(len(op.inputs)))
        inside = whole and op.additive and all(name in self.blocked for name in op.inputs)
        inside = inside or self._stays(op)
        for operand in range(len(op.inputs)):
            self._take(op, operand, inside=inside)
        joined = any(n in self.absorbing and self.readers[n] == 1 for n in op.inputs)
        parts = sum((op.name, operand) in self.placed for operand in range(len(op.inputs)))
        if parts:
            self._charge("copy", 2 * self._size(op.outputs[0]))
        if inside and joined:
            self.absorbing.add(op.outputs[0])
        else:
            moved = sum(map(self._size, (*op.inputs, *op.outputs)))
            for _ in range(1 + parts):
                self._charge("elementwise", moved / (1 + parts))
        self._made(op, inside)

    def _concat(self, op: Concat) -> None:
        block = self.model.block
        inside = self._stays(op) or (
            block > 1
            and all(
                name in self.blocked
                and self._is_whole((op.name, operand))
                and self._width(name) % block == 0
                for operand, name in enumerate(op.inputs)
                if name in self.tensors
            )
        )
        for operand, name in enumerate(op.inputs):
            if self._computed(name):
                self._take(op, operand, inside=inside)
        self._charge("copy", 2 * self._size(op.outputs[0]))
        self._made(op, inside)

    # Layouts.

    def _block(self, kind: str) -> int:
        """The multiples in which layers of a kind write channels in the layout."""
        return self.model.blocks(kind).size if self.always else self.model.block

    def _stays(self, op: Operation) -> bool:
        """The result is an image in a layout that images never leave, but for gathers."""
        return self.always and len(self.graph.tensors[op.outputs[0]].shape) == _IMAGE

    def _take(self, op: Operation, operand: int, *, inside: bool) -> None:
        """Let an operation have one of its inputs, in the blocked layout or not."""
        name, edge = op.inputs[operand], (op.name, operand)
        if name not in self.tensors:
            return
        structure = self.graph.tensors[name]
        read = self.reads.get(edge)
        if read is None or self._is_whole(edge):
            if inside and name not in self.blocked and name not in self.back:
                self.back.add(name)
                self._charge("reorder_in", 2 * self._size(name))
            if not inside:
                self._plain(name)
            return
        moved = 2 * len(read.channels) * bytes_per_channel(structure)
        self._charge("gather" if read.plan == "gather" else "slice", moved)
        if self.always:
            if read.plan == "gather" and len(structure.shape) == _IMAGE:
                self._leave(name)
                self._charge("reorder_in", moved)
            return
        self._plain(name)
        if inside:
            self._charge("reorder_in", moved)

    def _plain(self, name: str) -> None:
        """Have a tensor outside of the blocked layout, too."""
        if name in self.blocked:
            self._leave(name)

    def _leave(self, name: str) -> None:
        if name not in self.out:
            self.out.add(name)
            self._charge("reorder_out", 2 * self._size(name))

    def _made(self, op: Operation, inside: bool) -> None:
        if inside:
            self.blocked.add(op.outputs[0])

    # Sizes.

    def _is_whole(self, edge: Edge) -> bool:
        """The edge delivers all that its tensor stores."""
        read = self.reads.get(edge)
        return read is None or len(read.channels) == len(self.tensors.get(read.tensor, ()))

    def _taken(self, edge: Edge) -> int:
        """The number of channels that an edge delivers."""
        read = self.reads.get(edge)
        if read is not None:
            return len(read.channels)
        return self._width(self.operations[edge[0]].inputs[edge[1]])

    def _width(self, name: str) -> int:
        """The number of channels that a tensor stores."""
        return len(self.tensors.get(name, ()))

    def _size(self, name: str) -> int:
        """The bytes of a tensor as it is stored."""
        structure = self.graph.tensors[name]
        if structure.axis is None or not structure.channels:
            return 4 * math.prod(structure.shape)
        return self._width(name) * bytes_per_channel(structure)

    def _charge(self, kind: str, moved: float, macs: float = 0) -> None:
        self.nanoseconds += self.model.nanoseconds(kind, bytes=moved, macs=macs)
