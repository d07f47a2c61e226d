"""Segments: the units that masks are chosen for, and the slices of weights that belong to each.

Without constraints, a segment is one side of one layer, which decides for itself. With them, it is
a space of the channel graph: all layers that read (or write) its channels decide together.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor, nn

from upscale_opt.disjoint_sets import UnionFind
from upscale_opt.errors import MaskError
from upscale_opt.ir import graph as ir
from upscale_opt.ir.graph import ChannelGraph, Layer, slices_of
from upscale_opt.ir.masks import Masks
from upscale_opt.masking.ranking import least_by_group
from upscale_opt.masking.slices import channel_rows
from upscale_opt.masking.zeros import apply_masks, state_of
from upscale_opt.shown import Shown
from upscale_opt.solver.network.coupling import Group, Member, groups
from upscale_opt.tracing.attention import ROTATED
from upscale_opt.tracing.wrappings import unwrapped

Side = Literal["input", "output", "both"]
Method = Literal["unconstrained", "constrained"]
Layers = Literal["all", "conv"]
_OneSide = Literal["input", "output"]


@dataclass(frozen=True, eq=False, repr=False)
class Share(Shown):
    """One layer's part of a segment.

    Attributes:
        weight: the parameter's name.
        axis: the weight's axis along which the segment's channels lie.
        side: whether that is the layer's ``"input"`` or its ``"output"``.
        slices: which slices of the weight along ``axis`` belong to each channel, an int64 tensor
            of shape (channels, slices per channel) on the CPU.
    """

    weight: str
    axis: int
    side: _OneSide
    slices: Tensor

    @property
    def module(self) -> str:
        """The name of the module that the weight belongs to."""
        return self.weight.rpartition(".")[0]


@dataclass(eq=False, repr=False)
class Segment(Shown):
    """Channels that are dropped or kept together by all layers of the segment.

    Attributes:
        model: the model.
        graph: its channel graph.
        channels: the channel ids, one per row of :meth:`weights`; an id may occur more than once.
        shares: the layers, and which slices of their weights belong to which channel.
        groups: into how many groups of equal length the channels fall, each of which drops as
            many: those of a grouped convolution.
        scores: what a criterion found (:func:`upscale_opt.importance.score_segments`), a tensor of
            shape (channels,); ``None`` before, and where it has nothing to say about these layers.
    """

    model: nn.Module = field(repr=False)
    graph: ChannelGraph = field(repr=False)
    channels: tuple[int, ...]
    shares: tuple[Share, ...]
    scores: Tensor | None = None
    groups: int = 1

    @cached_property
    def layers(self) -> list[nn.Module]:
        """The modules whose weights the segment prunes."""
        return [self.model.get_submodule(share.module) for share in self.shares]

    @property
    def name(self) -> str:
        """The segment as text, such as ``"layer1.0.conv1.weight (input)"``."""
        return ", ".join(f"{share.weight} ({share.side})" for share in self.shares)

    def weights(self) -> Tensor:
        """All weights of every channel, a float64 tensor of shape (channels, weights)."""
        return self.matrix(
            {share.weight: _tensor(self.model, share.weight) for share in self.shares}
        )

    def matrix(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """The values of every channel in ``tensors``, a float64 tensor of shape (channels, values).

        Args:
            tensors: for every weight of the segment by name, a tensor of the weight's shape: the
                weight itself, its gradient, their product.
        """
        rows = []
        for share in self.shares:
            tensor = tensors[share.weight].detach()
            groups = self.graph.grouped.get(share.weight, 1)
            slices = channel_rows(tensor, share.axis, groups).double()
            rows.append(slices[share.slices.to(tensor.device)].flatten(1))
        return torch.cat([row.to(rows[0].device) for row in rows], dim=1)

    def mask(self, amount: float | Tensor = 0.5) -> Segment:
        """Zero the least important ``amount`` of the channels, in [0, 1), in place.

        Or, given a tensor of shape (channels,), those where it is zero.

        Raises:
            MaskError: if there are no scores, or ``amount`` is out of range.
        """
        if isinstance(amount, Tensor) and amount.ndim:
            if tuple(amount.shape) != (len(self.channels),):
                raise MaskError(
                    f"a mask for segment {self.name} has the shape ({len(self.channels)},), not "
                    f"{tuple(amount.shape)}"
                )
            return self.drop(torch.nonzero(amount == 0).flatten().tolist())
        if self.scores is None:
            raise MaskError(f"segment {self.name} has no scores; call importance() first")
        return self.drop(least_by_group(self.scores, float(amount), self.groups))

    def drop(self, rows: Iterable[int]) -> Segment:
        """Zero the channels in these rows of :meth:`weights`, in place."""
        apply_masks(self.model, self.graph, self.masks(rows))
        return self

    def masks(self, rows: Iterable[int]) -> Masks:
        """The masks that drop the channels in these rows, and nothing else.

        Raises:
            MaskError: if there is no such row.
        """
        dropped = sorted(set(rows))
        for row in dropped:
            if not 0 <= row < len(self.channels):
                raise MaskError(
                    f"segment {self.name} has {len(self.channels)} channels, and no channel {row}"
                )
        kept: dict[str, dict[int, tuple[int, ...]]] = {}
        for share in self.shares:
            gone = set(share.slices[dropped].flatten().tolist())
            size = slices_of(self.graph, share.weight, share.axis)
            own = kept.setdefault(share.weight, {})
            left = own.get(share.axis, range(size))  # a layer may have several parts
            own[share.axis] = tuple(i for i in left if i not in gone)
        return Masks(kept=kept, graph_fingerprint=self.graph.masks_fingerprint)


def _tensor(model: nn.Module, name: str) -> Tensor:
    """The parameter or buffer of that name."""
    owner, _, leaf = name.rpartition(".")
    module = model.get_submodule(owner)
    found = module._parameters.get(leaf, module._buffers.get(leaf))
    if found is None:
        raise MaskError(f"the model has no parameter {name!r} any more; make new segments")
    return found


def find_segments(
    model: nn.Module,
    graph: ChannelGraph,
    side: Side = "input",
    method: Method = "unconstrained",
    layers: Layers = "all",
) -> list[Segment]:
    """The segments of a model, in the order of execution.

    What the network's own inputs and outputs carry is left out, and with constraints also what
    opaque operations read or write: those channels must stay.

    Args:
        model: the model.
        graph: its graph.
        side: prune what layers read, what they write, or both.
        method: every layer by itself, or coupled layers together.
        layers: all layers, or convolutions (and what is coupled to them) only.

    Raises:
        MaskError: if an option is not one of those, or graph and model do not fit together.
    """
    for name, value, choices in (
        ("side", side, ("input", "output", "both")),
        ("method", method, ("unconstrained", "constrained")),
        ("layers", layers, ("all", "conv")),
    ):
        if value not in choices:
            raise MaskError(f"{name} must be one of {', '.join(choices)}, not {value!r}")
    model = unwrapped(model)
    state_of(model, graph)  # or else the graph is another model's
    both: tuple[_OneSide, ...] = ("input", "output")
    sides = [one for one in both if side in (one, "both")]
    if method == "constrained":
        return _constrained(model, graph, sides, layers)
    return _unconstrained(model, graph, sides, layers)


def _unconstrained(
    model: nn.Module, graph: ChannelGraph, sides: Sequence[_OneSide], layers: Layers
) -> list[Segment]:
    given = {name for op in graph.operations if op.kind == "input" for name in op.outputs}
    wanted = {
        c
        for op in graph.operations
        if op.kind == "output"
        for name in op.inputs
        for c in graph.sequence(name)
    }
    found: list[Segment] = []
    seen: set[str] = set()
    for op in graph.operations:
        if not isinstance(op, Layer) or (layers == "conv" and not _is_conv(graph, op.weight)):
            continue
        if op.weight in seen:  # a layer that is called more than once
            continue
        seen.add(op.weight)
        if "input" in sides and op.inputs and op.inputs[0] not in given:
            read = graph.tensors[op.inputs[0]]
            share = Share(op.weight, op.in_axis, "input", _slices(read))
            ids = tuple(read.channels)
            found.append(Segment(model, graph, ids, (share,), groups=op.groups))
        written = graph.tensors[op.outputs[0]]
        if "output" in sides and wanted.isdisjoint(graph.sequence(op.outputs[0])):
            share = Share(op.weight, op.out_axis, "output", _slices(written))
            ids = tuple(written.channels)
            found.append(Segment(model, graph, ids, (share,), groups=op.groups))
    return found


def _slices(tensor: ir.Tensor) -> Tensor:
    """For every entry of a tensor's channels, the elements along the axis that belong to it."""
    return torch.arange(len(tensor.channels) * tensor.features).reshape(-1, tensor.features)


