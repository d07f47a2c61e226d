"""Sums in a pruned program of which some summands have only some of the channels."""

from __future__ import annotations

from torch import fx

from upscale_opt.ir import graph as ir
from upscale_opt.materializing.reads import read_operand, require_features
from upscale_opt.materializing.state import State
from upscale_opt.runtime.modules import PlacedSum, Placement


def lacks_channels(state: State, op: ir.Elementwise) -> bool:
    """Tell whether an operation is a sum of which summands lack channels, or are gone."""
    return op.additive and any(
        (op.name, operand) in state.places or _is_left_out(state, op, operand)
        for operand in range(len(op.inputs))
    )


def _is_left_out(state: State, op: ir.Elementwise, operand: int) -> bool:
    read = state.selects.get((op.name, operand))
    nothing = read is not None and not read.channels
    return nothing or op.inputs[operand] not in state.solution.tensors


def emit_sum(state: State, node: fx.Node, op: ir.Elementwise) -> fx.Node:
    """A sum in which operands are placed into some of the channels, or left out."""
    result = state.graph.tensors[op.outputs[0]]
    layout = state.solution.tensors[op.outputs[0]]
    place_of = {entry: i for i, entry in enumerate(layout)}
    values: list[fx.Node] = []
    placements: list[Placement] = []
    for operand, name in enumerate(op.inputs):
        if _is_left_out(state, op, operand):
            continue
        value = read_operand(state, node, name, op.name, operand)
        values.append(value)
        place = state.places.get((op.name, operand))
        if place is None or place.channels == layout:
            placements.append(None)
            continue
        if (op.name, operand) not in state.selects:
            require_features(state, value, name)
        at = [place_of[entry] for entry in place.channels]
        f = result.features
        if place.plan == "view":
            placements.append((at[0] * f, len(at) * f))
        else:
            placements.append([i * f + k for i in at for k in range(f)])
    if len(values) == 1 and placements[0] is None:
        return values[0]
    assert result.axis is not None
    size, rank = len(layout) * result.features, len(result.shape)
    module = PlacedSum(placements, size, result.axis, rank, state.device)
    target = state.unused(f"sum_{node.name}")
    state.root.add_module(target, module)
    return state.new.create_node("call_module", target, tuple(values), name=node.name)
