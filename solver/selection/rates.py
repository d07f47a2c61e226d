"""Prices of operations by the widths of what they read and write: multiply-adds, numbers, time.

Every resource is a sum over operations of products of two widths: a layer's weight has a row for
every channel written and a column for every channel read.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from upscale_opt.ir.cost_model import EACH, FEW, Blocks, CostModel
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
from upscale_opt.solver.network.objectives import bytes_per_channel, bytes_per_number

Side = int | None
"""One width of an operation: the number of an input, ``-1`` for the result, ``None`` for none."""

WRITTEN = -1


@dataclass(frozen=True)
class Rate:
    """A part of an operation's cost: so much for each pair of channels (or channel, or call).

    Attributes:
        sides: the two widths whose product is paid for.
        macs: multiply-adds.
        parameters: numbers.
        nanoseconds: by the cost model.
        groups: into how many groups both fall; channels of different groups make no pair.
        blocks: how the channels of the two sides are counted, for the time.
    """

    sides: tuple[Side, Side]
    macs: int = 0
    parameters: int = 0
    nanoseconds: float = 0.0
    groups: int = 1
    blocks: tuple[Blocks, Blocks] = (EACH, EACH)

    def time(self, first: int, second: int) -> float:
        """The nanoseconds for so many channels of the one side, and of the other."""
        one, other = self.blocks
        return self.nanoseconds * one.counted(first) * other.counted(second) / self.groups


class Rates:
    """The rates of all operations of a graph.

    Args:
        graph: the channel graph, in the sizes that matter.
        cost_model: of the device; without one, time costs nothing.

    Raises:
        SolverError: if the cost model lacks a kind of kernel.
    """

    def __init__(self, graph: ChannelGraph, cost_model: CostModel | None) -> None:
        self._graph = graph
        self._model = cost_model
        self.of: dict[str, tuple[Rate, ...]] = {}
        seen: set[str] = set()
        for op in graph.operations:
            self.of[op.name] = tuple(self._rates(op, seen))

    def _rates(self, op: Operation, seen: set[str]) -> Iterator[Rate]:
        if isinstance(op, Layer):
            yield from self._of_layer(op, seen)
            return
        if isinstance(op, (ChannelWise, Symmetric)):
            for use in op.parameters:
                if use.name not in seen and not use.name.endswith(_BUFFERS):
                    seen.add(use.name)
                    yield Rate((WRITTEN, None), parameters=self._each(use.name, use.axis, op))
        elif isinstance(op, Constant) and op.parameter not in seen:
            seen.add(op.parameter)
            if op.axis is None:
                count = math.prod(self._graph.parameters.get(op.parameter, (0,)))
                yield Rate((None, None), parameters=count)
            else:
                yield Rate((WRITTEN, None), parameters=self._each(op.parameter, op.axis, op))
        if self._model is not None:
            yield from self._of_kernel(op, self._model)

    def _each(self, parameter: str, axis: int, op: Operation) -> int:
        """The numbers that belong to one channel."""
        shape = self._graph.parameters[parameter]
        written = self._graph.tensors[op.outputs[0]]
        return math.prod(shape) // max(shape[axis], 1) * written.features

    def _of_layer(self, op: Layer, seen: set[str]) -> Iterator[Rate]:
        graph, written = self._graph, self._graph.tensors[op.outputs[0]]
        shape = graph.parameters[op.weight]
        first_use = op.weight not in seen
        seen.add(op.weight)
        if not op.inputs:
            yield Rate((WRITTEN, None), parameters=first_use * self._each(op.weight, 0, op))
            return
        read = graph.tensors[op.inputs[0]]
        kernel = math.prod(
            s for axis, s in enumerate(shape) if axis not in (op.in_axis, op.out_axis)
        )
        pairs = kernel * written.features * read.features
        transposed = op.in_axis == 0 and len(shape) > 2
        held = read if transposed else written
        positions = math.prod(held.shape) // (len(held.channels) * held.features)
        macs, numbers = pairs * positions, pairs * first_use
        nanoseconds, blocks = 0.0, (EACH, EACH)
        if self._model is not None:
            kind = _layer_kind(op, shape)
            cost = self._model.kernels.get(kind)
            launch = self._model.nanoseconds(kind)
            assert cost is not None
            weights = pairs * bytes_per_number(written) * cost.ns_per_byte
            nanoseconds = macs * cost.ns_per_mac
            if op.groups == 1:
                own = self._model.blocks(kind)
                blocks = _for(read, own.of_read), _for(written, own.of_written)
            if blocks == (EACH, EACH):
                nanoseconds += weights
            else:
                yield Rate((0, WRITTEN), nanoseconds=weights)
            yield Rate((None, None), nanoseconds=launch)
            yield Rate((0, None), nanoseconds=bytes_per_channel(read) * cost.ns_per_byte)
            yield Rate((WRITTEN, None), nanoseconds=bytes_per_channel(written) * cost.ns_per_byte)
        yield Rate((0, WRITTEN), macs, numbers, nanoseconds, op.groups, blocks)
        if op.bias is not None and op.bias not in seen:
            seen.add(op.bias)
            yield Rate((WRITTEN, None), parameters=written.features)

    def _of_kernel(self, op: Operation, model: CostModel) -> Iterator[Rate]:
        kind = kind_of(self._graph, op)
        if kind is None:
            return
        if kind == "pool" and model.runtime in _IN_PYTORCH and _is_global(self._graph, op):
            kind = "reduce"  # it calls ``mean``
        cost = model.kernels.get(kind)
        yield Rate((None, None), nanoseconds=model.nanoseconds(kind))
        assert cost is not None
        sides = [(WRITTEN, name) for name in op.outputs[:1]]
        sides += list(enumerate(op.inputs))
        for side, name in sides:
            tensor = self._graph.tensors[name]
            if tensor.axis is None or not tensor.channels:
                size = math.prod(tensor.shape) * 4
                yield Rate((None, None), nanoseconds=size * cost.ns_per_byte)
            else:
                each = bytes_per_channel(tensor) * cost.ns_per_byte
                yield Rate((side, None), nanoseconds=each)
        if isinstance(op, Attention):
            for operand, name in enumerate(op.inputs):
                tensor = self._graph.tensors[name]
                if tensor.axis is not None and name not in op.inputs[:operand]:
                    each = math.prod(tensor.shape) // len(tensor.channels)
                    tokens = max(s for at, s in enumerate(tensor.shape) if at != tensor.axis)
                    yield Rate((operand, None), nanoseconds=each * tokens * cost.ns_per_mac)
        if isinstance(op, ChannelWise) and kind == "depthwise":
            weight = next(use for use in op.parameters if len(self._graph.parameters[use.name]) > 2)
            taps = math.prod(self._graph.parameters[weight.name][2:])
            written = self._graph.tensors[op.outputs[0]]
            each = math.prod(written.shape) // len(written.channels)
            blocks = _for(written, model.blocks(kind).of_written), EACH
            yield Rate((WRITTEN, None), nanoseconds=each * taps * cost.ns_per_mac, blocks=blocks)


_IN_PYTORCH = ("eager", "compiled")
"""Runtimes in which kernels are PyTorch's own."""


