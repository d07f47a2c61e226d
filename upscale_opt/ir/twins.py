"""Channel graphs as they were before concatenations made twins: what older files were made for."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

from upscale_opt.ir.graph import ChannelGraph, Space


def without_twins(graph: ChannelGraph) -> ChannelGraph:
    """The graph in which tensors hold the channels that twins were made of, more than once.

    Numbered as if there had never been twins.
    """
    if not graph.twins:
        return graph
    twins = sorted(graph.originals)

    def numbered(channels: Sequence[int]) -> tuple[int, ...]:
        return tuple(channel - bisect_left(twins, channel) for channel in channels)

    tensors = {
        name: tensor.model_copy(update={"channels": numbered(graph.sequence(name))})
        for name, tensor in graph.tensors.items()
    }
    spaces = [Space(channels=numbered(space.channels), fixed=space.fixed) for space in graph.spaces]
    return ChannelGraph(
        capture=graph.capture,
        example=graph.example,
        parameters=graph.parameters,
        spaces=tuple(spaces),
        tensors=tensors,
        operations=graph.operations,
    )
