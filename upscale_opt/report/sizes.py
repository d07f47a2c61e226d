"""Parameters and multiply-adds of a network, from its graph alone; no PyTorch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from upscale_opt.ir.graph import ChannelGraph, ChannelWise, Layer, Operation, parameters_of
from upscale_opt.ir.solution import Solution

_BUFFERS = (".running_mean", ".running_var")
"""The endings of the names of buffers that graphs list among the parameters."""


@dataclass(frozen=True)
class Sizes:
    """The size of a network.

    Attributes:
        parameters: the numbers in the parameters that the graph knows; buffers do not count.
        multiply_adds: of the convolutions and linear layers, with the example's sizes; not those
            of attention, and of what the graph calls opaque.
    """

    parameters: int
    multiply_adds: int


def sizes(graph: ChannelGraph, solution: Solution | None = None) -> Sizes:
    """The sizes of a network; as ``solution`` leaves it, if one is given."""
    kept = {} if solution is None else solution.parameters
    shapes = {
        name: _left(shape, kept.get(name, {}), graph.grouped.get(name, 1))
        for name, shape in graph.parameters.items()
    }
    running = [op for op in graph.operations if solution is None or _runs(graph, solution, op)]
    used = {name for op in running for name in parameters_of(op)}
    return Sizes(
        sum(math.prod(shapes[name]) for name in used if not name.endswith(_BUFFERS)),
        sum(_multiply_adds(graph, op, shapes) for op in running),
    )


def _left(shape: Sequence[int], kept: Mapping[int, Sequence[int]], groups: int) -> tuple[int, ...]:
    """The shape of what is left of a parameter."""
    left = list(shape)
    for axis, indices in kept.items():
        left[axis] = len(indices)
        if groups > 1 and axis == 1:  # channels of all groups that are left
            left[axis] //= max(len({index // shape[1] for index in indices}), 1)
    return tuple(left)


def _runs(graph: ChannelGraph, solution: Solution, op: Operation) -> bool:
    """Tell whether anything of the operation is left."""
    structured = [name for name in op.outputs if graph.tensors[name].channels]
    return not structured or any(name in solution.tensors for name in structured)


def _multiply_adds(
    graph: ChannelGraph, op: Operation, shapes: Mapping[str, tuple[int, ...]]
) -> int:
    """Every number of a layer's weight, or of a filter per channel, is used once per position."""
    if isinstance(op, Layer) and op.inputs:
        weight = graph.parameters[op.weight]
        transposed = op.in_axis == 0 and len(weight) > 2
        positions = _positions(graph, op.inputs[0] if transposed else op.outputs[0])
        return math.prod(shapes[op.weight]) * positions
    if isinstance(op, ChannelWise):
        filters = [use.name for use in op.parameters if _is_filter(graph, use.name, use.axis)]
        return sum(math.prod(shapes[n]) * _positions(graph, op.outputs[0]) for n in filters)
    return 0


def _positions(graph: ChannelGraph, name: str) -> int:
    """The number of elements of the tensor that belong to one channel (or feature of it)."""
    tensor = graph.tensors[name]
    return math.prod(tensor.shape) // (len(tensor.channels) * tensor.features)


def _is_filter(graph: ChannelGraph, parameter: str, axis: int) -> bool:
    """Tell whether a parameter has many numbers per channel: a depthwise convolution's weight."""
    shape = graph.parameters[parameter]
    return math.prod(shape) > shape[axis]
