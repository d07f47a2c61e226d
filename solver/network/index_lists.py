"""The slices of every parameter that remain, given what the tensors store."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from upscale_opt.ir.graph import ChannelGraph, ChannelWise, Constant, Layer, Symmetric, slices_of
from upscale_opt.ir.solution import Read

Indices = tuple[int, ...]

IndexLists = dict[str, dict[int, Indices]]
"""Parameter name and axis to the indices kept, in order; what stays whole is not listed."""


def index_lists(
    graph: ChannelGraph, tensors: Mapping[str, tuple[int, ...]], reads: Iterable[Read]
) -> IndexLists:
    """The index lists that follow from the tensors' layouts and the reads.

    Args:
        graph: the channel graph.
        tensors: for each tensor that is computed, the entries of its channel sequence stored.
        reads: the plans; a layer without one reads its whole input.

    Raises:
        ValueError: naming a parameter that two operations need cut in different ways.
    """
    known: dict[tuple[str, int], Indices] = {}
    lists: IndexLists = {}
    for parameter, axis, indices in _all_lists(graph, tensors, reads):
        if known.setdefault((parameter, axis), indices) != indices:
            raise ValueError(parameter)
        if indices != tuple(range(slices_of(graph, parameter, axis))):
            lists.setdefault(parameter, {})[axis] = indices
    return lists


def _all_lists(
    graph: ChannelGraph, tensors: Mapping[str, tuple[int, ...]], reads: Iterable[Read]
) -> Iterator[tuple[str, int, Indices]]:
    selects = {(read.op, read.operand): read for read in reads if read.kind == "select"}

    def keep(parameter: str, axis: int, tensor: str, entries: Indices) -> tuple[str, int, Indices]:
        features = graph.tensors[tensor].features
        if features > 1:
            entries = tuple(e * features + f for e in entries for f in range(features))
        return parameter, axis, entries

    for op in graph.operations:
        if not op.outputs or op.outputs[0] not in tensors:
            continue
        written = op.outputs[0]
        if isinstance(op, Layer):
            yield keep(op.weight, op.out_axis, written, tensors[written])
            if op.bias is not None:
                yield keep(op.bias, 0, written, tensors[written])
            if op.inputs:
                read = selects.get((op.name, 0))
                entries = tensors[op.inputs[0]] if read is None else read.channels
                yield keep(op.weight, op.in_axis, op.inputs[0], entries)
        elif isinstance(op, (ChannelWise, Symmetric)):
            for use in op.parameters:
                yield keep(use.name, use.axis, written, tensors[written])
        elif isinstance(op, Constant) and op.axis is not None:
            yield keep(op.parameter, op.axis, written, tensors[written])
