"""Write calls on attention heads again, with fewer channels in each head."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import fx

from upscale_opt.ir import graph as ir
from upscale_opt.materializing.angles import taken_angles
from upscale_opt.materializing.concats import emit_concat
from upscale_opt.materializing.reads import read_operand, select
from upscale_opt.materializing.state import State
from upscale_opt.runtime.modules import Gather
from upscale_opt.runtime.rotary import rotate, signed
from upscale_opt.tracing.attention import FLAT, PART, REPEATED
from upscale_opt.tracing.products import attention_arguments
from upscale_opt.tracing.values import Arrangement, HeadCall


def write_call(
    graph: fx.Graph,
    node: fx.Node,
    call: HeadCall,
    values: Mapping[int, fx.Node],
    argument: Callable[[Any], Any],
) -> fx.Node:
    """Write the call ``node`` again.

    Attention scales by the square root of the channels a head had in the original, whatever it
    has now.

    Args:
        graph: the new program.
        node: the call in the old one.
        call: what it does.
        values: operands whose channels are selected, by number.
        argument: translates all other arguments.
    """
    if call.how == "pointwise":
        args = tuple(
            values[number] if number in values else argument(arg)
            for number, arg in enumerate(node.args)
        )
        return graph.create_node(node.op, node.target, args, dict(node.kwargs), name=node.name)
    if call.how == "attention":
        given = attention_arguments(node.args, dict(node.kwargs))
        for number, name in enumerate(("query", "key", "value")):
            given[name] = values[number] if number in values else argument(given[name])
        operands = tuple(given.pop(name) for name in ("query", "key", "value"))
        options = {**argument(given), "scale": call.scale}
        return graph.create_node("call_function", node.target, operands, options, name=node.name)
    listed = node.args
    if call.how == "einsum":
        listed = node.args[1:]
        if isinstance(listed[0], (tuple, list)):
            listed = tuple(listed[0])
    operands = tuple(
        values[number] if number in values else argument(arg) for number, arg in enumerate(listed)
    )
    if call.how == "einsum":
        operands = (call.equation, *operands)
    target = torch.einsum if call.how == "einsum" else torch.matmul
    return graph.create_node("call_function", target, operands, {}, name=node.name)


def spread(graph: fx.Graph, value: fx.Node, arrangement: Arrangement, channels: int) -> fx.Node:
    """``value``, with ``channels`` on its channel axis, with an axis of heads."""
    sizes = (arrangement.heads, channels // arrangement.heads)
    split = graph.call_method("unflatten", (value, arrangement.axis, sizes))
    return graph.call_method("permute", (split, *arrangement.order))


def join(graph: fx.Graph, value: fx.Node, arrangement: Arrangement) -> fx.Node:
    """The inverse of :func:`spread`."""
    turned = graph.call_method("permute", (value, *arrangement.back))
    return graph.call_method("flatten", (turned, arrangement.axis, arrangement.axis + 1))


def emit_heads(
    state: State,
    node: fx.Node,
    call: HeadCall,
    operations: Sequence[ir.Operation],
    argument: Callable[[Any], Any],
) -> fx.Node | None:
    """A call on attention heads, on the channels that are left of each.

    Args:
        state: the pruned program.
        node: the call in the captured program.
        call: what is known of it.
        operations: of the graph, that it consists of.
        argument: what the call's arguments are in the pruned program.
    """
    tensors = state.solution.tensors
    if call.how == "cat":
        return _emit_joined(state, node, call, operations)
    last = next(op for op in operations if op.name == node.name)
    stored = (*last.inputs, *(() if call.tensor is None else (call.tensor,)))
    if any(name not in tensors for name in stored):
        return None
    repeating = next((op for op in operations if op.name.endswith(f".{REPEATED}")), None)
    for op in operations:
        if op is repeating or op.name.endswith(f".{PART}"):
            continue
        if isinstance(op, ir.Select):
            state.joined[op.outputs[0]] = read_operand(state, node, op.inputs[0], op.name, 0)
        elif _flattens(op):
            value = read_operand(state, node, op.inputs[0], op.name, 0)
            axis = state.graph.tensors[op.inputs[0]].axis
            assert axis is not None
            flat = state.new.call_method("flatten", (value, axis + 1))
            state.joined[op.outputs[0]] = flat
    values: dict[int, fx.Node] = {}
    for number, operand in enumerate(call.operands):
        if operand.tensor is None:
            continue
        channels: Sequence[int] = tensors[operand.tensor]
        read = state.selects.get((last.name, len(values)))
        if operand.merged is not None:
            held = operand.merged.tensor
            channels = operand.merged.entries(
                [_read(state, kind.op, number, kind.tensor) for kind in operand.merged.kinds]
            )
            name = f"{last.name}_{number}"
            value = _taken(state, state.node_of(node, held), held, channels, name)
        else:
            value = state.node_of(node, operand.tensor)
            if read is not None:
                value, channels = select(state, value, read), read.channels
        if call.how == "rotation":
            angles = tuple(map(argument, node.args[1:]))
            return _rotation(state, node, call, value, channels, angles)
        if operand.arrangement is not None and call.how != "pointwise":
            value = spread(state.new, value, operand.arrangement, len(channels))
            if operand.repeats > 1:
                again = (value, operand.repeats, operand.arrangement.head)
                value = state.new.call_method("repeat_interleave", again)
        values[number] = value
    result = write_call(state.new, node, call, values, argument)
    state.computed.add(result)
    if call.tensor is not None and call.arrangement is not None:
        if call.how == "pointwise":
            state.joined[call.tensor] = result
            return spread(state.new, result, call.arrangement, len(tensors[call.tensor]))
        state.joined[call.tensor] = join(state.new, result, call.arrangement)
        if repeating is not None:
            assert isinstance(repeating, ir.Select)
            _take_repeated(state, repeating, call.arrangement.heads)
    return result


def _emit_joined(
    state: State, node: fx.Node, call: HeadCall, operations: Sequence[ir.Operation]
) -> fx.Node | None:
    """The channels that are left of several parts of each head, one behind the other."""
    tensors, new = state.solution.tensors, state.new
    op = next(op for op in operations if isinstance(op, ir.Concat))
    assert op.positions is not None
    assert call.tensor is not None
    assert call.arrangement is not None
    if call.tensor not in tensors:
        return None
    for cut in operations:
        if isinstance(cut, ir.Select) and cut.outputs[0] in tensors:
            state.joined[cut.outputs[0]] = read_operand(state, node, cut.inputs[0], cut.name, 0)
    heads, result = call.arrangement.heads, tensors[call.tensor]
    by_head: list[list[int]] = [[] for _ in range(heads)]
    start, parts = 0, []
    for name in op.inputs:
        left, count = tensors.get(name, ()), len(state.graph.tensors[name].channels)
        for number, entry in enumerate(left):
            by_head[number * heads // len(left)].append(start + entry)
        start += count
        if left:
            parts.append((name, len(left)))
    even = all(count % heads == 0 for _, count in parts)
    if not even or [op.positions[e] for e in result] != [e for own in by_head for e in own]:
        whole = emit_concat(state, node, op)
        state.joined[call.tensor] = whole
        return spread(new, whole, call.arrangement, len(result))
    values = [
        spread(new, state.node_of(node, name), call.arrangement, count) for name, count in parts
    ]
    if len(values) == 1:
        state.joined[call.tensor] = state.node_of(node, parts[0][0])
        return values[0]
    channel = call.arrangement.order.index(call.arrangement.axis + 1)
    together = new.create_node(
        "call_function", torch.cat, (values,), {"dim": channel}, name=node.name
    )
    state.computed.add(together)
    state.joined[call.tensor] = join(new, together, call.arrangement)
    return together


def _read(state: State, op: str, operand: int, tensor: str) -> Sequence[int]:
    """The entries of a tensor that an operation reads."""
    read = state.selects.get((op, operand))
    return state.solution.tensors[tensor] if read is None else read.channels


def _taken(
    state: State, value: fx.Node, tensor: str, channels: Sequence[int], name: str
) -> fx.Node:
    """Those channels of a tensor, for which ``value`` stands, in that sequence."""
    place = {entry: i for i, entry in enumerate(state.solution.tensors[tensor])}
    indices = [place[entry] for entry in channels]
    return _gathered(state, value, indices, len(place), state.graph.tensors[tensor].axis, name)


def _gathered(
    state: State, value: fx.Node, indices: list[int], size: int, axis: int | None, name: str
) -> fx.Node:
    """The elements ``indices`` of ``size`` along an axis."""
    assert axis is not None
    if indices == list(range(size)):
        return value
    name = state.unused(f"gather_{name}")
    state.root.add_module(name, Gather(indices, axis, state.device))
    return state.new.call_module(name, (value,))


def _rotation(
    state: State,
    node: fx.Node,
    call: HeadCall,
    value: fx.Node,
    channels: Sequence[int],
    angles: tuple[fx.Node, fx.Node],
) -> fx.Node:
    """Rotate the pairs of channels that are left, by the angles that were theirs.

    Args:
        state: the pruned program.
        node: the rotation in the captured one.
        call: the same.
        value: what is rotated, head after head.
        channels: which of the original's channels that has.
        angles: the cosines and sines of all of them.
    """
    assert call.tensor is not None
    arrangement, new = call.arrangement, state.new
    tensor = state.graph.tensors[call.tensor]
    heads = 1 if arrangement is None else arrangement.heads
    size = len(tensor.channels) // heads
    alike = _same_pairs(channels, size, heads)
    if alike is not None:
        turned = value
        if arrangement is not None:
            turned = spread(new, value, arrangement, len(channels))
        if len(alike) < size:
            makers = [arg for arg in node.args[1:] if isinstance(arg, fx.Node)]
            cos, sin = (
                taken_angles(state, maker, angle, alike)
                for maker, angle in zip(makers, angles, strict=True)
            )
            angles = cos, sin
        result = new.call_function(rotate, (turned, *angles))
        state.computed.add(result)
        if arrangement is not None:
            state.joined[call.tensor] = join(new, result, arrangement)
        return _repeated(new, result, call)
    axis = tensor.axis
    place = {entry: i for i, entry in enumerate(channels)}
    others = [entry - entry % size + (entry % size + size // 2) % size for entry in channels]
    partners = [place[entry] for entry in others]
    partner = _gathered(state, value, partners, len(place), axis, f"{call.tensor}_partners")
    own = [entry % size for entry in channels]
    cos, sin = (
        _gathered(
            state,
            angle if arrangement is None else join(new, angle, arrangement),
            own,
            size,
            axis,
            f"{call.tensor}_angles",
        )
        for angle in (angles[0], new.call_function(signed, (angles[1],)))
    )
    straight = new.call_function(operator.mul, (value, cos))
    crossed = new.call_function(operator.mul, (partner, sin))
    result = new.call_function(operator.add, (straight, crossed))
    state.computed.add(result)
    if arrangement is None:
        return result
    state.joined[call.tensor] = result
    return _repeated(new, spread(new, result, arrangement, len(channels)), call)


def _repeated(graph: fx.Graph, value: fx.Node, call: HeadCall) -> fx.Node:
    """The heads of a rotation's result, each as often as it was in the original."""
    repeats = call.operands[0].repeats
    if repeats == 1:
        return value
    assert call.arrangement is not None
    return graph.call_method("repeat_interleave", (value, repeats, call.arrangement.head))


