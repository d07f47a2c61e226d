"""Widths in steps: a few channels more, so that convolutions stay in a runtime's blocked layout.

Onnxruntime convolves images whose channels lie in blocks of 8 or 16. A convolution that reads no
multiple of 4 channels leaves that layout, and tensors that fill no whole blocks leave it where they
are concatenated. So layers read a few channels more, for which their weights hold zeros, and
tensors store a few more, which nothing needs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from upscale_opt.ir.cost_model import CostModel
from upscale_opt.ir.graph import ChannelGraph, ChannelWise, Concat, Layer, Tensor
from upscale_opt.ir.masks import Masks
from upscale_opt.ir.solution import Widths
from upscale_opt.solver.network.segments import Segments, Selection, find_segments
from upscale_opt.solver.network.sets import ChannelSets, Edge, Ids
from upscale_opt.solver.network.windows import Windows, extra_wants

_ROUNDS = 20
"""Rounds of filling up; what is not even then stays as it is."""


@dataclass(frozen=True)
class Steps:
    """The steps in which widths come.

    Attributes:
        align: convolutions read multiples of it.
        block: tensors store multiples of it, where they have as many channels; else of ``align``.
        joined: so do tensors that are concatenated, which keeps them in the blocked layout.
    """

    align: int
    block: int
    joined: bool = True


def steps_of(widths: Widths, cost_model: CostModel) -> Steps:
    """The steps that a runtime's widths come in."""
    if widths == "exact":
        return Steps(1, 1)
    return Steps(cost_model.align, cost_model.block, joined=widths == "blocks")


def aligned(
    graph: ChannelGraph,
    masks: Masks,
    selection: Selection,
    steps: Steps,
    extra: Mapping[Edge, Ids] | None = None,
) -> tuple[ChannelSets, Segments]:
    """Find the segments with widths filled up; sums take whole tensors, and nothing is trimmed.

    Args:
        graph: the channel graph.
        masks: masks that fit it.
        selection: where channels are selected.
        steps: the widths wanted.
        extra: channels that layers shall read although nothing needs them, when all is filled up.
    """
    more: dict[Edge, Ids] = {}
    floors: dict[str, Ids] = {}

    def found(wanted: Mapping[Edge, Ids]) -> tuple[ChannelSets, Segments]:
        return find_segments(graph, masks, selection, wanted, floors=floors, whole=True)

    sets, segments = found(more)
    for _ in range(_ROUNDS if steps.block > 1 else 0):
        wider = _wider(graph, segments, steps)
        wants = _wants(graph, sets, segments, steps)
        if not wider and not wants:
            break
        for name, ids in wider.items():
            floors[name] = floors.get(name, Ids()) | ids
        for edge, ids in wants.items():
            more[edge] = more.get(edge, Ids()) | ids
        sets, segments = found(more)
    if not extra:
        return sets, segments
    return found(
        {edge: more.get(edge, Ids()) | extra.get(edge, Ids()) for edge in {**more, **extra}}
    )


def _wider(graph: ChannelGraph, segments: Segments, steps: Steps) -> dict[str, Ids]:
    """Channels that tensors should store besides, by the tensor that a layer writes."""
    floors: dict[str, Ids] = {}
    exact = _grouped(graph) | (Ids() if steps.joined else _joined(graph))
    for op in graph.operations:
        if not isinstance(op, Layer) or op.groups > 1:
            continue
        if not exact.isdisjoint(graph.tensors[op.outputs[0]].channels):
            continue
        tensor = graph.tensors[op.outputs[0]]
        stored = segments.stored.get(op.outputs[0])
        if not stored or not _is_image(tensor):
            continue
        size = len(tensor.channels)
        step = steps.block if size % steps.block == 0 else steps.align
        missing = -len(stored) % step
        if missing and len(stored) + missing <= size:
            spare = [channel for channel in tensor.channels if channel not in stored]
            floors[op.outputs[0]] = stored | Ids(spare[:missing])
    return floors


def _wants(
    graph: ChannelGraph, sets: ChannelSets, segments: Segments, steps: Steps
) -> dict[Edge, Ids]:
    """Channels that layers should read besides."""
    windows = Windows(graph, sets, segments)
    operations = {op.name: op for op in graph.operations}
    chosen: dict[Edge, Ids] = {}
    for edge, ids in segments.selects.items():
        op = operations[edge[0]]
        source = op.inputs[edge[1]]
        missing = -len(ids) % steps.align
        if not missing or not isinstance(op, (Layer, ChannelWise)):
            continue
        tensor, chain = graph.tensors[source], windows.chain(edge)
        if chain is None or not _is_image(tensor):
            continue
        spare = [c for c in tensor.channels if c in segments.stored[source] and c not in ids]
        if len(spare) >= missing:
            chosen[edge] = Ids(spare[:missing])
    return extra_wants(windows, chosen)


def _grouped(graph: ChannelGraph) -> Ids:
    """The channels that convolutions with groups read: they would have to cut off any others."""
    return Ids(
        channel
        for op in graph.operations
        if isinstance(op, Layer) and op.groups > 1
        for name in op.inputs
        for channel in graph.tensors[name].channels
    )


def _joined(graph: ChannelGraph) -> Ids:
    """The channels that are concatenated with others."""
    return Ids(
        channel
        for op in graph.operations
        if isinstance(op, Concat)
        for name in (*op.inputs, *op.outputs)
        for channel in graph.tensors[name].channels
    )


def _is_image(tensor: Tensor) -> bool:
    """The tensor is an image, of one feature and one entry for each channel."""
    once = len(set(tensor.channels)) == len(tensor.channels)
    return len(tensor.shape) == 4 and tensor.axis == 1 and tensor.features == 1 and once
