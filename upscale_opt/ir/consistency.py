"""Conditions that hold in every channel graph, whoever wrote it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from upscale_opt.ir.graph import Attention, ChannelGraph, Concat, Operation, Space, Tensor

Run = tuple[int, tuple[int, ...]]
"""A space's number, and which entries of a tensor's channel sequence are its channels."""


def find_runs(
    channels: Sequence[int], spaces: Sequence[Space], space_of: Mapping[int, int]
) -> tuple[Run, ...]:
    """Split a tensor's channel sequence into spaces; see :meth:`ChannelGraph.runs`.

    Raises:
        ValueError: naming a channel whose space the tensor does not hold as it must.
    """
    runs: list[Run] = []
    at = 0
    while at < len(channels):
        number = space_of[channels[at]]
        whole = spaces[number].channels
        if tuple(channels[at : at + len(whole)]) != whole:
            return _scattered_runs(channels, spaces, space_of)
        runs.append((number, tuple(range(at, at + len(whole)))))
        at += len(whole)
    return tuple(runs)


def _scattered_runs(
    channels: Sequence[int], spaces: Sequence[Space], space_of: Mapping[int, int]
) -> tuple[Run, ...]:
    entries: dict[int, list[int]] = {}
    for entry, channel in enumerate(channels):
        entries.setdefault(space_of[channel], []).append(entry)
    for number, own in entries.items():
        if sorted(channels[entry] for entry in own) != sorted(spaces[number].channels):
            raise ValueError(
                f"does not hold the space of channel {spaces[number].channels[0]} whole"
            )
    return tuple((number, tuple(own)) for number, own in entries.items())


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
    _check_twins(graph, space_of)
    for name, tensor in graph.tensors.items():
        _check_tensor(graph, name, tensor, space_of)
    written: set[str] = set()
    for op in graph.operations:
        for name in (*op.inputs, *op.whole, *op.sizes):
            if name not in written:
                raise ValueError(f"operation {op.name!r} reads {name!r} before it is written")
        for name in op.outputs:
            if name not in graph.tensors:
                raise ValueError(f"operation {op.name!r} writes unknown tensor {name!r}")
            if name in written:
                raise ValueError(f"tensor {name!r} is written twice")
            written.add(name)
        _check_operation(graph, op)
    ends = [number for number, op in enumerate(graph.operations, 1) if op.kind == "output"]
    if ends != [len(graph.operations)]:
        last = graph.operations[-1].name if graph.operations else None
        raise ValueError(f"the last operation, {last!r}, and no other must be an output")
    unwritten = sorted(set(graph.tensors) - written)
    if unwritten:
        raise ValueError(f"tensor {unwritten[0]!r} is written by no operation")
    names = [op.name for op in graph.operations]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"two operations are called {twice!r}")


def _check_twins(graph: ChannelGraph, space_of: dict[int, int]) -> None:
    """Every twin was made of one channel that a space lists; adds them to ``space_of``."""
    made: dict[int, int] = {}
    for twins in graph.twins:
        if len(twins.channels) != len(twins.of):
            raise ValueError(f"{len(twins.channels)} twins were made of {len(twins.of)} channels")
        for twin, channel in zip(twins.channels, twins.of, strict=True):
            if twin in space_of or twin in made:
                raise ValueError(f"channel {twin} is a twin, and something else besides")
            if channel not in space_of:
                raise ValueError(f"twin {twin} was made of channel {channel}, of no space")
            made[twin] = space_of[channel]
    space_of.update(made)


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
    for channel in tensor.channels:
        if channel not in space_of:
            raise ValueError(f"channel {channel} of {name!r} belongs to no space")
    try:
        graph.runs(name)
    except ValueError as error:
        raise ValueError(f"tensor {name!r} {error}") from None


_ARITY = {  # least and greatest number of inputs, and of outputs
    "input": (0, 0, 1, 1),
    "layer": (0, 1, 1, 1),
    "channelwise": (1, 1, 1, 1),
    "symmetric": (1, 1, 1, 1),
    "attention": (1, 3, 1, 1),
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
    if op.kind == "layer" and not (op.inputs or op.whole):
        raise ValueError(f"operation {op.name!r} ({op.kind}) reads nothing")
    reduces = op.kind == "symmetric" and op.reduces
    if op.kind in ("input", "constant", "opaque", "output") or reduces:
        _check_parameters(graph, op)
        return
    if op.kind == "attention":
        _check_attention(graph, op)
        return
    tensors = [graph.tensors[name] for name in (*op.inputs, *op.outputs)]
    if any(tensor.axis is None for tensor in tensors):
        raise ValueError(f"operation {op.name!r} ({op.kind}) needs tensors with a channel axis")
    *inputs, output = [tensor.channels for tensor in tensors]
    kept = op.kind in ("channelwise", "symmetric", "elementwise")
    if kept and any(ids != output for ids in inputs):
        raise ValueError(f"operation {op.name!r} ({op.kind}) must keep the channels of its inputs")
    if op.kind == "concat":
        joined = tuple(c for ids in inputs for c in ids)
        if op.positions is not None:
            if len(set(op.positions)) < len(op.positions) or max(op.positions, default=-1) >= len(
                joined
            ):
                raise ValueError(f"the positions of {op.name!r} are not distinct places")
            joined = tuple(joined[place] for place in op.positions)
        if joined != output:
            _check_twins_of(graph, op, joined, output)
    if op.kind in ("layer", "symmetric") and op.groups > 1:
        for name in (*op.inputs, *op.outputs):
            _check_groups(graph, op.name, name, op.groups)
    if op.kind == "select" and (
        any(place >= len(inputs[0]) for place in op.positions)
        or tuple(inputs[0][place] for place in op.positions) != output
    ):
        raise ValueError(f"the result of {op.name!r} is not what it selects")
    _check_parameters(graph, op)


def _check_twins_of(
    graph: ChannelGraph, op: Concat, read: Sequence[int], written: Sequence[int]
) -> None:
    """All that a concatenation writes is what it reads, or a twin of it; one for each operand."""
    if len(read) != len(written) or not all(
        one == other or (other in graph.originals and graph.original(one) == graph.original(other))
        for one, other in zip(read, written, strict=True)
    ):
        raise ValueError(f"the result of {op.name!r} is not its inputs, one after the other")
    named: dict[tuple[int, int], int] = {}
    for operand, channel, twin in graph.joined(op):
        if named.setdefault((operand, channel), twin) != twin:
            raise ValueError(f"{op.name!r} makes two twins of channel {channel} of one operand")


def _check_attention(graph: ChannelGraph, op: Attention) -> None:
    """Queries and keys have the same channels, the result those of the values; heads are runs."""
    if len(op.inputs) != {"whole": 3, "scores": 2, "mix": 1}[op.form]:
        raise ValueError(f"operation {op.name!r} ({op.form}) has {len(op.inputs)} inputs")
    for pair in (op.queries, (*op.values, *op.outputs) if op.values else ()):
        ids = {graph.tensors[name].channels for name in pair}
        if len(ids) > 1:
            raise ValueError(f"{' and '.join(map(repr, pair))} must have the same channels")
    for name in (*op.inputs, *(op.outputs if op.values else ())):
        if graph.tensors[name].axis is None or graph.tensors[name].features > 1:
            raise ValueError(f"tensor {name!r} of {op.name!r} must have channels of one feature")
        _check_groups(graph, op.name, name, op.heads)


def _check_groups(graph: ChannelGraph, op: str, name: str, groups: int) -> None:
    """A tensor's groups are of one size, and no space reaches across them."""
    tensor = graph.tensors[name]
    channels = len(tensor.channels)
    if channels % groups:
        raise ValueError(f"the {channels} channels of {name!r} are not {groups} groups ({op!r})")
    if len(set(tensor.channels)) < channels:
        raise ValueError(f"tensor {name!r} of {op!r}, which has groups, holds a channel twice")
    size = channels // groups
    for _, entries in graph.runs(name):
        if len({entry // size for entry in entries}) > 1:
            raise ValueError(f"a space of {name!r} reaches across the groups of {op!r}")


def _check_parameters(graph: ChannelGraph, op: Operation) -> None:
    """Every parameter exists, and is as long along its channel axis as the tensor is."""

    def check(parameter: str, axis: int | None, tensor: str, groups: int = 1) -> None:
        shape = graph.parameters.get(parameter)
        if shape is None:
            raise ValueError(f"operation {op.name!r} uses unknown parameter {parameter!r}")
        along = graph.tensors[tensor]
        if axis is None or along.axis is None:
            return
        if not 0 <= axis < len(shape) or shape[axis] * groups != along.shape[along.axis]:
            raise ValueError(
                f"parameter {parameter!r} of shape {shape} does not fit tensor {tensor!r} of shape "
                f"{along.shape} along axis {axis}"
            )

    if op.kind == "layer":
        if op.in_axis == op.out_axis:
            raise ValueError(f"layer {op.name!r} reads and writes along the same axis")
        if op.groups > 1 and min(op.in_axis, op.out_axis) != 0:
            raise ValueError(f"layer {op.name!r} has groups, but not along its weight's first axis")
        short = op.short_axis
        check(op.weight, op.out_axis, op.outputs[0], op.groups if short == op.out_axis else 1)
        if op.inputs:
            check(op.weight, op.in_axis, op.inputs[0], op.groups if short == op.in_axis else 1)
        if op.bias is not None:
            check(op.bias, 0, op.outputs[0])
    elif op.kind in ("channelwise", "symmetric"):
        for use in op.parameters:
            check(use.name, use.axis, op.outputs[0])
    elif op.kind == "constant":
        if (op.axis is None) != (graph.tensors[op.outputs[0]].axis is None):
            raise ValueError(f"constant {op.name!r} and its tensor must both have a channel axis")
        check(op.parameter, op.axis, op.outputs[0])
