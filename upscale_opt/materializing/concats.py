"""Concatenations in a pruned program: one after the other, interleaved, or in an arena."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import fx

from upscale_opt.ir import graph as ir
from upscale_opt.materializing.arenas import write_arena
from upscale_opt.materializing.reads import read_operand
from upscale_opt.materializing.state import State
from upscale_opt.runtime.arena import joined_runs


def emit_concat(state: State, node: fx.Node, op: ir.Concat) -> fx.Node:
    """The call that joins the operands of ``op``, in place of ``node``."""
    if op.outputs[0] in state.buffers:
        return write_arena(state, node, op)
    if op.positions is not None:
        return _interleaved(state, node, op, op.positions)
    kept = set(state.solution.tensors[op.outputs[0]])
    parts: list[fx.Node] = []
    start = 0
    for operand, name in enumerate(op.inputs):
        size = len(state.graph.tensors[name].channels)
        if kept.intersection(range(start, start + size)):
            parts.append(read_operand(state, node, name, op.name, operand))
        start += size
    return _join(state, node, op, parts)


def _interleaved(state: State, node: fx.Node, op: ir.Concat, positions: Sequence[int]) -> fx.Node:
    """A concatenation that takes runs of its inputs in another sequence."""
    axis = state.graph.tensors[op.outputs[0]].axis
    origin: list[tuple[int, int]] = []  # where each entry of the joined inputs is stored
    for operand, name in enumerate(op.inputs):
        place = {entry: i for i, entry in enumerate(state.solution.tensors.get(name, ()))}
        count = len(state.graph.tensors[name].channels)
        origin += [(operand, place.get(entry, -1)) for entry in range(count)]
    taken = [origin[positions[entry]] for entry in state.solution.tensors[op.outputs[0]]]
    parts: list[fx.Node] = []
    for operand, first, length in joined_runs(taken):
        name = op.inputs[operand]
        value = state.node_of(node, name)
        if length < len(state.solution.tensors[name]):
            value = state.new.call_function(torch.narrow, (value, axis, first, length))
        parts.append(value)
    return _join(state, node, op, parts)


def _join(state: State, node: fx.Node, op: ir.Concat, parts: list[fx.Node]) -> fx.Node:
    if len(parts) == 1:
        return parts[0]
    axis = state.graph.tensors[op.outputs[0]].axis
    return state.new.create_node(
        "call_function", torch.cat, (parts,), {"dim": axis}, name=node.name
    )