def _constrained(
    model: nn.Module, graph: ChannelGraph, sides: Sequence[_OneSide], layers: Layers
) -> list[Segment]:
    found: list[Segment] = []
    for group in _turned_alike(graph, [g for g in groups(graph) if g.fixed is None]):
        shares = [
            Share(member.parameter, member.axis, side, torch.tensor(member.slices))
            for side in sides
            for member in (group.consumers if side == "input" else group.producers)
        ]
        if shares and (layers == "all" or any(_is_conv(graph, s.weight) for s in shares)):
            found.append(Segment(model, graph, group.channels, tuple(shares)))
    return found


def _turned_alike(graph: ChannelGraph, found: Sequence[Group]) -> list[Group]:
    """Groups, of which those that are turned by the same angles are one.

    A rotary embedding turns the same pairs of channels in all heads of all layers by one angle
    each. Heads that keep different pairs would need a copy of the angles each.
    """
    angles = UnionFind()
    turned: set[int] = set()
    for op in graph.operations:
        if isinstance(op, ir.ChannelWise) and op.outputs[0].endswith(f".{ROTATED}"):
            given, own = graph.tensors[op.whole[0]].channels, graph.tensors[op.inputs[0]].channels
            if given:
                angles.tie((given[i % len(given)] for i in range(len(own))), own)
                turned.update(own)
    alike: dict[tuple[bool, frozenset[int]], list[Group]] = {}
    for group in found:
        together = turned.issuperset(group.channels)
        names = map(angles.find, group.channels) if together else group.channels
        alike.setdefault((together, frozenset(names)), []).append(group)
    return [_one(same, angles) if turns else same[0] for (turns, _), same in alike.items()]


def _one(same: Sequence[Group], angles: UnionFind) -> Group:
    """Groups that are turned by the same angles, as one with a channel for each angle."""
    channels = {angles.find(channel): channel for channel in reversed(same[0].channels)}

    def merged(members: Sequence[Member], group: Group) -> Iterator[Member]:
        for member in members:
            slices: dict[int, list[int]] = {name: [] for name in channels}
            for channel, own in zip(group.channels, member.slices, strict=True):
                slices[angles.find(channel)].extend(own)
            by_angle = tuple(tuple(slices[name]) for name in reversed(channels))
            yield Member(member.parameter, member.axis, by_angle)

    return Group(
        channels=tuple(reversed(channels.values())),
        fixed=None,
        consumers=tuple(m for group in same for m in merged(group.consumers, group)),
        producers=tuple(m for group in same for m in merged(group.producers, group)),
    )


def _is_conv(graph: ChannelGraph, weight: str) -> bool:
    return len(graph.parameters[weight]) > 2
