"""Sites: the layers of a graph that are fitted, and the channels of theirs that may go."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from upscale_opt.ir.graph import (
    Attention,
    ChannelGraph,
    ChannelWise,
    Concat,
    Layer,
    Operation,
    Select,
    users_of,
)


@dataclass(frozen=True)
class Site:
    """The input side of a layer.

    An entry is one channel that the layer reads: one slice of the weight, or several behind the
    flattening of an image.

    Attributes:
        operation: the layer in the graph; the first of those that share the weight.
        weight: its weight.
        bias: its bias, if it has one.
        in_axis: the weight's axis that reads.
        out_axis: and the one that writes.
        groups: into how many groups the channels fall.
        parts: into how many parts the entries of a group fall, of each of which as many must go:
            attention heads.
        features: slices of an entry.
        channels: the channel id of every entry.
        free: whether each entry may go.
        calls: how many operations use the weight.
        centred: whether a constant added to the output can be made good: there is a bias, or batch
            norms behind.
    """

    operation: str
    weight: str
    bias: str | None
    in_axis: int
    out_axis: int
    groups: int
    parts: int
    features: int
    channels: tuple[int, ...]
    free: tuple[bool, ...]
    calls: int
    centred: bool

    @property
    def free_entries(self) -> list[int]:
        """The entries that may go."""
        return [entry for entry, free in enumerate(self.free) if free]

    def slices(self, entry: int) -> tuple[int, ...]:
        """The slices of the weight that belong to an entry."""
        return tuple(range(entry * self.features, (entry + 1) * self.features))


def sites_of(graph: ChannelGraph) -> list[Site]:
    """All layers with channels to read, in the order of execution, each weight once.

    Left out are weights that something else uses, too, or that layers use in different ways.
    """
    heads = _heads(graph)
    given = {name for op in graph.operations if op.kind == "input" for name in op.outputs}
    found = []
    for name, operations in users_of(graph).items():
        layers = [op for op in operations if isinstance(op, Layer) and op.weight == name]
        if len(layers) < len(operations) or not all(op.inputs for op in layers):
            continue
        first = layers[0]
        tensors = [graph.tensors[op.inputs[0]] for op in layers]
        alike = {
            (op.in_axis, op.out_axis, op.groups, op.bias, len(t.channels), t.features)
            for op, t in zip(layers, tensors, strict=True)
        }
        if len(alike) > 1:
            continue
        read = tensors[0]
        free = [
            all(
                graph.spaces[graph.space_of[t.channels[entry]]].fixed is None
                and op.inputs[0] not in given
                for op, t in zip(layers, tensors, strict=True)
            )
            for entry in range(len(read.channels))
        ]
        parts = 1
        if any(id in heads for t in tensors for id in t.channels):
            parts = _parts(heads, read.channels) if len(layers) == 1 else 0
        if (parts != 1 or first.groups > 1) and not (parts and all(free)):
            free = [False] * len(free)
        found.append(
            Site(
                operation=first.name,
                weight=name,
                bias=first.bias,
                in_axis=first.in_axis,
                out_axis=first.out_axis,
                groups=first.groups,
                parts=max(parts, 1),
                features=read.features,
                channels=graph.sequence(first.inputs[0]),
                free=tuple(free),
                calls=len(layers),
                centred=first.bias is not None
                or all(_is_normed(graph, op.outputs[0]) for op in layers),
            )
        )
    return found


def _heads(graph: ChannelGraph) -> dict[int, tuple[str, int]]:
    """For channels that attention averages over tokens: which attention, and which head."""
    found = {}
    for op in graph.operations:
        if isinstance(op, Attention):
            for name in op.values:
                channels = graph.tensors[name].channels
                size = len(channels) // op.heads
                for place, channel in enumerate(channels):
                    found[channel] = (op.name, place // size)
    return found


def _parts(heads: dict[int, tuple[str, int]], channels: tuple[int, ...]) -> int:
    """The number of heads, if the channels are those of one attention in sequence; else 0."""
    own = [heads.get(channel) for channel in channels]
    count = len(set(own))
    if None in own or len({pair[0] for pair in own if pair}) > 1 or len(own) % count:
        return 0
    size = len(own) // count
    in_sequence = all(own[at] == own[at - at % size] for at in range(len(own)))
    return count if in_sequence and len(set(channels)) == len(channels) else 0


def _is_normed(graph: ChannelGraph, tensor: str, depth: int = 8) -> bool:
    """Tell whether all that reads a tensor subtracts a mean from it that can be set."""
    users = list(_users(graph, tensor))
    if not users or not depth:
        return False
    for op in users:
        if isinstance(op, ChannelWise) and any(use.role == "mean" for use in op.parameters):
            continue
        through = isinstance(op, (Concat, Select))
        if not through or not all(_is_normed(graph, name, depth - 1) for name in op.outputs):
            return False
    return True


def _users(graph: ChannelGraph, tensor: str) -> Iterator[Operation]:
    for op in graph.operations:
        if tensor in (*op.inputs, *op.whole):
            yield op


@dataclass(frozen=True)
class Filters:
    """A depthwise convolution.

    Attributes:
        weight: its filters, one per channel.
        bias: its bias, if it has one.
        centred: whether batch norms behind take out constants.
    """

    weight: str
    bias: str | None
    centred: bool


def filters_of(graph: ChannelGraph) -> dict[str, Filters]:
    """The depthwise convolutions by weight, of those that are used once."""
    found: dict[str, Filters] = {}
    users = users_of(graph)
    for op in graph.operations:
        if not isinstance(op, ChannelWise):
            continue
        scales = [u.name for u in op.parameters if u.role == "scale"]
        shifts = [u.name for u in op.parameters if u.role == "shift"]
        if len(scales) == 1 and len(graph.parameters[scales[0]]) > 2 and len(shifts) < 2:
            bias = shifts[0] if shifts else None
            found[scales[0]] = Filters(scales[0], bias, _is_normed(graph, op.outputs[0]))
    return {name: own for name, own in found.items() if len(users[name]) == 1}
