"""Network slimming: how strongly the nearest batch norms scale a channel."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from upscale_opt.importance.criterion import Prepared
from upscale_opt.ir.graph import (
    ChannelGraph,
    ChannelWise,
    Concat,
    Elementwise,
    Layer,
    Operation,
    PerChannel,
    Select,
)
from upscale_opt.masking.zeros import state_of

if TYPE_CHECKING:
    from upscale_opt.masking.segments import Segment

_Norms = Sequence[frozenset[tuple[str, int]]]
"""For every channel of a tensor, the norms it meets: the scale's name, and the channel's place."""

_NONE: frozenset[tuple[str, int]] = frozenset()


class BatchNormScale(Prepared):
    """The mean size of a channel's scale in the batch norms that are nearest to it.

    Liu, Li, Shen, Huang, Yan, Zhang, *Learning Efficient Convolutional Networks through Network
    Slimming*, ICCV 2017. For an output channel these are the norms that it runs through next, all
    of them if several layers read it; only where there is none before a sum or product are those
    behind it taken. For an input channel they are the last norms that it came through, of all
    operands of a sum or product. Everything else that keeps channels apart is looked through:
    activations, pooling, concatenations and slices, depthwise convolutions, batch norms without a
    scale. Where several layers share a segment, all of their norms count, each once.

    A segment whose channels meet no norm has no scores and is left alone. Where only some do, the
    others score infinity: nothing speaks for dropping them, so they go last.
    """

    def scores_of(
        self, model: nn.Module, graph: ChannelGraph, segments: Sequence[Segment]
    ) -> list[Tensor | None]:
        """For each segment, the means of absolute scales, or ``None``."""
        tensors = state_of(model, graph)
        nearest = _Nearest(graph)
        sizes = {n: _sizes(tensors[n], features) for n, features in nearest.features.items()}
        found: list[Tensor | None] = []
        for segment in segments:
            norms = nearest.of(segment)
            means = [_mean([sizes[name][place] for name, place in some]) for some in norms]
            found.append(torch.tensor(means, dtype=torch.float64) if any(norms) else None)
        return found


def _sizes(scale: Tensor, features: int) -> list[float]:
    """The mean absolute scale of every channel."""
    values: list[float] = scale.detach().double().abs().reshape(-1, features).mean(1).tolist()
    return values


def _mean(values: list[float]) -> float:
    return math.fsum(values) / len(values) if values else math.inf


class _Nearest:
    """The nearest batch norms of all channels of a graph.

    Attributes:
        features: for the scale of every batch norm by name, how many of its entries belong to one
            channel.
    """

    def __init__(self, graph: ChannelGraph) -> None:
        self.features = {
            scale.name: graph.tensors[op.inputs[0]].features
            for op in graph.operations
            if (scale := _scale(graph, op)) is not None
        }
        self._layers = {op.weight: op for op in graph.operations if isinstance(op, Layer)}
        self._graph = graph

    def of(self, segment: Segment) -> _Norms:
        """For every channel of the segment, the norms it meets."""
        norms: list[set[tuple[str, int]]] = [set() for _ in segment.channels]
        for share in segment.shares:
            layer = self._layers[share.weight]
            if share.side == "input":
                tensor, table = layer.inputs[0], self._behind
            else:
                tensor, table = layer.outputs[0], self._ahead
            places = share.slices // self._graph.tensors[tensor].features
            for some, own in zip(norms, places.tolist(), strict=True):
                some.update(*(table[tensor][place] for place in own))
        return [frozenset(some) for some in norms]

    @cached_property
    def _ahead(self) -> dict[str, _Norms]:
        return _ahead(self._graph, but=_ahead(self._graph))

    @cached_property
    def _behind(self) -> dict[str, _Norms]:
        return _behind(self._graph)


def _ahead(graph: ChannelGraph, but: dict[str, _Norms] | None = None) -> dict[str, _Norms]:
    """For every tensor, the norms that its channels run through next, with no sum on the way.

    Args:
        graph: the graph.
        but: what that gives; where there are no such norms, look behind sums.
    """
    found: dict[str, _Norms] = {}
    readers: dict[str, list[_Norms]] = defaultdict(list)
    for op in reversed(graph.operations):
        for name in op.outputs:
            found[name] = _together(readers[name], len(graph.tensors[name].channels))
            if but is not None:
                pairs = zip(but[name], found[name], strict=True)
                found[name] = [near or far for near, far in pairs]
        if but is not None or not isinstance(op, Elementwise):
            for name, norms in _seen_from_inputs(graph, op, found):
                readers[name].append(norms)
    return found


def _seen_from_inputs(
    graph: ChannelGraph, op: Operation, found: dict[str, _Norms]
) -> Iterator[tuple[str, _Norms]]:
    """For each input of an operation, the norms that its channels meet in it or behind it."""
    scale = _scale(graph, op)
    if scale is not None:
        yield op.inputs[0], _own(graph, scale, op.inputs[0])
    elif isinstance(op, ChannelWise | Elementwise):
        for name in op.inputs:
            yield name, found[op.outputs[0]]
    elif isinstance(op, Concat):
        start = 0
        for name in op.inputs:
            stop = start + len(graph.tensors[name].channels)
            yield name, found[op.outputs[0]][start:stop]
            start = stop
    elif isinstance(op, Select):
        norms = [_NONE] * len(graph.tensors[op.inputs[0]].channels)
        for at, place in enumerate(op.positions):
            norms[place] |= found[op.outputs[0]][at]
        yield op.inputs[0], norms


def _behind(graph: ChannelGraph) -> dict[str, _Norms]:
    """For every tensor, the last norms that its channels came through."""
    found: dict[str, _Norms] = {}
    for op in graph.operations:
        for name in op.outputs:
            found[name] = _seen_from_output(graph, op, name, found)
    return found


def _seen_from_output(
    graph: ChannelGraph, op: Operation, output: str, found: dict[str, _Norms]
) -> _Norms:
    """The norms that the channels of an operation's output met in it or before it."""
    scale = _scale(graph, op)
    size = len(graph.tensors[output].channels)
    if scale is not None:
        return _own(graph, scale, output)
    if isinstance(op, ChannelWise | Elementwise):
        return _together([found[name] for name in op.inputs], size)
    if isinstance(op, Concat):
        return [some for name in op.inputs for some in found[name]]
    if isinstance(op, Select):
        return [found[op.inputs[0]][place] for place in op.positions]
    return [_NONE] * size


def _own(graph: ChannelGraph, scale: PerChannel, tensor: str) -> _Norms:
    return [frozenset([(scale.name, p)]) for p in range(len(graph.tensors[tensor].channels))]


def _together(tables: Sequence[_Norms], size: int) -> _Norms:
    """The norms that any of the tables has, channel by channel."""
    if len(tables) == 1:
        return tables[0]
    return [_NONE.union(*some) for some in zip(*tables, strict=True)] or [_NONE] * size


def _scale(graph: ChannelGraph, op: Operation) -> PerChannel | None:
    """The scale of a batch norm; ``None`` for anything else.

    Depthwise convolutions have a scale as well, but of filters; layer scale has no shift and no
    statistics.
    """
    if not isinstance(op, ChannelWise) or len(op.parameters) < 2:
        return None
    scales = [use for use in op.parameters if use.role == "scale"]
    return scales[0] if scales and len(graph.parameters[scales[0].name]) == 1 else None
