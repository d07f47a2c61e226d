"""Coupled channels: which slices of which parameters go together, and masks that respect it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from upscale_opt.ir.graph import (
    Attention,
    ChannelGraph,
    ChannelWise,
    Constant,
    Layer,
    Opaque,
    Symmetric,
    slices_of,
)
from upscale_opt.ir.masks import Masks
from upscale_opt.shown import Shown
from upscale_opt.solver.network.sets import in_groups


@dataclass(frozen=True, repr=False)
class Member(Shown):
    """A parameter's part of a group.

    Attributes:
        parameter: its name.
        axis: its axis along which the group's channels lie.
        slices: for each of the group's channels, the slices along ``axis`` that belong to it.
    """

    parameter: str
    axis: int
    slices: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, repr=False)
class Group(Shown):
    """Channels that every tensor holds or lacks together: a coupled group.

    To remove one of the channels without copying anything, remove its slices from all members.
    Fang et al., *DepGraph: Towards Any Structural Pruning*, CVPR 2023, find such groups by the
    dependencies between layers; here they are the spaces of the channel graph.

    Attributes:
        channels: the channel ids.
        fixed: why none of them can be removed; ``None`` if they can.
        consumers: the weights that read them.
        producers: the weights that write them.
        biases: of the producers.
        norms: what scales, shifts or centres each of them: batch norms, layer scale, depthwise
            filters.
        constants: parameters that are tensors of these channels themselves.
    """

    channels: tuple[int, ...]
    fixed: str | None
    consumers: tuple[Member, ...] = ()
    producers: tuple[Member, ...] = ()
    biases: tuple[Member, ...] = ()
    norms: tuple[Member, ...] = ()
    constants: tuple[Member, ...] = ()

    @property
    def layers(self) -> tuple[str, ...]:
        """The weights of the coupled layers, each once."""
        return tuple(dict.fromkeys(m.parameter for m in (*self.producers, *self.consumers)))


def groups(graph: ChannelGraph) -> tuple[Group, ...]:
    """The coupled layers: one group for every space of the graph, in its order.

    Raises:
        SchemaError: if ``graph`` is not a graph.
    """
    ChannelGraph.require(graph)
    opaque = _in_opaque_hands(graph)
    places = _Places(graph)
    roles = ("consumers", "producers", "biases", "norms", "constants")
    members: dict[str, dict[int, list[Member]]] = {role: defaultdict(list) for role in roles}

    def add(role: str, parameter: str, axis: int, tensor: str) -> None:
        for space, slices in places.of(tensor).items():
            member = Member(parameter, axis, slices)
            if member not in members[role][space]:  # a shared parameter has several users
                members[role][space].append(member)

    for op in graph.operations:
        if isinstance(op, Layer):
            if op.inputs:
                add("consumers", op.weight, op.in_axis, op.inputs[0])
            add("producers", op.weight, op.out_axis, op.outputs[0])
            if op.bias is not None:
                add("biases", op.bias, 0, op.outputs[0])
        elif isinstance(op, ChannelWise):
            for use in op.parameters:
                if use.role != "neutral":
                    add("norms", use.name, use.axis, op.outputs[0])
        elif isinstance(op, Constant) and op.axis is not None:
            add("constants", op.parameter, op.axis, op.outputs[0])
    return tuple(
        Group(
            channels=tuple(space.channels),
            fixed=space.fixed or opaque.get(number),
            **{role: tuple(found[number]) for role, found in members.items()},
        )
        for number, space in enumerate(graph.spaces)
    )


def constrain(graph: ChannelGraph, masks: Masks) -> Masks:
    """Grow masks until coupled layers agree, so that pruning causes no copies.

    A channel that any layer does not read, or does not write, is removed from all of them. Where
    channels cannot be removed (they are fixed), all of them are kept by all layers; and so is one
    channel where a layer would be left without any, as PyTorch wants. What the network itself
    copies (it flips or rolls channels, say) is copied still.

    Args:
        graph: the channel graph.
        masks: which slices of each parameter are kept.

    Returns:
        Masks for the weights, biases, norms and constants of every group. To make a model obey
        them, use :func:`upscale_opt.apply_masks`.

    Raises:
        MaskError: if the masks do not fit the graph.
    """
    Masks.require(masks)
    masks.check(graph)
    found = groups(graph)
    dropped: dict[tuple[str, int], set[int]] = defaultdict(set)
    touched: dict[tuple[str, int], None] = {}
    for group, gone in zip(found, _gone(graph, masks, found), strict=True):
        everything = (
            *group.consumers,
            *group.producers,
            *group.biases,
            *group.norms,
            *group.constants,
        )
        for member in everything:
            key = member.parameter, member.axis
            touched[key] = None
            dropped[key].update(i for channel in gone for i in member.slices[channel])
    kept: dict[str, dict[int, tuple[int, ...]]] = {}
    for parameter, axis in touched:
        size = slices_of(graph, parameter, axis)
        gone = dropped[parameter, axis]
        kept.setdefault(parameter, {})[axis] = tuple(i for i in range(size) if i not in gone)
    return Masks(kept=kept, graph_fingerprint=graph.masks_fingerprint)


def _gone(graph: ChannelGraph, masks: Masks, found: tuple[Group, ...]) -> list[set[int]]:
    """For every group, the channels to remove, by their place in it."""
    votes = [_votes(graph, masks, group) for group in found]
    gone = [
        set() if group.fixed is not None else {place for place, count in enumerate(own) if count}
        for group, own in zip(found, votes, strict=True)
    ]
    places = {
        channel: (space, place)
        for space, group in enumerate(found)
        for place, channel in enumerate(group.channels)
    }

    def keep(channels: Iterable[int], count: int) -> bool:
        """Keep at least ``count`` of ``channels``, those that the fewest layers drop."""
        own = [places[channel] for channel in channels]
        dropped = sorted(
            (votes[space][place], space, place) for space, place in own if place in gone[space]
        )
        missing = count - (len(own) - len(dropped))
        for _, space, place in dropped[: max(missing, 0)]:
            gone[space].discard(place)
        return missing > 0

    def kept(channels: Iterable[int]) -> int:
        return sum(place not in gone[space] for space, place in map(places.__getitem__, channels))

    changed = True
    while changed:
        changed = False
        for op in graph.operations:
            if isinstance(op, Attention):
                for name in op.inputs:
                    heads = in_groups(graph.sequence(name), op.heads)
                    width = max(1, *map(kept, heads))
                    for head in heads:
                        changed |= keep(head, width)
            if not isinstance(op, Layer) or not op.inputs:
                continue
            read, written = (
                in_groups(graph.sequence(name), op.groups) for name in (op.inputs[0], op.outputs[0])
            )
            if op.groups == 1:
                changed |= keep(dict.fromkeys(read[0]), 1)
                continue
            alive = [pair for pair in zip(read, written, strict=True) if kept(pair[1])]
            for side in zip(*alive, strict=True):
                width = max(1, *map(kept, side))
                for group in side:
                    changed |= keep(group, width)
    return gone


def _votes(graph: ChannelGraph, masks: Masks, group: Group) -> list[int]:
    """The number of layers that drop each channel of the group."""
    votes = [0] * len(group.channels)
    for member in (*group.consumers, *group.producers):
        size = slices_of(graph, member.parameter, member.axis)
        kept = masks.kept_on(member.parameter, member.axis, size)
        if len(kept) < size:
            for place, slices in enumerate(member.slices):
                votes[place] += kept.isdisjoint(slices)
    return votes


def _in_opaque_hands(graph: ChannelGraph) -> dict[int, str]:
    """The spaces that an operation reads or writes as they are, with the reason."""
    found: dict[int, str] = {}
    for op in graph.operations:
        taken = (*op.inputs, *op.outputs) if isinstance(op, (Opaque, Symmetric)) else ()
        how = "needs all of" if isinstance(op, Symmetric) else "takes"
        for name in (*op.whole, *taken):
            for channel in graph.tensors[name].channels:
                found.setdefault(graph.space_of[channel], f"{op.name} {how} {name} as it is")
    return found


class _Places:
    """The places of each space in each tensor."""

    def __init__(self, graph: ChannelGraph) -> None:
        self.graph = graph
        self.known: dict[str, dict[int, tuple[tuple[int, ...], ...]]] = {}

    def of(self, name: str) -> dict[int, tuple[tuple[int, ...], ...]]:
        """For each space in the tensor, for each channel, the elements along the channel axis."""
        if name not in self.known:
            self.known[name] = _places(self.graph, name)
        return self.known[name]


def _places(graph: ChannelGraph, name: str) -> dict[int, tuple[tuple[int, ...], ...]]:
    tensor, sequence = graph.tensors[name], graph.sequence(name)
    found: dict[int, list[list[int]]] = {}
    for space, entries in graph.runs(name):
        channels = graph.spaces[space].channels
        elements = found.setdefault(space, [[] for _ in channels])
        place_of = {channel: place for place, channel in enumerate(channels)}
        for entry in entries:
            first = entry * tensor.features
            place = place_of[sequence[entry]]
            elements[place].extend(range(first, first + tensor.features))
    return {space: tuple(map(tuple, elements)) for space, elements in found.items()}
