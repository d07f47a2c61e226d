"""Concatenations in a pruned program: one after the other, interleaved, or in an arena."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import fx, nn

from upscale_opt.ir import graph as ir
from upscale_opt.ir.solution import Arena, Read, Solution
from upscale_opt.runtime.arena import ArenaRead, ArenaWrite, Run


class Host(Protocol):
    """What writes the rest of the program."""

    graph: ir.ChannelGraph
    solution: Solution
    selects: dict[tuple[str, int], Read]
    new: fx.Graph
    root: nn.Module
    device: torch.device
    gather_views: bool

    def node_of(self, reader: fx.Node, name: str) -> Any:
        """The new program's value of a tensor that ``reader`` reads."""

    def select(self, value: fx.Node, read: Read) -> fx.Node:
        """What a read takes of a tensor."""

    def unused(self, name: str) -> str:
        """A name for a module of ours."""


class Concats:
    """Writes concatenations.

    Args:
        host: the program that they belong to.
        in_place: whether arenas may use buffers.
    """

    def __init__(self, host: Host, in_place: bool) -> None:
        self._host = host
        self._arenas: dict[str, _Arena] = {}
        for arena in host.solution.arenas:
            shared = _Arena(arena, host, in_place)
            self._arenas.update(dict.fromkeys(arena.tensors, shared))

    def holds(self, tensor: str) -> bool:
        """Whether a tensor is a part of an arena."""
        return tensor in self._arenas

    def read(self, read: Read) -> fx.Node:
        """The channels that a read takes of a tensor in an arena."""
        return self._arenas[read.tensor].read(read.tensor, read)

    def emit(self, node: fx.Node, op: ir.Concat) -> fx.Node:
        """The call that joins the operands of ``op``, in place of ``node``."""
        host = self._host
        if op.outputs[0] in self._arenas:
            return self._arenas[op.outputs[0]].write(node, op)
        if op.positions is not None:
            return self._interleaved(node, op, op.positions)
        kept = set(host.solution.tensors[op.outputs[0]])
        parts: list[fx.Node] = []
        start = 0
        for operand, name in enumerate(op.inputs):
            size = len(host.graph.tensors[name].channels)
            if kept.intersection(range(start, start + size)):
                value = host.node_of(node, name)
                read = host.selects.get((op.name, operand))
                parts.append(value if read is None else host.select(value, read))
            start += size
        return self._join(node, op, parts)

    def _interleaved(self, node: fx.Node, op: ir.Concat, positions: Sequence[int]) -> fx.Node:
        """A concatenation that takes runs of its inputs in another sequence."""
        host = self._host
        axis = host.graph.tensors[op.outputs[0]].axis
        origin: list[tuple[int, int]] = []  # where each entry of the joined inputs is stored
        for operand, name in enumerate(op.inputs):
            place = {entry: i for i, entry in enumerate(host.solution.tensors.get(name, ()))}
            count = len(host.graph.tensors[name].channels)
            origin += [(operand, place.get(entry, -1)) for entry in range(count)]
        taken = [origin[positions[entry]] for entry in host.solution.tensors[op.outputs[0]]]
        parts: list[fx.Node] = []
        for operand, first, length in _runs(taken):
            name = op.inputs[operand]
            value = host.node_of(node, name)
            if length < len(host.solution.tensors[name]):
                value = host.new.call_function(torch.narrow, (value, axis, first, length))
            parts.append(value)
        return self._join(node, op, parts)

    def _join(self, node: fx.Node, op: ir.Concat, parts: list[fx.Node]) -> fx.Node:
        if len(parts) == 1:
            return parts[0]
        axis = self._host.graph.tensors[op.outputs[0]].axis
        return self._host.new.create_node(
            "call_function", torch.cat, (parts,), {"dim": axis}, name=node.name
        )


class _Arena:
    """One buffer, while the program that fills it is being written."""

    def __init__(self, arena: Arena, host: Host, in_place: bool) -> None:
        self.host = host
        self.in_place = in_place
        self.place = {channel: i for i, channel in enumerate(arena.channels)}
        self.size = len(arena.channels)
        self.written: list[tuple[str, fx.Node]] = []
        self.sources: dict[int, tuple[int, int]] = {}  # of channels: which tensor, which place
        self.tokens: dict[str, fx.Node] = {}  # the arena once a concatenation is in it
        self.last: fx.Node | None = None

    def write(self, node: fx.Node, op: ir.Concat) -> fx.Node:
        """Write those operands of ``op`` that are not written yet; then all of its result."""
        host = self.host
        fresh: list[fx.Node] = []
        runs: list[list[Run]] = []
        for name in op.inputs:
            known = name in self.tokens or any(name == earlier for earlier, _ in self.written)
            if known or name not in host.solution.tensors:
                continue
            value = host.node_of(node, name)
            channels = host.graph.tensors[name].channels
            layout = [channels[entry] for entry in host.solution.tensors[name]]
            for i, channel in enumerate(layout):
                self.sources[channel] = len(self.written), i
            self.written.append((name, value))
            places = [(0, self.place[channel]) for channel in layout]
            lengths = [length for _, _, length in _runs(places)]
            firsts = [sum(lengths[:k]) for k in range(len(lengths))]
            starts = [self.place[layout[first]] for first in firsts]
            runs.append(list(zip(firsts, starts, lengths, strict=True)))
            fresh.append(value)
        if fresh:
            axis = host.graph.tensors[op.outputs[0]].axis
            assert axis is not None
            name = host.unused(f"arena_{node.name}")
            host.root.add_module(name, ArenaWrite(runs, self.size, axis, self.in_place))
            earlier: dict[str, Any] = {} if self.last is None else {"earlier": self.last}
            self.last = host.new.call_module(name, tuple(fresh), earlier)
        assert self.last is not None
        self.tokens[op.outputs[0]] = self.last
        return self.read(op.outputs[0], None)

    def read(self, tensor: str, read: Read | None) -> fx.Node:
        """Some channels of a concatenation, or all of it."""
        host = self.host
        structure = host.graph.tensors[tensor]
        entries = host.solution.tensors[tensor] if read is None else read.channels
        channels = [structure.channels[entry] for entry in entries]
        assert structure.axis is not None
        module = ArenaRead(
            [self.place[channel] for channel in channels],
            [self.sources[channel] for channel in channels],
            [len(host.solution.tensors[name]) for name, _ in self.written],
            structure.axis,
            host.device,
            view=read is None or (read.plan != "gather" and not host.gather_views),
        )
        name = f"read_{tensor}" if read is None else f"read_{read.op}_{read.operand}"
        name = host.unused(name.replace(".", "_"))
        host.root.add_module(name, module)
        return host.new.call_module(name, (self.tokens[tensor],))


def _runs(taken: Sequence[tuple[int, int]]) -> list[Run]:
    """Adjacent places, as (which tensor, first place, how many)."""
    runs: list[Run] = []
    for operand, place in taken:
        if runs and runs[-1][0] == operand and sum(runs[-1][1:]) == place:
            runs[-1] = operand, runs[-1][1], runs[-1][2] + 1
        else:
            runs.append((operand, place, 1))
    return runs
