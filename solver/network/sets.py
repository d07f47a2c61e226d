"""Channel sets per tensor: what can be non-zero (defined) and what must be there (needed).

Two dataflow passes over the graph, both exact on sets of channel ids. Needed means needed *in
memory*: a channel that is zero but feeds a sigmoid is needed, because its result is not zero.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from upscale_opt.ir.graph import (
    Attention,
    ChannelGraph,
    ChannelWise,
    Concat,
    Constant,
    Elementwise,
    Layer,
    Operation,
    Select,
    Symmetric,
    Tensor,
    slices_of,
)
from upscale_opt.ir.masks import Masks

Ids = frozenset[int]
Edge = tuple[str, int]
"""An operation's name and the number of one of its ``inputs``."""


@dataclass(frozen=True)
class ChannelSets:
    """The channels that the masks leave of every tensor and every edge.

    Attributes:
        defined: for each structured tensor, the channels that can be non-zero.
        needed: for each structured tensor, the channels that must be stored.
        wants: for each edge, the channels that the operation needs there; empty if dead.
        live: the operations whose results matter.
    """

    defined: dict[str, Ids]
    needed: dict[str, Ids]
    wants: dict[Edge, Ids]
    live: frozenset[str]


def channel_sets(
    graph: ChannelGraph,
    masks: Masks,
    *,
    keep_one: bool = True,
    extra: Mapping[Edge, Ids] | None = None,
    floors: Mapping[str, Ids] | None = None,
) -> ChannelSets:
    """Run both passes.

    Args:
        graph: the channel graph.
        masks: masks that fit it (:meth:`Masks.check`).
        keep_one: a layer that needs no channel at all still gets one, as PyTorch wants; the groups
            of a grouped convolution get equally many; and a sum gets every channel of its result
            from some operand, though all of them be zero there.
        extra: channels that edges shall deliver although nothing needs them.
        floors: channels that tensors shall store although nothing needs them.
    """
    columns = kept_columns(graph, masks)
    defined = _defined(graph, masks, columns)
    pairs = _pairs(graph, masks, defined)
    needed, wants, live = _needed(
        graph, defined, pairs, columns, keep_one, extra or {}, floors or {}
    )
    return ChannelSets(defined, needed, wants, live)


def kept_columns(graph: ChannelGraph, masks: Masks) -> dict[str, Ids]:
    """For every layer, the channels that its weight reads."""
    return {
        op.name: _kept(op.weight, op.in_axis, graph.tensors[op.inputs[0]], graph, masks)
        for op in graph.operations
        if isinstance(op, Layer) and op.inputs
    }