def _same_pairs(channels: Sequence[int], size: int, heads: int) -> tuple[int, ...] | None:
    """The channels that every head has, if they are the same ones, and half a head between pairs.

    Args:
        channels: those that are left, head after head.
        size: how many a head had.
        heads: how many heads there are.
    """
    left = len(channels) // heads
    own = [entry % size for entry in channels[:left]]
    alike = [head * size + channel for head in range(heads) for channel in own]
    first = own[: left // 2]
    paired = own == first + [channel + size // 2 for channel in first]
    return tuple(own) if paired and alike == list(channels) else None


def _take_repeated(state: State, op: ir.Select, heads: int) -> None:
    """Bring the channels of repeated heads into the sequence in which the solution has them.

    Args:
        state: the pruned program, in which all channels that are left lie head after head.
        op: what repeats the heads.
        heads: how many there are then.
    """
    (before,), (after,) = op.inputs, op.outputs
    size = len(op.positions) // heads
    place: dict[int, int] = {}
    for start in range(0, len(op.positions), size):
        own = {entry: start + i for i, entry in enumerate(op.positions[start : start + size])}
        for entry in state.solution.tensors[before]:
            if entry in own:
                place[own[entry]] = len(place)
    indices = [place[entry] for entry in state.solution.tensors[after]]
    axis = state.graph.tensors[after].axis
    value = state.joined[after]
    state.joined[after] = _gathered(state, value, indices, len(place), axis, op.name)


def _flattens(op: ir.Operation) -> bool:
    """Tell whether an operation makes one axis of those behind that of the channels."""
    return isinstance(op, ir.ChannelWise) and op.name.endswith(f".{FLAT}")
