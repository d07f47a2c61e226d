"""Reads in a pruned program: what a call takes of a tensor, as a view or a copy."""

from __future__ import annotations

import torch
from torch import fx

from upscale_opt.ir.solution import Read
from upscale_opt.materializing.arenas import read_arena
from upscale_opt.materializing.state import State
from upscale_opt.runtime.modules import Gather
from upscale_opt.runtime.required_inputs import require_inputs


def select(state: State, value: fx.Node, read: Read) -> fx.Node:
    """The channels that ``read`` takes of its tensor, for which ``value`` stands."""
    tensor = state.graph.tensors[read.tensor]
    layout = state.solution.tensors[read.tensor]
    assert tensor.axis is not None
    if read.tensor in state.buffers:
        return read_arena(state, read.tensor, read)
    if read.channels == layout:
        return value
    require_features(state, value, read.tensor)
    axis = state.axis_of(read.tensor)
    place = {entry: i for i, entry in enumerate(layout)}
    indices = [place[entry] for entry in read.channels]
    if read.plan != "gather":
        start, length = indices[0] * tensor.features, len(indices) * tensor.features
        return state.new.call_function(torch.narrow, (value, axis, start, length))
    elements = [i * tensor.features + f for i in indices for f in range(tensor.features)]
    name = state.unused(f"gather_{read.op}_{read.operand}")
    state.root.add_module(name, Gather(elements, axis, state.device))
    return state.new.call_module(name, (value,))


def read_operand(state: State, node: fx.Node, name: str, op: str, operand: int) -> fx.Node:
    """The node that the operation ``op`` reads as its ``operand``-th input, the tensor ``name``.

    Args:
        state: the pruned program.
        node: the call in the captured program.
        name: the tensor.
        op: the operation's name.
        operand: which of its inputs.
    """
    value: fx.Node = state.node_of(node, name)
    read = state.selects.get((op, operand))
    return value if read is None else select(state, value, read)


def require_features(state: State, value: fx.Node, name: str) -> None:
    """Have it checked that the tensor ``name`` has as many features as in the example.

    How many there are may depend on the inputs' sizes, and what takes or places some channels
    counts them.
    """
    tensor = state.graph.tensors[name]
    if tensor.features > 1 and value not in state.counted:
        state.counted.add(value)
        size = len(state.solution.tensors[name]) * tensor.features
        sizes = tuple(size if a == tensor.axis else None for a in range(len(tensor.shape)))
        tracer = f"torch.{state.graph.capture}"
        state.new.call_function(require_inputs, ((value,), (name,), (sizes,), tracer))
