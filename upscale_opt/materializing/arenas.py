"""Arenas in a pruned program: buffers that concatenations share."""

from __future__ import annotations

from typing import Any

from torch import fx

from upscale_opt.ir import graph as ir
from upscale_opt.ir.solution import Read
from upscale_opt.materializing.state import State
from upscale_opt.runtime.arena import ArenaRead, ArenaWrite, Run, joined_runs


def write_arena(state: State, node: fx.Node, op: ir.Concat) -> fx.Node:
    """Write those operands of ``op`` that are not written yet; then all of its result."""
    buffer = state.buffers[op.outputs[0]]
    fresh: list[fx.Node] = []
    runs: list[list[Run]] = []
    for name in op.inputs:
        known = name in buffer.tokens or any(name == earlier for earlier, _ in buffer.written)
        if known or name not in state.solution.tensors:
            continue
        value = state.node_of(node, name)
        channels = state.graph.tensors[name].channels
        layout = [channels[entry] for entry in state.solution.tensors[name]]
        for i, channel in enumerate(layout):
            buffer.sources[channel] = len(buffer.written), i
        buffer.written.append((name, value))
        lengths = [length for _, _, length in joined_runs([(0, buffer.place[c]) for c in layout])]
        firsts = [sum(lengths[:k]) for k in range(len(lengths))]
        starts = [buffer.place[layout[first]] for first in firsts]
        runs.append(list(zip(firsts, starts, lengths, strict=True)))
        fresh.append(value)
    if fresh:
        axis = state.graph.tensors[op.outputs[0]].axis
        assert axis is not None
        name = state.unused(f"arena_{node.name}")
        state.root.add_module(name, ArenaWrite(runs, len(buffer.place), axis, state.in_place))
        earlier: dict[str, Any] = {} if buffer.last is None else {"earlier": buffer.last}
        buffer.last = state.new.call_module(name, tuple(fresh), earlier)
    assert buffer.last is not None
    buffer.tokens[op.outputs[0]] = buffer.last
    return read_arena(state, op.outputs[0], None)


def read_arena(state: State, tensor: str, read: Read | None) -> fx.Node:
    """The channels that ``read`` takes of a concatenation in an arena, or all of them."""
    buffer = state.buffers[tensor]
    structure = state.graph.tensors[tensor]
    entries = state.solution.tensors[tensor] if read is None else read.channels
    channels = [structure.channels[entry] for entry in entries]
    assert structure.axis is not None
    module = ArenaRead(
        [buffer.place[channel] for channel in channels],
        [buffer.sources[channel] for channel in channels],
        [len(state.solution.tensors[name]) for name, _ in buffer.written],
        structure.axis,
        state.device,
        view=read is None or read.plan != "gather",
    )
    name = state.unused(f"read_{tensor}" if read is None else f"read_{read.op}_{read.operand}")
    state.root.add_module(name, module)
    return state.new.call_module(name, (buffer.tokens[tensor],))