def _kept(parameter: str, axis: int, tensor: Tensor, graph: ChannelGraph, masks: Masks) -> Ids:
    """The channels of ``tensor`` in which slices of ``parameter`` along ``axis`` are kept."""
    if parameter not in masks.kept or axis not in masks.kept[parameter]:
        return frozenset(tensor.channels)
    kept = masks.kept_on(parameter, axis, slices_of(graph, parameter, axis))
    entries = {index // tensor.features for index in kept} if tensor.features > 1 else kept
    return frozenset(map(tensor.channels.__getitem__, entries))


def _pairs(graph: ChannelGraph, masks: Masks, defined: dict[str, Ids]) -> dict[str, Ids]:
    """For attention, the channels in which neither queries nor keys are zero."""
    entries = _Entries(graph, masks, defined)
    return {
        op.name: Ids.intersection(*(entries.channels(name) for name in op.queries))
        for op in graph.operations
        if isinstance(op, Attention) and op.queries
    }


class _Entries:
    """The entries of tensors that can be non-zero there.

    That is ``defined``; but queries and keys share their channels, and often the tensor in which
    a layer writes both. So where the tensor is cut out of a layer's result, the layer's rows say.
    """

    def __init__(self, graph: ChannelGraph, masks: Masks, defined: dict[str, Ids]) -> None:
        self._graph, self._masks, self._defined = graph, masks, defined
        self._makers = {name: op for op in graph.operations for name in op.outputs}
        self._known: dict[str, Ids] = {}

    def channels(self, name: str) -> Ids:
        """The channels of a tensor that have such an entry."""
        sequence = self._graph.tensors[name].channels
        return self._defined[name] & {sequence[entry] for entry in self._of(name)}

    def _of(self, name: str) -> Ids:
        if name not in self._known:
            self._known[name] = self._found(name)
        return self._known[name]

    def _found(self, name: str) -> Ids:
        op, tensor = self._makers[name], self._graph.tensors[name]
        if isinstance(op, Select):
            fed = self._of(op.inputs[0])
            return Ids(i for i, entry in enumerate(op.positions) if entry in fed)
        if isinstance(op, ChannelWise) and op.keeps_zero and not op.parameters:
            return self._of(op.inputs[0])
        if isinstance(op, Elementwise) and op.zero_if != "never":
            first, *others = (self._of(source) for source in op.inputs)
            return first.union(*others) if op.zero_if == "all" else first.intersection(*others)
        if isinstance(op, Concat):
            joined: list[bool] = []
            for source in op.inputs:
                size = len(self._graph.tensors[source].channels)
                joined += map(self._of(source).__contains__, range(size))
            taken = range(len(joined)) if op.positions is None else op.positions
            return Ids(i for i, entry in enumerate(taken) if joined[entry])
        if isinstance(op, Layer) and op.groups == 1 and tensor.features == 1:
            rows = self._kept(op.weight, op.out_axis)
            return rows if op.bias is None else rows | self._kept(op.bias, 0)
        if isinstance(op, Constant) and op.axis is not None and tensor.features == 1:
            return self._kept(op.parameter, op.axis)
        own = self._defined[name]
        return Ids(i for i, channel in enumerate(tensor.channels) if channel in own)

    def _kept(self, parameter: str, axis: int) -> Ids:
        return Ids(self._masks.kept_on(parameter, axis, slices_of(self._graph, parameter, axis)))


def _defined(graph: ChannelGraph, masks: Masks, columns: dict[str, Ids]) -> dict[str, Ids]:
    defined: dict[str, Ids] = {}
    for op in graph.operations:
        for name in op.outputs:
            if graph.tensors[name].axis is not None:
                defined[name] = _defined_by(op, name, graph, masks, columns, defined)
    return defined


def _defined_by(
    op: Operation,
    name: str,
    graph: ChannelGraph,
    masks: Masks,
    columns: dict[str, Ids],
    defined: dict[str, Ids],
) -> Ids:
    tensor = graph.tensors[name]
    everything = frozenset(tensor.channels)
    inputs = [defined[name] for name in op.inputs] if op.kind != "opaque" else []
    if isinstance(op, Layer):
        biased = Ids() if op.bias is None else _kept(op.bias, 0, tensor, graph, masks)
        rows = _kept(op.weight, op.out_axis, tensor, graph, masks)
        if not op.inputs:
            return rows | biased
        read = columns[op.name] & inputs[0]
        if op.groups > 1:
            source = graph.tensors[op.inputs[0]].channels
            fed = [not read.isdisjoint(group) for group in in_groups(source, op.groups)]
            outputs = zip(in_groups(tensor.channels, op.groups), fed, strict=True)
            return Ids().union(*(rows & Ids(group) for group, some in outputs if some)) | biased
        return rows | biased if read else biased
    if isinstance(op, Constant):
        assert op.axis is not None
        return _kept(op.parameter, op.axis, tensor, graph, masks)
    if isinstance(op, Attention):
        return inputs[-1] if op.values else everything
    if isinstance(op, Symmetric):
        made = [
            _kept(use.name, use.axis, tensor, graph, masks)
            for use in op.parameters
            if use.role in ("scale", "shift")
        ]
        has_scale = any(use.role == "scale" for use in op.parameters) and not op.reduces
        return Ids().union(*made) if has_scale else everything
    if isinstance(op, ChannelWise):
        if not op.keeps_zero:
            return everything
        scaled, shifted, centred = everything, Ids(), Ids()
        for use in op.parameters:
            kept = _kept(use.name, use.axis, tensor, graph, masks)
            if use.role == "scale":
                scaled &= kept
            elif use.role == "shift":
                shifted |= kept
            elif use.role == "mean":
                centred |= kept
        return ((inputs[0] | centred) & scaled) | shifted
    if isinstance(op, Elementwise):
        if op.zero_if == "never":
            return everything
        first, *others = inputs
        return first.union(*others) if op.zero_if == "all" else first.intersection(*others)
    if isinstance(op, Concat):
        return Ids().union(*(graph.given(op, i, ids) for i, ids in enumerate(inputs)))
    if isinstance(op, Select):
        return inputs[0] & everything
    return everything


def _needed(
    graph: ChannelGraph,
    defined: dict[str, Ids],
    pairs: dict[str, Ids],
    columns: dict[str, Ids],
    keep_one: bool,
    extra: Mapping[Edge, Ids],
    floors: Mapping[str, Ids],
) -> tuple[dict[str, Ids], dict[Edge, Ids], frozenset[str]]:
    needed: dict[str, set[int]] = {name: set() for name in defined}
    wants: dict[Edge, Ids] = {}
    live: set[str] = set()
    whole: set[str] = set()  # tensors read as they are
    any_channel: dict[str, list[Edge]] = {}  # edges for which any one channel will do
    measured: set[str] = set()  # tensors whose sizes are used, for which it will do, too

    def want(op: Operation, operand: int, ids: Iterable[int]) -> None:
        wants[op.name, operand] = frozenset(ids)
        if op.inputs[operand] in needed:
            needed[op.inputs[operand]] |= wants[op.name, operand]
        else:
            whole.add(op.inputs[operand])

    for op in reversed(graph.operations):
        is_read = any(
            needed.get(name) or name in any_channel or name in whole or name in measured
            for name in op.outputs
        )
        if op.outputs and not is_read and op.kind != "input":
            continue
        for name in op.outputs:
            for edge in any_channel.get(name, ()):
                if not needed[name]:
                    needed[name].add(min(graph.tensors[name].channels))
                wants[edge] = frozenset({min(needed[name])})
            if keep_one and name in measured and not needed.get(name, True):
                needed[name].add(min(graph.tensors[name].channels))
            mixed = isinstance(op, Attention) and not op.values
            if (mixed or op.kind in ("input", "opaque", "symmetric")) and name in needed:
                needed[name] |= set(graph.tensors[name].channels)
            elif name in floors:
                needed[name] |= floors[name]
        out = op.outputs[0] if op.outputs else None
        result = frozenset(needed[out]) if out in needed else Ids()
        live.add(op.name)
        whole.update(op.whole)
        measured.update(op.sizes)
        for name in op.whole:
            if name in needed:
                needed[name] |= set(graph.tensors[name].channels)
        if isinstance(op, Layer):
            if op.inputs:
                ids = columns[op.name] & defined[op.inputs[0]]
                ids |= extra.get((op.name, 0), Ids())
                if op.groups > 1:
                    ids = _grouped_wants(op, graph, ids, result, keep_one)
                if ids:
                    want(op, 0, ids)
                elif keep_one:
                    any_channel.setdefault(op.inputs[0], []).append((op.name, 0))
        elif isinstance(op, Attention):
            for operand, name in enumerate(op.inputs):
                ids = pairs[op.name] if name in op.queries[operand : operand + 1] else result
                want(op, operand, _levelled(op, graph, name, ids) if keep_one else ids)
        elif isinstance(op, Elementwise) and op.additive:
            for operand, ids in enumerate(_summands(op, result, defined, keep_one)):
                want(op, operand, ids)
        elif isinstance(op, Concat):
            for operand in range(len(op.inputs)):
                ids = graph.taken(op, operand, result)
                want(op, operand, ids | extra.get((op.name, operand), Ids()))
        else:
            for operand, name in enumerate(op.inputs):
                everything = op.kind in ("opaque", "output", "symmetric")
                want(op, operand, graph.tensors[name].channels if everything else result)
    frozen = {name: frozenset(ids) for name, ids in needed.items()}
    return frozen, wants, frozenset(live)


def in_groups(channels: Sequence[int], groups: int) -> list[Sequence[int]]:
    """The channels of each group."""
    size = len(channels) // groups
    return [channels[at : at + size] for at in range(0, len(channels), size)]


def _grouped_wants(op: Layer, graph: ChannelGraph, ids: Ids, result: Ids, keep_one: bool) -> Ids:
    """A grouped convolution's needs of its input: as much for every group that writes anything.

    Args:
        op: the convolution.
        graph: its graph.
        ids: the channels that its weight reads.
        result: the channels of its output that are stored.
        keep_one: every such group gets something, and all get equally much.
    """
    groups = in_groups(graph.tensors[op.inputs[0]].channels, op.groups)
    written = in_groups(graph.tensors[op.outputs[0]].channels, op.groups)
    alive = [Ids(g) for g, out in zip(groups, written, strict=True) if not result.isdisjoint(out)]
    width = max((len(ids & own) for own in alive), default=0)
    return level(alive, ids, max(width, 1) if keep_one else 0)


def _levelled(op: Attention, graph: ChannelGraph, name: str, ids: Ids) -> Ids:
    """``ids``, and what is missing for all heads to have equally many, and some."""
    heads = [Ids(head) for head in in_groups(graph.tensors[name].channels, op.heads)]
    return level(heads, ids, max(1, *(len(ids & head) for head in heads)))


def level(groups: Iterable[Ids], ids: Ids, width: int) -> Ids:
    """Take ``ids`` of all ``groups``, and further channels of each until they are ``width``."""
    taken: set[int] = set()
    for group in groups:
        own = ids & group
        taken |= own
        taken.update(sorted(group - own)[: max(width - len(own), 0)])
    return Ids(taken)


def _summands(op: Elementwise, result: Ids, defined: dict[str, Ids], keep_one: bool) -> list[Ids]:
    """A sum's needs of each operand: where it can be non-zero; all of the rest of the first."""
    parts = [result & defined[name] for name in op.inputs]
    if keep_one:
        parts[0] |= result.difference(*parts)
    return parts
