"""Check the buffers that a solution says concatenations share, without trusting whoever made it."""

from __future__ import annotations

from collections.abc import Mapping

from upscale_opt.ir.graph import ChannelGraph, Concat
from upscale_opt.ir.solution import Arena, Solution


def misplaced(graph: ChannelGraph, solution: Solution, arena: Arena) -> str | None:
    """The first thing wrong with an arena, or ``None`` if it is sound.

    Sound means: it holds concatenations along the channels, each stored in the order of the buffer;
    all that they join is alike but for its channels, and every channel is written once.
    """
    place = {channel: i for i, channel in enumerate(arena.channels)}
    operations = {name: op for op in graph.operations for name in op.outputs}
    results = set(arena.tensors)
    pieces: dict[str, None] = {}
    for name in arena.tensors:
        cat = operations.get(name)
        if not isinstance(cat, Concat) or cat.positions is not None:
            return f"the arena of {name!r}, which is no concatenation"
        if not _in_order(graph, solution, name, place):
            return f"the arena of {name!r}, in which its channels lie in another order"
        pieces |= dict.fromkeys(n for n in cat.inputs if n not in results)
        for read in solution.reads:
            if read.op == cat.name and read.channels != solution.tensors.get(read.tensor):
                return f"the arena of {name!r}, which joins a part of {read.tensor!r} only"
    listed = [c for name in pieces for c in _stored(graph, solution, name)]
    if len(set(listed)) < len(listed) or not place.keys() >= set(listed):
        return f"the arena of {arena.tensors[0]!r}, whose channels are not written once each"
    kinds = set()
    for name in (*arena.tensors, *pieces):
        tensor = graph.tensors[name]
        rest = tuple(n for axis, n in enumerate(tensor.shape) if axis != tensor.axis)
        kinds.add((rest, tensor.axis, tensor.features, tensor.dtype))
    if len(kinds) > 1 or any(features > 1 for _, _, features, _ in kinds):
        return f"the arena of {arena.tensors[0]!r}, which joins what is not alike"
    return None


def _in_order(graph: ChannelGraph, solution: Solution, name: str, place: Mapping[int, int]) -> bool:
    places = [place.get(channel, -1) for channel in _stored(graph, solution, name)]
    return -1 not in places and places == sorted(set(places))


def _stored(graph: ChannelGraph, solution: Solution, name: str) -> list[int]:
    channels = graph.tensors[name].channels
    return [channels[entry] for entry in solution.tensors.get(name, ())]
