"""Reasons why tensors store channels: the operation that each channel is there for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from upscale_opt.ir.graph import (
    Attention,
    ChannelGraph,
    ChannelWise,
    Elementwise,
    Layer,
    Opaque,
    Operation,
)
from upscale_opt.ir.masks import Masks
from upscale_opt.ir.solution import Solution
from upscale_opt.solver.network.evening import linked_tensors
from upscale_opt.solver.network.segments import find_segments
from upscale_opt.solver.network.sets import ChannelSets, Ids, kept_columns

Cause = Literal[
    "alive",
    "bias",
    "constant",
    "features",
    "groups",
    "heads",
    "input",
    "one",
    "opaque",
    "output",
    "read",
    "shared",
    "stored",
    "sum",
    "symmetric",
    "twice",
    "whole",
    "widths",
    "window",
]

SENTENCES: dict[Cause, str] = {
    "alive": "the channel itself is not zero, and {op} needs it",
    "bias": "its bias makes it a constant, which {op} needs",
    "constant": "{op} makes it a constant",
    "features": "other elements of the same channel are not zero",
    "groups": "{op} keeps equally many channels of every group",
    "heads": "{op} keeps equally many channels of every head",
    "input": "the input {op} has it, between others that are needed",
    "one": "{op} needs one channel at least",
    "opaque": "{op} takes every channel as it is",
    "output": "{op} returns it",
    "read": "{op} reads it",
    "shared": "{op} shares its parameters with others that need it",
    "stored": "{op} stores it between others",
    "sum": "{op} adds it to what is not zero there",
    "symmetric": "{op} needs every channel, zero or not",
    "twice": "{op} reads the same channel elsewhere, too",
    "whole": "{op} reads what has no channels",
    "widths": "{op} fills up the widths in which the runtime computes",
    "window": "{op} reads it with those around it, in one piece",
}
"""Every cause in words."""


@dataclass(frozen=True)
class Why:
    """The reason why a channel is there.

    Attributes:
        cause: a key of :data:`SENTENCES`.
        op: the operation responsible.
        detail: more about it, such as why the operation is opaque.
    """

    cause: Cause
    op: str
    detail: str = ""


Whys = dict[str, dict[int, Why]]
"""For every tensor stored, for every channel in it, why."""


def why_stored(graph: ChannelGraph, masks: Masks, solution: Solution) -> tuple[ChannelSets, Whys]:
    """Follow every stored channel to the first operation that wants it.

    Operations that merely pass a channel on want it for those behind them. What a tensor stores
    without need, because another one of its segment needs it, is there for the latter's reason.

    Args:
        graph: the channel graph.
        masks: the masks that were solved.
        solution: the solution.

    Returns:
        The channel sets as well, which say what the masks leave.
    """
    sets, _ = find_segments(graph, masks, solution.selection)
    return sets, _Follower(graph, masks, solution, sets).follow()


class _Follower:
    def __init__(
        self, graph: ChannelGraph, masks: Masks, solution: Solution, sets: ChannelSets
    ) -> None:
        self.graph = graph
        self.sets = sets
        self.columns = kept_columns(graph, masks)
        self.linked = linked_tensors(graph)
        self.stored = {
            name: Ids(graph.tensors[name].channels[entry] for entry in entries)
            for name, entries in solution.tensors.items()
        }
        self.whys: Whys = {name: {} for name in self.stored}

    def follow(self) -> Whys:
        live = [op for op in self.graph.operations if op.name in self.sets.live]
        for op in reversed(live):
            self._written(op)
            self._read(op)
        in_place = [op for op in live if op.kind in _IN_PLACE and op.outputs[0] in self.whys]
        while any([*map(self._spread, reversed(in_place)), *map(self._spread, in_place)]):
            pass
        for op in live:
            for name in op.outputs:
                self._explain(name, self.stored.get(name, Ids()), Why("stored", op.name))
        return self.whys

    def _explain(self, name: str, channels: Ids, why: Why) -> None:
        """``why`` for those of the channels that have no reason yet."""
        known = self.whys.get(name, {})
        for channel in channels.difference(known):
            known[channel] = why

    # What is needed.

    def _written(self, op: Operation) -> None:
        """Find out what an operation writes although nothing reads it."""
        for name in op.outputs:
            needed = self.sets.needed.get(name, Ids()) & self.stored.get(name, Ids())
            if isinstance(op, Opaque):
                self._explain(name, needed, Why("opaque", op.name, op.reason))
            elif op.kind == "input":
                self._explain(name, needed, Why("input", op.name))
            elif op.kind == "symmetric":
                self._explain(name, needed, Why("symmetric", op.name))
            elif isinstance(op, Attention):
                self._explain(name, needed, Why("heads", op.name))
            elif isinstance(op, Layer) and op.groups > 1:
                self._explain(name, needed, Why("groups", op.name))
            elif name in self.linked:
                self._explain(name, needed, Why("shared", op.name))

    def _read(self, op: Operation) -> None:
        for name in op.whole:
            reason = op.reason if isinstance(op, Opaque) else ""
            if name in self.whys:
                self.whys[name] = dict.fromkeys(self.stored[name], Why("opaque", op.name, reason))
        for operand, name in enumerate(op.inputs):
            wants = self.sets.wants.get((op.name, operand), Ids())
            if name in self.whys:  # the first reader has the last word
                self.whys[name].update(self._wanted(op, operand, wants & self.stored[name]))

    def _wanted(self, op: Operation, operand: int, wants: Ids) -> Iterator[tuple[int, Why]]:
        """Find out why ``op`` wants channels of one of its inputs."""
        name = op.inputs[operand]
        defined = self.sets.defined[name]
        if isinstance(op, Layer):
            read = self.columns[op.name] & defined
            linked = op.outputs[0] in self.linked
            other = Why("groups" if op.groups > 1 else "shared" if linked else "one", op.name)
            yield from ((c, Why("read", op.name) if c in read else other) for c in wants)
        elif isinstance(op, Attention):
            behind = self.whys.get(op.outputs[0], {}) if name in op.values else {}
            yield from ((c, behind.get(c, Why("heads", op.name))) for c in wants)
        elif isinstance(op, Opaque):
            yield from dict.fromkeys(wants, Why("opaque", op.name, op.reason)).items()
        elif op.kind == "output":
            yield from dict.fromkeys(wants, Why("output", op.name)).items()
        elif op.kind == "symmetric":
            yield from dict.fromkeys(wants, Why("symmetric", op.name)).items()
        else:
            result = op.outputs[0]
            renamed = self.graph.renamed.get((op.name, operand))
            if renamed is not None:
                behind = self.whys.get(result, {})
                pairs = ((read, written) for read, written in renamed.items() if read in wants)
                yield from ((read, behind[written]) for read, written in pairs if written in behind)
                return
            made = self.sets.defined.get(result, Ids()) - defined
            for channel in wants:
                if channel in made:
                    yield channel, self._made(op, channel)
                elif channel in self.whys.get(result, {}):
                    yield channel, self.whys[result][channel]

    def _made(self, op: Operation, channel: int) -> Why:
        """Say why ``op`` wants a channel that is zero in an operand, but not in its result."""
        if isinstance(op, ChannelWise):
            shifted = "its shift is not zero" if op.keeps_zero else "it does not keep zeros"
            return Why("constant", op.name, shifted)
        if isinstance(op, Elementwise) and op.zero_if == "never":
            return Why("constant", op.name, "it does not keep zeros")
        return self._summed(op, channel)

    def _summed(self, op: Operation, channel: int) -> Why:
        fixed = self.graph.spaces[self.graph.space_of[channel]].fixed
        return Why("sum", op.name, f"fixed: {fixed}" if fixed else "")

    # What is stored beyond that.

    def _spread(self, op: Operation) -> bool:
        """Carry reasons from a tensor to those that store the same channels; whether any was."""
        result = op.outputs[0]
        known = self.whys[result]
        before = len(known) + sum(len(self.whys.get(name, ())) for name in op.inputs)
        for name in op.inputs:
            own = self.whys.get(name, {})
            shared = self.stored.get(name, Ids()) & self.stored[result]
            known.update({c: own[c] for c in shared if c not in known and c in own})
        for name in op.inputs:
            own = self.whys.get(name, {})
            shared = self.stored.get(name, Ids()) & self.stored[result]
            for channel in shared.difference(own):
                if channel in known:
                    own[channel] = self._passed(op, name, channel)
        return len(known) + sum(len(self.whys.get(name, ())) for name in op.inputs) > before

    def _passed(self, op: Operation, name: str, channel: int) -> Why:
        """Say why an operand stores a channel that the result stores."""
        others = (self.sets.defined[other] for other in op.inputs if other != name)
        if isinstance(op, Elementwise) and any(channel in defined for defined in others):
            return self._summed(op, channel)
        return self.whys[op.outputs[0]][channel]


_IN_PLACE = frozenset({"channelwise", "symmetric", "elementwise", "concat", "select"})
