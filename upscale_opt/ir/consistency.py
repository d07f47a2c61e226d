"""What must hold in every channel graph, whoever wrote it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from upscale_opt.ir.graph import ChannelGraph, Operation, Tensor


def check_consistency(graph: ChannelGraph) -> None:
    """Check that the graph's parts fit together.

    Raises:
        ValueError: naming the first part that does not.
    """
    space_of: dict[int, int] = {}
    for number, space in enumerate(graph.spaces):
        for channel in space.channels:
            if space_of.setdefault(channel, number) != number:
                raise ValueError(f"channel {channel} belongs to two spaces")
    if len(space_of) != sum(len(space.channels) for space in graph.spaces):
        raise ValueError("a space lists a channel twice")
    for name, tensor in graph.tensors.items():
        _check_tensor(graph, name, tensor, space_of)
    written: set[str] = set()
    for op in graph.operations:
        for name in (*op.inputs, *op.whole):
            if name not in written:
                raise ValueError(f"operation {op.name!r} reads {name!r} before it is written")
        for name in op.outputs:
            if name not in graph.tensors:
                raise ValueError(f"operation {op.name!r} writes unknown tensor {name!r}")
            if name in written:
                raise ValueError(f"tensor {name!r} is written twice")
            written.add(name)
        _check_operation(graph, op)
    unwritten = sorted(set(graph.tensors) - written)
    if unwritten:
        raise ValueError(f"tensor {unwritten[0]!r} is written by no operation")
    names = [op.name for op in graph.operations]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"two operations are called {twice!r}")


def _check_tensor(graph: ChannelGraph, name: str, tensor: Tensor, space_of: dict[int, int]) -> None:
    if tensor.axis is None:
        if tensor.channels:
            raise ValueError(f"tensor {name!r} has channels but no channel axis")
        return
    if not 0 <= tensor.axis < len(tensor.shape):
        raise ValueError(f"tensor {name!r} has no axis {tensor.axis}")
    if len(tensor.channels) * tensor.features != tensor.shape[tensor.axis]:
        raise ValueError(
            f"tensor {name!r} has {len(tensor.channels)} channels of {tensor.features} features "
            f"on an axis of {tensor.shape[tensor.axis]}"
        )
    at = 0
    while at < len(tensor.channels):
        space = space_of.get(tensor.channels[at])
        if space is None:
            raise ValueError(f"channel {tensor.channels[at]} of {name!r} belongs to no space")
        run = graph.spaces[space].channels
        if tensor.channels[at : at + len(run)] != run:
            raise ValueError(f"tensor {name!r} does not hold the space of channel {run[0]} whole")
        at += len(run)


_ARITY = {  # least and greatest number of inputs, and of outputs
    "input": (0, 0, 1, 1),
    "layer": (0, 1, 1, 1),
    "channelwise": (1, 1, 1, 1),
    "elementwise": (2, None, 1, 1),
    "concat": (1, None, 1, 1),
    "select": (1, 1, 1, 1),
    "constant": (0, 0, 1, 1),
    "opaque": (0, None, 0, None),
    "output": (0, None, 0, 0),
}


def _check_operation(graph: ChannelGraph, op: Operation) -> None:
    least, most, least_out, most_out = _ARITY[op.kind]
    if len(op.inputs) < least or (most is not None and len(op.inputs) > most):
        raise ValueError(f"operation {op.name!r} ({op.kind}) has {len(op.inputs)} inputs")
    if len(op.outputs) < least_out or (most_out is not None and len(op.outputs) > most_out):
        raise ValueError(f"operation {op.name!r} ({op.kind}) has {len(op.outputs)} outputs")
    if op.kind in ("input", "constant", "opaque", "output"):
        _check_parameters(graph, op)
        return
    tensors = [graph.tensors[name] for name in (*op.inputs, *op.outputs)]
    if any(tensor.axis is None for tensor in tensors):
        raise ValueError(f"operation {op.name!r} ({op.kind}) needs tensors with a channel axis")
    *inputs, output = [tensor.channels for tensor in tensors]
    if op.kind in ("channelwise", "elementwise") and any(ids != output for ids in inputs):
        raise ValueError(f"operation {op.name!r} ({op.kind}) must keep the channels of its inputs")
    if op.kind == "concat" and tuple(c for ids in inputs for c in ids) != output:
        raise ValueError(f"the result of {op.name!r} is not its inputs, one after the other")
    if op.kind == "select" and (
        any(place >= len(inputs[0]) for place in op.positions)
        or tuple(inputs[0][place] for place in op.positions) != output
    ):
        raise ValueError(f"the result of {op.name!r} is not what it selects")
    _check_parameters(graph, op)


def _check_parameters(graph: ChannelGraph, op: Operation) -> None:
    """Every parameter exists, and is as long along its channel axis as the tensor is."""

    def check(parameter: str, axis: int | None, tensor: str) -> None:
        shape = graph.parameters.get(parameter)
        if shape is None:
            raise ValueError(f"operation {op.name!r} uses unknown parameter {parameter!r}")
        along = graph.tensors[tensor]
        if axis is None or along.axis is None:
            return
        if not 0 <= axis < len(shape) or shape[axis] != along.shape[along.axis]:
            raise ValueError(
                f"parameter {parameter!r} of shape {shape} does not fit tensor {tensor!r} of shape "
                f"{along.shape} along axis {axis}"
            )

    if op.kind == "layer":
        if op.in_axis == op.out_axis:
            raise ValueError(f"layer {op.name!r} reads and writes along the same axis")
        check(op.weight, op.out_axis, op.outputs[0])
        if op.inputs:
            check(op.weight, op.in_axis, op.inputs[0])
        if op.bias is not None:
            check(op.bias, 0, op.outputs[0])
    elif op.kind == "channelwise":
        for use in op.parameters:
            check(use.name, use.axis, op.outputs[0])
    elif op.kind == "constant":
        check(op.parameter, graph.tensors[op.outputs[0]].axis, op.outputs[0])
