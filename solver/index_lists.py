"""Which slices of every parameter remain, given what the tensors store."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from upscale_opt.ir.graph import ChannelGraph, ChannelWise, Constant, Layer, Symmetric, slices_of
from upscale_opt.ir.solution import Read

IndexLists = dict[str, dict[int, tuple[int, ...]]]
"""Parameter name and axis to the indices kept, in order; what stays whole is not listed."""


def index_lists(
    graph: ChannelGraph, tensors: Mapping[str, tuple[int, ...]], reads: Iterable[Read]
) -> IndexLists:
    """The index lists that follow from the tensors' layouts and the reads.

    Args:
        graph: the channel graph.
        tensors: for each tensor that is computed, the entries of its channel sequence stored.
        reads: the plans; a layer without one reads its whole input.
    """
    selects = {(read.op, read.operand): read for read in reads if read.kind == "select"}
    lists: IndexLists = {}

    def keep(parameter: str, axis: int, tensor: str, entries: tuple[int, ...]) -> None:
        features = graph.tensors[tensor].features
        indices = entries
        if features > 1:
            indices = tuple(e * features + f for e in entries for f in range(features))
        if indices != tuple(range(slices_of(graph, parameter, axis))):
            lists.setdefault(parameter, {})[axis] = indices

    for op in graph.operations:
        if not op.outputs or op.outputs[0] not in tensors:
            continue
        written = op.outputs[0]
        if isinstance(op, Layer):
            keep(op.weight, op.out_axis, written, tensors[written])
            if op.bias is not None:
                keep(op.bias, 0, written, tensors[written])
            if op.inputs:
                read = selects.get((op.name, 0))
                entries = tensors[op.inputs[0]] if read is None else read.channels
                keep(op.weight, op.in_axis, op.inputs[0], entries)
        elif isinstance(op, (ChannelWise, Symmetric)):
            for use in op.parameters:
                keep(use.name, use.axis, written, tensors[written])
        elif isinstance(op, Constant) and op.axis is not None:
            keep(op.parameter, op.axis, written, tensors[written])
    return lists