def _is_global(graph: ChannelGraph, op: Operation) -> bool:
    """The result of a pooling has one number for each channel (of each image)."""
    tensor = graph.tensors[op.outputs[0]]
    images = math.prod(tensor.shape[: tensor.axis])
    return math.prod(tensor.shape) == images * len(tensor.channels) * tensor.features


_BUFFERS = ("running_mean", "running_var", "num_batches_tracked")


def kind_of(graph: ChannelGraph, op: Operation) -> str | None:
    """The kind of kernel of what is no layer; ``None`` for what moves and computes nothing."""
    if isinstance(op, Concat):
        return "copy" if len(op.inputs) > 1 else None
    if isinstance(op, (Select, Constant)) or op.kind in ("input", "output"):
        return None
    if isinstance(op, Elementwise):
        return "elementwise"
    if isinstance(op, Attention):
        return "matmul"
    if isinstance(op, Symmetric):
        return "norm" if op.parameters else "reduce"
    if not isinstance(op, ChannelWise):
        return "other"
    if any(len(graph.parameters[use.name]) > 2 for use in op.parameters):
        return "depthwise"
    if op.parameters:
        return "norm"
    read, written = (graph.tensors[n] for n in (op.inputs[0], op.outputs[0]))
    before, after = math.prod(read.shape), math.prod(written.shape)
    if before > after:
        return "pool"
    if before == after and read.shape != written.shape:
        return None  # a view
    return "elementwise"


def _layer_kind(op: Layer, shape: tuple[int, ...]) -> str:
    if len(shape) == 2:
        return "linear"
    if op.in_axis == 0:
        return "transposed"
    if op.groups > 1:
        return "grouped"
    return "conv1x1" if math.prod(shape[2:]) == 1 else "conv"


def _for(tensor: Tensor, blocks: Blocks) -> Blocks:
    """The way in which channels of a tensor are counted: a few, such as colours, as they are."""
    return EACH if tensor.features > 1 or len(tensor.channels) <= FEW else blocks


def entries(tensor: Tensor, ids: frozenset[int] | None) -> int:
    """The number of entries of a tensor's channel sequence that are among ``ids`` (or at all)."""
    if ids is None or not tensor.channels:
        return len(tensor.channels)
    return sum(map(ids.__contains__, tensor.channels))
